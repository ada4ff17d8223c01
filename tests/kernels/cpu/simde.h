// AVX-512's instructions as SIMDe spells them out in others (Debian: libsimde-dev), for a processor without them.
// Included before kernels.cpp. What multiply_x86.h does is tested so, not what a compiler makes of it for AVX-512.
#include <immintrin.h>
#include <simde/x86/avx512.h>

#define __m512i simde__m512i
#define _mm512_and_si512 simde_mm512_and_si512
#define _mm512_dpbusd_epi32 simde_mm512_dpbusd_epi32
#define _mm512_dpwssd_epi32 simde_mm512_dpwssd_epi32
#define _mm512_loadu_si512 simde_mm512_loadu_si512
#define _mm512_maskz_extracti64x4_epi64(mask, x, half) simde_mm512_extracti64x4_epi64(x, half)
#define _mm512_set1_epi32 simde_mm512_set1_epi32
#define _mm512_set1_epi8 simde_mm512_set1_epi8
#define _mm512_setzero_si512 simde_mm512_setzero_si512
#define _mm512_slli_epi16 simde_mm512_slli_epi16
#define _mm512_srai_epi16 simde_mm512_srai_epi16
#define _mm512_srli_epi16 simde_mm512_srli_epi16
#define __AVX512VNNI__ 1
