"""A sandbox's first process: a static program of a few instructions, written out by Python.

It makes itself unreadable for debuggers and then sleeps for ever. It needs no loop for the dead: it is
started with SIGCHLD ignored, which tells the kernel to reap what falls to it. A forked Python would cost 860
kB for each sandbox, and thousands of forks of one process slow every fork of the machine; this costs about 6
kB.
"""

from __future__ import annotations

import struct

# x86-64: prctl(PR_SET_DUMPABLE, 0); for (;;) pause();
X86_64 = bytes.fromhex(
    "b89d000000"  # mov eax, 157
    "bf04000000"  # mov edi, 4
    "31f6"  # xor esi, esi
    "0f05"  # syscall
    "b822000000"  # mov eax, 34
    "0f05"  # syscall
    "ebf7"  # jmp to the mov before
)

# aarch64: prctl(PR_SET_DUMPABLE, 0); for (;;) ppoll(NULL, 0, NULL, NULL);
AARCH64 = struct.pack(
    "<12I",
    0xD28014E8,  # mov x8, #167
    0xD2800080,  # mov x0, #4
    0xD2800001,  # mov x1, #0
    0xD4000001,  # svc #0
    0xD2800928,  # mov x8, #73
    0xD2800000,  # mov x0, #0
    0xD2800001,  # mov x1, #0
    0xD2800002,  # mov x2, #0
    0xD2800003,  # mov x3, #0
    0xD2800004,  # mov x4, #0
    0xD4000001,  # svc #0
    0x17FFFFF9,  # b back by seven instructions
)

PROGRAMS = {"x86_64": (62, X86_64), "aarch64": (183, AARCH64)}


def init_program(machine: str) -> bytes:
    """An ELF file for `platform.machine()`: one header, one loadable segment, the code."""
    elf_machine, code = PROGRAMS[machine]
    base, headers = 0x400000, 64 + 56
    size = headers + len(code)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", ident, 2, elf_machine, 1, base + headers, 64, 0, 0, 64, 56, 1, 64, 0, 0
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x10000)
    return header + segment + code
