// GGUF's blocks of a matrix in tiles (see tiles.h and packed.py). No number is computed with, so that one compiled form
// serves all instruction sets.
#include <cstring>

#include "kernels.h"

namespace lathe {
namespace {

constexpr int ROWS = 16;
constexpr uint32_t LOW = 0x0f0f0f0f;  // the low halves of four bytes

// `count` blocks, one of each row and `stride` bytes apart, in a tile: HALVES scales (and minima) and WORDS words of
// four bytes each. Rows that are missing are zeros.
template <int HALVES, int WORDS>
void pack_tile(const uint8_t* blocks, int64_t stride, int count, uint8_t* tile) {
    uint16_t halves[HALVES][ROWS] = {};
    uint32_t words[WORDS][ROWS] = {};
    for (int row = 0; row < count; row++, blocks += stride) {
        uint16_t head[HALVES];
        uint32_t body[WORDS];
        memcpy(head, blocks, sizeof(head)), memcpy(body, blocks + sizeof(head), sizeof(body));
        for (int k = 0; k < HALVES; k++) halves[k][row] = head[k];
        for (int s = 0; s < WORDS; s++) words[s][row] = body[s];
    }
    // A block's word of 4-bit numbers has columns 4i to 4i + 3 in low halves and 16 more in high ones, a tile's has 8s to
    // 8s + 3 in low halves and 4 more in high ones.
    if constexpr (WORDS == 4)
        for (int row = 0; row < ROWS; row++) {
            uint32_t a = words[0][row], b = words[1][row], c = words[2][row], d = words[3][row];
            words[0][row] = (a & LOW) | (b & LOW) << 4, words[1][row] = (c & LOW) | (d & LOW) << 4;
            words[2][row] = (a >> 4 & LOW) | (b & ~LOW), words[3][row] = (c >> 4 & LOW) | (d & ~LOW);
        }
    memcpy(tile, halves, sizeof(halves)), memcpy(tile + sizeof(halves), words, sizeof(words));
}

template <int HALVES, int WORDS>
void pack_rows(const uint8_t* blocks, int rows, int columns, uint8_t* tiles, Worker& worker) {
    constexpr int BLOCK = 2 * HALVES + 4 * WORDS;
    int num_groups = columns / 32;
    int64_t row_bytes = (int64_t)num_groups * BLOCK;
    worker.begin(0);
    for (int tile_row; (tile_row = worker.next((rows + ROWS - 1) / ROWS)) >= 0;) {
        int first = tile_row * ROWS, count = rows - first < ROWS ? rows - first : ROWS;
        for (int group = 0; group < num_groups; group++)
            pack_tile<HALVES, WORDS>(
                blocks + first * row_bytes + group * BLOCK, row_bytes, count,
                tiles + (first * row_bytes + (int64_t)group * ROWS * BLOCK));
    }
}

}  // namespace

void pack(Kind kind, const uint8_t* blocks, int rows, int columns, uint8_t* tiles, Worker& worker) {
    switch (kind) {
        case Q4_0: return pack_rows<1, 4>(blocks, rows, columns, tiles, worker);
        case Q4_1: return pack_rows<2, 4>(blocks, rows, columns, tiles, worker);
        case Q8_0: return pack_rows<1, 8>(blocks, rows, columns, tiles, worker);
        default: return;
    }
}

}  // namespace lathe
