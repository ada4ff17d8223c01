"""What a process in a sandbox may do: eight capabilities, and no system call that only a machine's owner
needs.

The filter is installed once, in a spawner, and inherited. One filter a sandbox would be one JIT-compiled
program each: freeing thousands of them at once has deadlocked a kernel for good (Linux 6.18, bpf_jit_free).
"""

from __future__ import annotations

import ctypes
import errno
import platform
import resource
import struct

from lathe.sandbox.namespace.syscalls import (
    PR_CAPBSET_DROP,
    PR_SET_NO_NEW_PRIVS,
    call,
    prctl,
)

# chown, dac_override, fowner, fsetid, kill, setgid, setuid, net_bind_service (linux/capability.h)
CAPABILITIES = (0, 1, 3, 4, 5, 6, 7, 10)
# Out of the bounding set, too, go those that would open most: net_admin, sys_ptrace, sys_admin, sys_resource.
# (Each costs a copy of the process's credentials, 20 µs; all 33 took a third of the time between a fork and
# its exec.)
UNBOUND = (12, 19, 21, 24)

# name: (x86-64, aarch64). Mounts and new namespaces are not here: the spawner needs them, and in a sandbox
# the missing capability refuses them.
DENIED = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "bpf": (321, 280),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "delete_module": (176, 106),
    "finit_module": (313, 273),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "lookup_dcookie": (212, 18),
    "move_pages": (279, 239),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "perf_event_open": (298, 241),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "settimeofday": (164, 170),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "userfaultfd": (323, 282),
    "vhangup": (153, 58),
}
SOCKET = (41, 198)
FAMILIES = (1, 2, 10, 16)  # unix, inet, inet6, netlink; vsock in particular knows no network namespaces
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32_BIT = 0x40000000


def _instruction(code: int, k: int, jump_true: int = 0, jump_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, jump_true, jump_false, k)


def filter_program() -> bytes:
    """The filter as struct sock_filter[]: EPERM for what is denied and for foreign system call tables."""
    machine = platform.machine()
    column = 0 if machine == "x86_64" else 1
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06
    allow, refuse = 0x7FFF0000, 0x00050000 | errno.EPERM
    head = [
        _instruction(load, 4),  # seccomp_data.arch
        _instruction(equal, AUDIT_ARCH[machine], 1, 0),
        _instruction(answer, refuse),
        _instruction(load, 0),  # seccomp_data.nr
    ]
    if machine == "x86_64":
        head += [_instruction(at_least, X32_BIT, 0, 1), _instruction(answer, refuse)]
    numbers = sorted(each[column] for each in DENIED.values())
    checks = [
        _instruction(equal, number, len(numbers) + 1 - place, 0) for place, number in enumerate(numbers)
    ]
    checks += [
        _instruction(equal, SOCKET[column], 2, 0),
        _instruction(answer, allow),
        _instruction(answer, refuse),
    ]
    family = [_instruction(load, 16)]  # seccomp_data.args[0], low half on little-endian machines
    family += [_instruction(equal, each, len(FAMILIES) - place, 0) for place, each in enumerate(FAMILIES)]
    return b"".join([*head, *checks, *family, _instruction(answer, refuse), _instruction(answer, allow)])


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def install_filter() -> None:
    """Bind this process and all that it starts. Sets no_new_privs, too."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    code = filter_program()
    call("seccomp", 1, 0, _Program(len(code) // 8, code))  # 1: SECCOMP_SET_MODE_FILTER


def drop_capabilities() -> None:
    """Keep the eight. As new privileges are ruled out by then, no exec gains others (capabilities(7))."""
    for each in UNBOUND:
        prctl(PR_CAPBSET_DROP, each)
    kept = sum(1 << each for each in CAPABILITIES)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    sets = (ctypes.c_uint32 * 6)(
        kept, kept, 0, 0, 0, 0
    )  # effective, permitted, inheritable; low and high halves
    call("capset", header, sets)


def process_limits(limits: dict) -> list[tuple[int, int]]:
    """The limits that hold for each process (and, for processes, for each user of a sandbox's namespace)."""
    wanted = [
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, limits.get("file_bytes")),
        (resource.RLIMIT_NPROC, limits.get("num_processes")),
        (resource.RLIMIT_CPU, limits.get("cpu_s") and max(1, round(limits["cpu_s"]))),
        # Not RLIMIT_AS: node, Java and Go reserve address space that they never use.
        (resource.RLIMIT_DATA, limits.get("data_bytes")),
        (resource.RLIMIT_NOFILE, 4096),
    ]
    bounds = []
    for kind, value in wanted:
        if value is not None:
            hard = resource.getrlimit(kind)[1]
            bounds.append((kind, value if hard == resource.RLIM_INFINITY else min(value, hard)))
    return bounds


def set_limits(bounds: list[tuple[int, int]]) -> None:
    for kind, bound in bounds:
        resource.setrlimit(kind, (bound, bound))
