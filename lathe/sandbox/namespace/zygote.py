"""Python that is warm already: a process of a shard that has imported what tests need, and forks into
sandboxes.

A fresh Python with pytest takes 0.4 s to start, a fork of one that has it 3 ms. The zygote parts from its
spawner before that hides the machine's files, so that it can import; it does so when it is first wanted, and
until then commands start in the usual way. Its forks are the spawner's children, as every command is.

The fork runs in the sandbox's namespaces, with its user, limits and capabilities: it is in the place of
`python3 -I -B -c CODE` and differs in what is imported. Its memory holds modules, and nothing of anybody's.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from lathe.sandbox.namespace import enter, wire
from lathe.sandbox.namespace import syscalls as sys_
from lathe.sandbox.namespace.privileges import install_filter

Message = dict[str, Any]
MODULES = (
    "pytest", "_pytest.assertion.rewrite", "_pytest.python", "_pytest.unittest", "_pytest.skipping",
    "_pytest.raises", "_pytest.monkeypatch", "_pytest.tmpdir", "_pytest.capture", "unittest.mock", "asyncio",
    "subprocess", "json", "ctypes", "hmac", "traceback", "importlib.util", "dataclasses", "decimal",
    "fractions", "random", "datetime", "tempfile", "statistics", "string", "heapq", "bisect", "itertools",
)  # fmt: skip


class Zygote:
    """The spawner's side. `is_ready` once the modules are there; None of its calls blocks for longer than a
    fork takes."""

    def __init__(self, mapped: bool):
        self.end, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.is_ready = False
        self.is_wanted = False
        self.pid = os.fork()
        if self.pid == 0:
            try:
                for first, last in ((3, theirs.fileno() - 1), (theirs.fileno() + 1, 0x7FFFFFFF)):
                    if first <= last:
                        sys_.close_range(first, last)
                sys_.prctl(sys_.PR_SET_PDEATHSIG, signal.SIGKILL)
                install_filter()
                serve(theirs, mapped)
            finally:
                os._exit(0)
        theirs.close()

    def want(self) -> bool:
        """Can it run something now? If not, it begins to get ready."""
        with contextlib.suppress(OSError):
            if not self.is_wanted:
                self.is_wanted = True
                wire.send(self.end, wire.pack({"do": "import"}))
            elif not self.is_ready:
                self.end.setblocking(False)
                message, _ = wire.receive(self.end)
                self.end.setblocking(True)
                self.is_ready = message is not None
        return self.is_ready

    def run(self, box: Message, request: Message, fds: list[int]) -> int | None:
        """The pid of a fork that runs the request's code, a child of this process. None if it couldn't.

        `fds` are the sandbox's pidfd, where faults are told, the three standard ones, and control groups.
        """
        known = ("id", "argv", "cwd", "env", "venv")
        asked = {name: request[name] for name in known if name in request}
        shape = {name: box[name] for name in ("network", "bounds")}
        try:
            wire.send(self.end, wire.pack({"do": "run", "box": shape, **asked}), fds)
            answer, _ = wire.receive(self.end)
        except OSError:
            answer = None
        self.is_ready = answer is not None  # else it is gone
        return answer.get("pid") if answer is not None else None


# In the zygote


def serve(end: socket.socket, mapped: bool) -> None:
    """Until the spawner is gone."""
    own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    while True:
        message, fds = wire.receive(end)
        if message is None:
            return
        if message["do"] == "import":
            import_modules()
            join_spawner(mapped)
            wire.send(end, wire.pack({"ready": True}))
            continue
        try:
            wire.send(end, wire.pack({"pid": fork_into(message, fds, own_pids, mapped)}))
        except OSError as error:
            wire.send(end, wire.pack({"fault": str(error)}))
        finally:
            for each in fds:
                os.close(each)


def import_modules() -> None:
    """All that is there of MODULES: a machine without pytest has no use for it."""
    import gc
    import importlib
    import site

    sys.path.pop(0)  # this package's own house
    site.main()  # the spawner goes without; here the installed packages are wanted
    for name in MODULES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what is not looked at is not copied


def join_spawner(mapped: bool) -> None:
    """Be where the spawner went when they had parted: in the network that is none, and where it is an
    ordinary user's, in its user namespace. What is forked from here on begins as the spawner's own forks."""
    spawner = sys_.pidfd_open(os.getppid())
    sys_.setns(spawner, sys_.CLONE_NEWNET | (0 if mapped else sys_.CLONE_NEWUSER))
    os.close(spawner)


def fork_into(request: Message, fds: list[int], own_pids: int, mapped: bool) -> int:
    """A worker in the sandbox, as a child of the spawner."""
    pidfd = fds[0]
    if mapped:
        sys_.setns(pidfd, sys_.CLONE_NEWPID)
        try:
            return _clone(request, fds, mapped)
        finally:
            sys_.setns(own_pids, sys_.CLONE_NEWPID)
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    between = sys_.clone(sys_.CLONE_PARENT)
    if between == 0:
        try:  # who goes can't come back, as in `Spawner._fork_inside_unprivileged`
            sys_.setns(pidfd, sys_.CLONE_NEWPID)
            os.write(theirs, str(_clone(request, fds, mapped)).encode())
        except OSError as error:
            os.write(theirs, f"! {error}".encode())
        finally:
            os._exit(0)
    os.close(theirs)
    with open(ours, "rb") as answer:  # noqa: PTH123
        said = answer.read().decode()
    if not said.isdigit():
        raise OSError(5, said)
    return int(said)


def _clone(request: Message, fds: list[int], mapped: bool) -> int:
    pid = sys_.clone(sys_.CLONE_PARENT)
    if pid == 0:
        try:
            become_python(request, fds, mapped)
        finally:
            os._exit(255)
    return pid


def become_python(request: Message, fds: list[int], mapped: bool) -> None:
    """Never returns: runs the code as its own `__main__`, in the sandbox."""
    pidfd, faults, standard, groups = fds[0], fds[1], fds[2:5], fds[5:]
    try:
        for each in groups:
            os.write(each, b"0")
        enter.join(request["box"], pidfd, mapped)
    except OSError as error:
        os.write(faults, f"{request['id']} {error}\n".encode())
        os._exit(255)
    os.setsid()
    enter.take_descriptors(standard)
    sys_.prctl(sys_.PR_SET_DUMPABLE, 1)  # as after an exec: /proc/self is its own
    try:
        os.chdir(request["cwd"])
    except OSError as error:
        os.write(2, f"cannot go to {request['cwd']}: {error.strerror}\n".encode())
        os._exit(enter.NOT_EXECUTABLE)
    os.environ.clear()
    os.environ.update(request["env"])
    code = request["argv"][-1]
    exit_code = 0
    try:
        run_as_main(code, request.get("venv"))
    except SystemExit as error:
        exit_code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        if not isinstance(error.code, int | None):
            print(error.code, file=sys.stderr)  # noqa: T201
    except BaseException as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename != "<string>":
            trace = trace.tb_next
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        exit_code = 1
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(exit_code & 255)


def run_as_main(code: str, venv: tuple[str, str] | None) -> None:
    """What `python3 -I -B -c CODE` does, in this process."""
    import random
    import shutil
    from types import ModuleType

    for name, mode, place in (("stdin", "r", 0), ("stdout", "w", 1), ("stderr", "w", 2)):
        stream = open(place, mode, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
    random.seed()  # forks would all draw the same
    if venv is not None and venv[0] != venv[1]:
        move_modules(*venv)
    sys.path[:] = [path for path in sys.path if path.endswith(".zip") or Path(path).exists()]
    for name in [name for name in sys.modules if name == "lathe" or name.startswith("lathe.")]:
        del sys.modules[name]
    sys.executable = shutil.which("python3") or sys.executable
    sys.argv = ["-c"]
    sys.dont_write_bytecode = True
    main = ModuleType("__main__")
    sys.modules["__main__"] = main
    exec(compile(code, "<string>", "exec"), main.__dict__)


def move_modules(before: str, after: str) -> None:
    """The same modules, found where the sandbox has them."""

    def moved(path: Any) -> Any:
        is_below = isinstance(path, str) and (path + "/").startswith(before + "/")
        return after + path[len(before) :] if is_below else path

    sys.path[:] = map(moved, sys.path)
    sys.path_importer_cache.clear()
    sys.prefix, sys.exec_prefix, sys.executable = map(moved, (sys.prefix, sys.exec_prefix, sys.executable))
    for module in list(sys.modules.values()):
        for name in ("__file__", "__cached__"):
            if moved(getattr(module, name, None)) != getattr(module, name, None):
                setattr(module, name, moved(getattr(module, name)))
        spec = getattr(module, "__spec__", None)
        for holder, name in ((module, "__path__"), (spec, "submodule_search_locations")):
            places = getattr(holder, name, None)
            if isinstance(places, list):
                places[:] = map(moved, places)
        if spec is not None:
            spec.origin = moved(spec.origin)
