"""What this machine can do for sandboxes, each thing tried in a process that ends at once, and why not.

Nothing is tried on the machine itself: mounts are made in mount namespaces that end with their process.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import lathe
from lathe.errors import BackendRefused

TIMEOUT_S = 30.0
START = "import sys; sys.path.insert(0, sys.argv[1]); from lathe.sandbox.probe_child import main; main()"
NEEDED = ("user namespace", "pid namespace", "mount namespace", "ipc namespace", "uts namespace")
NEEDS = {
    "namespace": (*NEEDED, "net namespace", "overlay", "pivot_root", "seccomp"),
    "landlock": ("seccomp", "landlock"),
    "docker": ("docker engine",),
}
# In the order in which `auto` takes them.
BACKENDS = ("namespace", "landlock")
HELP = {
    "user namespace": (
        "allow them: sysctl user.max_user_namespaces and kernel.unprivileged_userns_clone, AppArmor's "
        "kernel.apparmor_restrict_unprivileged_userns=0, or for a container --security-opt seccomp=unconfined"
    ),
    "overlay": "a kernel of 5.11 or newer with overlayfs: modprobe overlay",
    "landlock": "a kernel of 5.13 or newer that was booted with landlock among its lsm=",
    "docker engine": "start the engine, and let this user open its socket (group docker), or set DOCKER_HOST",
    "seccomp": "a kernel with CONFIG_SECCOMP_FILTER",
}


@dataclass(frozen=True)
class Finding:
    """One thing that was tried: whether it works, and what was seen, or why not."""

    name: str
    works: bool
    detail: str = ""


@dataclass(frozen=True)
class Probe:
    """All that was found, and the backends that follow from it."""

    findings: tuple[Finding, ...]

    def __getitem__(self, name: str) -> Finding:
        for each in self.findings:
            if each.name == name:
                return each
        raise KeyError(name)

    def refused(self, backend: str) -> list[Finding]:
        """What a backend needs and this machine refuses."""
        return [self[name] for name in NEEDS[backend] if not self[name].works]

    @property
    def auto(self) -> str | None:
        """The backend that `auto` takes, None where no backend works."""
        return next((each for each in BACKENDS if not self.refused(each)), None)

    def why(self, backend: str) -> str:
        """What stands against a backend, in words, with what would help. Empty where nothing does."""
        missing = self.refused(backend)
        if any(each.name == "user namespace" for each in missing):  # without it no other can be made
            missing = [each for each in missing if each.name in ("user namespace", "seccomp")]
        return "; ".join(
            f"{each.name}: {each.detail}" + (f" ({HELP[each.name]})" if each.name in HELP else "")
            for each in missing
        )

    def check(self, backend: str) -> None:
        """Raises BackendRefused where this machine can't have a backend."""
        if why := self.why(backend):
            others = [each for each in BACKENDS if each != backend and not self.refused(each)]
            instead = f" Works here: {', '.join(others)}." if others else ""
            raise BackendRefused(f"this machine refuses sandboxes by {backend}: {why}.{instead}")


def probe() -> Probe:
    """Try everything. Takes about a fifth of a second; needs no rights."""
    found = [*tried_in_child(), *control_groups(), docker_engine(), bubblewrap(), ray(), *resources()]
    return Probe(tuple(found))


def tried_in_child() -> list[Finding]:
    """What changes the process that tries it: done by another."""
    house = str(Path(lathe.__file__).parents[1])
    command = [sys.executable, "-I", "-S", "-B", "-c", START, house]
    with tempfile.TemporaryDirectory(prefix="lathe-probe-") as folder:
        done = subprocess.run(
            [*command, folder],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            start_new_session=True,
        )
    if done.returncode:
        raise BackendRefused(f"the probe of this machine failed: {done.stderr.strip()[-1000:]}")
    return [Finding(*row) for row in json.loads(done.stdout)]


def control_groups() -> list[Finding]:
    """Groups are made and removed at once, as a pool makes them."""
    from lathe.sandbox.namespace.cgroups import find_cgroups

    groups, missing = find_cgroups()
    try:
        names = groups.controllers
        versions = sorted({str(each.version) for each in groups._hierarchies})
    finally:
        groups.close()
    detail = f"version {'+'.join(versions)}: {', '.join(names)}" if names else ""
    return [Finding("control groups", bool(names), "; ".join(part for part in (detail, missing) if part))]


def docker_socket() -> str:
    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    return host.removeprefix("unix://")


def docker_engine() -> Finding:
    """A client without an engine is of no use."""
    name, path = "docker engine", docker_socket()
    client = "" if shutil.which("docker") is None else ", though its client is installed"
    if not path.startswith("/"):
        return Finding(name, False, f"DOCKER_HOST is {path}: only Unix sockets are spoken to")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as end:
            end.settimeout(3)
            end.connect(path)
            end.sendall(b"GET /version HTTP/1.0\r\nHost: docker\r\n\r\n")
            answer = b""
            while data := end.recv(1 << 16):
                answer += data
        version = json.loads(answer.partition(b"\r\n\r\n")[2])["Version"]
    except OSError as error:
        return Finding(name, False, f"none answers at {path} ({error.strerror or error}){client}")
    except (ValueError, KeyError, TypeError):
        return Finding(name, False, f"what answers at {path} is no docker engine")
    return Finding(name, True, f"{version} at {path}")


def bubblewrap() -> Finding:
    path = shutil.which("bwrap")
    return Finding("bubblewrap", path is not None, path or "not installed (nothing here needs it)")


def ray() -> Finding:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return Finding("ray", True, version("ray"))
    except PackageNotFoundError:
        return Finding("ray", False, "not installed: one machine only")


def resources(folder: Path | None = None) -> list[Finding]:
    """How much there is. Works means: enough for a few sandboxes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    processes = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    limit = "no limit" if processes == resource.RLIM_INFINITY else str(processes)
    pid_max = read_number("/proc/sys/kernel/pid_max")
    place = folder or Path(tempfile.gettempdir())
    disk = shutil.disk_usage(place)
    memory = memory_bytes()
    return [
        Finding("descriptors", soft >= 256, f"{soft} (at most {hard})"),
        Finding(
            "processes",
            processes == resource.RLIM_INFINITY or processes >= 64,
            f"{limit}, pids up to {pid_max}",
        ),
        Finding(
            "disk", disk.free > 1 << 30, f"{disk.free / 1e9:.1f} GB free of {disk.total / 1e9:.1f} in {place}"
        ),
        Finding(
            "memory", memory[0] > 1 << 30, f"{memory[0] / 1e9:.1f} GB available of {memory[1] / 1e9:.1f}"
        ),
    ]


def memory_bytes() -> tuple[int, int]:
    """Available and total, as the kernel says."""
    rows = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line)
    available, total = (int(rows[name].split()[0]) * 1024 for name in ("MemAvailable", "MemTotal"))
    return available, total


def read_number(path: str) -> int | None:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return None


def tried(name: str, attempt: Callable[[], str]) -> Finding:
    """Run one attempt in a fork: what it changes ends with it."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            try:
                said = [True, attempt()]
            except OSError as error:
                said = [False, str(error.strerror or error) if error.filename is None else str(error)]
            except Exception as error:
                said = [False, repr(error)]
            os.write(theirs, json.dumps(said).encode()[:4096])
        finally:
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    return (
        Finding(name, *json.loads(text)) if text else Finding(name, False, "the process that tried it died")
    )
