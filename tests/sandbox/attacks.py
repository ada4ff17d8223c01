"""What a program in a sandbox may try. Each is the body of a function that returns True when it got through.

`secret`, `port`, `abstract` and `pid` are of this machine: a file, a listener on loopback, an abstract socket,
a process. All were made by the test.
"""

PREAMBLE = """
import ctypes, errno, fcntl, os, pathlib, resource, signal, socket, stat, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
secret, port, abstract, pid = {secret!r}, {port}, {abstract!r}, {pid}

def syscall(number, *arguments):
    numbers = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    if libc.syscall(ctypes.c_long(number), *numbers) >= 0:
        return True
    if ctypes.get_errno() != errno.EPERM:  # wrong arguments would prove nothing
        print("not refused, but failed:", errno.errorcode[ctypes.get_errno()])
        sys.exit()
    return False

def reads(path):
    return "the secret" in pathlib.Path(path).read_text(errors="replace")

def written(path, text):
    pathlib.Path(path).write_text(text)
    return True

def can_write(path):
    os.close(os.open(path, os.O_WRONLY))  # opened, not written: the file is this machine's
    return True

def attack():
{body}

try:
    print("GOT THROUGH" if attack() else "held")
except Exception as error:
    print("held:", type(error).__name__, error)
"""

ATTACKS = {
    # files of this machine
    "read a file by its path": "return reads(secret)",
    "read it by way of /proc/1/root": "return reads('/proc/1/root' + secret)",
    "read it by way of /proc/1/cwd": "return reads('/proc/1/cwd/../../../..' + secret)",
    "read it by dots": "return reads('/..' * 20 + secret)",
    "read it after a chroot": "os.mkdir('jail'); os.chroot('jail'); os.chdir('../' * 20); return reads(secret[1:])",
    "open it by handle": "buffer = ctypes.create_string_buffer(144); return syscall(304, -100, buffer, 0)",
    "this machine's passwords": "return 'root:' in pathlib.Path('/etc/shadow').read_text()",
    "root's home": "return bool(os.listdir('/root') and '.bashrc' in os.listdir('/root') and not os.access('/root', os.W_OK))",
    "write over a program": "return can_write('/usr/bin/env')",
    "add a program": "return written('/usr/bin/new-program', '')",
    "write into the running Python": "return can_write(os.__file__)",
    "make a disk's device": "os.mknod('disk', stat.S_IFBLK | 0o600, os.makedev(254, 0)); open('disk', 'rb'); return True",
    "make /dev/mem": "os.mknod('mem', stat.S_IFCHR | 0o600, os.makedev(1, 1)); open('mem', 'rb'); return True",
    # mounts
    "mount a tmpfs, past the quota": "return libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0",
    "mount proc again": "return libc.mount(b'none', b'/tmp', b'proc', 0, None) == 0",
    "remount /usr writable": "return libc.mount(None, b'/usr', None, 32 | 4096, None) == 0",
    "unmount /proc": "return libc.umount2(b'/proc', 2) == 0",
    "unmount the root": "return libc.umount2(b'/', 2) == 0",
    "pivot_root": "return syscall(155, b'/', b'/tmp')",
    "open_tree": "return syscall(428, -100, b'/', 1)",
    "fsopen": "return syscall(430, b'tmpfs', 0)",
    "move_mount": "return syscall(429, -100, b'/proc', -100, b'/tmp', 0)",
    "mount_setattr": "return syscall(442, -100, b'/usr', 0, ctypes.create_string_buffer(32), 32)",
    # namespaces
    "a user namespace": "return libc.unshare(0x10000000) == 0",
    "a user namespace after raising its limit": "written('/proc/sys/user/max_user_namespaces', '9'); return libc.unshare(0x10000000) == 0",
    "a mount namespace": "return libc.unshare(0x00020000) == 0",
    "a network namespace": "return libc.unshare(0x40000000) == 0",
    "clone3 into a user namespace": "args = (ctypes.c_uint64 * 8)(0x10000000, 0, 0, 0, 17, 0, 0, 0)\ndone = libc.syscall(435, args, 64)\nif done == 0: os._exit(0)\nreturn done > 0",
    "join a namespace of init's": "fd = os.open('/proc/1/ns/net', os.O_RDONLY); return libc.setns(fd, 0) == 0",
    # processes
    "signal a process of this machine": "os.kill(pid, 0); return True",
    "see it": "return os.path.exists(f'/proc/{pid}/environ') and pid > 4 and 'python' in open(f'/proc/{pid}/cmdline').read()",
    "trace init": "return libc.ptrace(16, 1, 0, 0) == 0",
    "read init's memory": "return bool(open('/proc/1/mem', 'rb'))",
    "read init's memory by process_vm_readv": "mine = ctypes.create_string_buffer(16); here = (ctypes.c_uint64 * 2)(ctypes.addressof(mine), 16); there = (ctypes.c_uint64 * 2)(0x400000, 16); return libc.syscall(310, 1, here, 1, there, 1, 0) > 0",
    "init's descriptors": "return bool(os.readlink('/proc/1/fd/0')) or bool(os.open('/proc/1/fd/0', os.O_RDONLY))",
    "take a descriptor by pidfd_getfd": "fd = libc.syscall(434, 1, 0); return syscall(438, fd, 0, 0)",
    "more processes than allowed": "resource.setrlimit(resource.RLIMIT_NPROC, (10**6, 10**6)); return True",
    "leave the memory killer's list": "return written('/proc/self/oom_score_adj', '-1000')",
    "go before everybody": "os.nice(-10); return True",
    "real-time scheduling": "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50)); return True",
    # the network
    "this machine's loopback": "socket.create_connection(('127.0.0.1', port), 2); return True",
    "this machine's loopback by IPv6": "socket.create_connection(('::1', port), 2); return True",
    "an abstract socket of this machine": "end = socket.socket(socket.AF_UNIX); end.connect(abstract); return True",
    "UDP to this machine": "end = socket.socket(type=socket.SOCK_DGRAM); end.sendto(b'x', ('127.0.0.1', port)); return True",
    "raise lo": "end = socket.socket(type=socket.SOCK_DGRAM); fcntl.ioctl(end, 0x8914, struct.pack('16sH14x', b'lo', 0x41)); return True",
    "a raw socket": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW); return True",
    "a raw IP socket": "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1); return True",
    "the machine's hypervisor by vsock": "socket.socket(40, socket.SOCK_STREAM); return True",
    "the kernel's ciphers": "socket.socket(38, socket.SOCK_SEQPACKET); return True",
    "a network device by netlink": "end = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)\nend.send(struct.pack('IHHII', 32, 16, 0x605, 1, 0) + struct.pack('BxHiII', 0, 0, 0, 0, 0))\nreturn struct.unpack_from('i', end.recv(999), 16)[0] == 0",
    "a name on the internet": "return bool(socket.getaddrinfo('example.com', 80))",
    # the kernel
    "set the clock": "time.clock_settime(time.CLOCK_REALTIME, time.time()); return True",
    "rename the machine": "socket.sethostname('mine'); return True",
    "sysrq": "return can_write('/proc/sysrq-trigger')",
    "a kernel setting": "return can_write('/proc/sys/kernel/core_pattern')",
    "another kernel setting": "return can_write('/proc/sys/vm/overcommit_memory')",
    "the kernel's log": "return bool(open('/dev/kmsg'))",
    "the kernel's log by syslog": "return syscall(103, 10, None, 0)",
    "/sys": "return bool(os.listdir('/sys'))",
    "control groups": "return bool(os.listdir('/sys/fs/cgroup'))",
    "bpf": "return syscall(321, 0, ctypes.create_string_buffer(128), 128)",
    "perf_event_open": "return syscall(298, ctypes.create_string_buffer(128), 0, -1, -1, 0)",
    "userfaultfd": "return syscall(323, 0)",
    "io_uring": "return syscall(425, 1, ctypes.create_string_buffer(128))",
    "add_key": "return syscall(248, b'user', b'a', b'b', 1, -3)",
    "keyctl": "return syscall(250, 0, -3, 0)",
    "load a module": "return syscall(313, 0, b'', 0)",
    "kexec": "return syscall(246, 0, 17, 0, 0)",
    "restart the machine": "return syscall(169, 0xfee1dead - 2**32, 672274793, 0, 0)",
    "swap off": "return syscall(168, b'/dev/null')",
    "quotas": "return syscall(179, 0, b'/', 0, 0)",
    "core dumps": "return resource.getrlimit(resource.RLIMIT_CORE)[1] > 0",
    # what came along
    "the caller's environment": "return 'LATHE_TEST_SECRET' in os.environ or 'the secret' in open('/proc/1/environ').read()",
    "the caller's descriptors": "return sorted(os.listdir('/proc/self/fd')) != ['0', '1', '2', '3']",
    "capabilities beyond the allowed": "lines = [l for l in open('/proc/self/status') if l.startswith(('CapEff', 'CapPrm', 'CapInh', 'CapAmb'))]; return any(int(l.split()[1], 16) & ~0b10011111011 for l in lines)",
    "privileges by a setuid program": "return 'NoNewPrivs:\\t1' not in open('/proc/self/status').read()",
    "no filter": "return 'Seccomp:\\t2' not in open('/proc/self/status').read()",
}  # fmt: skip
"""By what it is after."""
