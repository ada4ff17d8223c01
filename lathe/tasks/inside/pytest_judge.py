"""Runs hidden tests with pytest, and reports on each so that the tested code can't easily speak for it.

Tested code shares this interpreter, so nothing here is beyond a program that tries hard. What is done:
Each record is signed with a key that only the audit hook below holds: hooks can't be removed or listed
(PEP 578), and what could reach into one (gc, frames, ctypes, /proc/self/mem) is seen by it first. A record is
only signed when called by this file's own plugin under pytest's own frames. A test's outcome is what its call
raised, not what a report says. pytest's and unittest's own functions are compared, before and after each
test, with what they were before any other code ran.

The job comes as JSON on standard input, behind this source. Records go to a copy of the standard output.
"""

import builtins
import contextlib
import gc
import hashlib
import hmac
import importlib
import json
import os
import sys
import threading
import time
from typing import Any

import pytest

WATCHED = ("_pytest.", "pluggy", "unittest.case", "unittest.suite", "unittest.loader", "pytest")
LOOKS_INSIDE = {
    "gc.get_objects", "gc.get_referrers", "gc.get_referents", "sys._getframe", "sys._current_frames",
    "sys._current_exceptions", "sys.settrace", "sys.setprofile", "sys.addaudithook",
}  # fmt: skip
OWN = "<pytest judge>"
CHANGES_CODE = {"__code__", "__defaults__", "__kwdefaults__", "__closure__"}
MAX_TEXT = 2000


def caller() -> Any:
    """The frame that raised an audit event. sys._getframe would raise one itself."""
    try:
        raise LookupError
    except LookupError as error:
        trace: Any = error.__traceback__
        return trace.tb_frame.f_back.f_back


def make_hook(key, descriptor, folder, hidden, patched, record_code):
    """The audit hook. It writes the plugin's records, and `suspect` ones on its own account."""
    sign = hmac.new(key, digestmod=hashlib.sha256)
    pid, main_thread = os.getpid(), threading.get_ident()
    count = 0
    seen = set()
    below = set()  # what called the judge is not the solution
    frame = caller()
    while frame is not None:
        below.add(id(frame))
        frame = frame.f_back

    def emit(record):
        nonlocal count
        if os.getpid() != pid:  # a fork has the key too; it may not speak
            return
        count += 1
        body = json.dumps({"n": count, **record})
        signature = sign.copy()
        signature.update(body.encode())
        os.write(descriptor, (signature.hexdigest() + " " + body + "\n").encode())

    def accuse(what):
        if what not in seen:
            seen.add(what)
            emit({"kind": "suspect", "what": what})

    def is_solution(path):
        """Patched, or made up while running: code that the solution compiles can't take another name."""
        return path in patched or (path.startswith("<") and path != OWN and not path.startswith("<frozen "))

    def asked_by_solution(through=()):
        """Did the solution itself do this, by way of no other code than these files'?"""
        frame = caller().f_back
        while frame is not None and frame.f_code.co_filename.endswith(through or ("\0",)):
            frame = frame.f_back
        return frame is not None and id(frame) not in below and is_solution(frame.f_code.co_filename)

    def solution_is_running():
        frame = caller().f_back
        while frame is not None and id(frame) not in below:
            if is_solution(frame.f_code.co_filename):
                return True
            frame = frame.f_back
        return False

    def hook(event, args):
        if event == "lathe.record":
            frame = caller()
            if frame.f_code is not record_code or threading.get_ident() != main_thread:
                accuse("a forged record")
            elif solution_is_running():
                accuse("a record that the solution called for")
            else:
                emit(args[0])
        elif event in LOOKS_INSIDE:
            if asked_by_solution(("/inspect.py",)):
                accuse(f"the solution calls {event}")
        elif event == "open":
            if not isinstance(args[0], (str, bytes, os.PathLike)):
                return
            path = os.fsdecode(args[0])
            path = path if path.startswith("/") else f"{folder}/{path}"
            is_secret = path in hidden or path.startswith("/proc/self/m")
            if is_secret and solution_is_running():
                accuse(f"the solution opens {path}")
        elif event == "compile":
            name = os.fsdecode(args[1]) if isinstance(args[1], (str, bytes)) else "<unknown>"
            if not is_solution(name) and asked_by_solution():
                accuse("the solution compiles code under another name")
        elif event in ("code.__new__", "marshal.loads"):
            if asked_by_solution():
                accuse(f"the solution makes code objects ({event})")
        elif event == "object.__setattr__":
            if args[1] in CHANGES_CODE and asked_by_solution():
                accuse(f"the solution sets {args[1]}")
        elif event.startswith("ctypes.") and asked_by_solution(("/ctypes/__init__.py", "/ctypes/util.py")):
            accuse("the solution uses ctypes")

    return hook


def functions_of(names):
    """Each function of those modules and their classes, with its code: what it was before others ran."""
    found = {}
    for name, module in list(sys.modules.items()):
        if not any(name == each or name.startswith(each) for each in names):
            continue
        for key, value in list(vars(module).items()):
            found[(name, key)] = identity(value)
            if isinstance(value, type) and value.__module__ == name:
                for inner, member in list(vars(value).items()):
                    found[(f"{name}.{key}", inner)] = identity(member)
    for key, value in vars(builtins).items():
        found[("builtins", key)] = identity(value)
    return found


def identity(value):
    if callable(value) or isinstance(value, (staticmethod, classmethod, property)):
        return id(value), id(getattr(value, "__code__", None))
    return None


MAY_CHANGE = {
    ("builtins", "_"), ("builtins", "@py_builtins"), ("_pytest.assertion.util", "_reprcompare"),
    ("_pytest.assertion.util", "_assertion_pass"), ("_pytest.assertion.util", "_config"),
}  # fmt: skip


class Plugin:
    """Tells the hook what became of each test, and what is no longer as it was."""

    def __init__(self, hidden):
        self.hidden = hidden
        self.before = {}
        self.plugins = set()
        self.ran = {}

    def record(self, **fields):
        sys.audit("lathe.record", fields)

    def check(self):
        now = functions_of(WATCHED)
        for key, was in self.before.items():
            if was is not None and now.get(key) != was and key not in MAY_CHANGE:
                self.record(kind="suspect", what=f"{'.'.join(key)} was replaced")
        for name in sorted(names_of(self.config.pluginmanager) - self.plugins):
            self.record(kind="suspect", what=f"a plugin was registered: {name}")

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config):
        self.config = config

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection(self, session):
        self.plugins = names_of(session.config.pluginmanager)
        self.before = functions_of(WATCHED)
        result = yield
        self.plugins |= {
            each for each in names_of(session.config.pluginmanager) if each.endswith("conftest.py")
        }
        self.check()
        return result

    def pytest_collectreport(self, report):
        if report.failed:
            self.record(kind="collect", name=report.nodeid, text=str(report.longrepr)[-MAX_TEXT:])

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item, nextitem):
        self.ran[item.nodeid] = {}
        self.check()
        result = yield
        self.check()
        stages = self.ran[item.nodeid]
        failed = [f"{stage}: {text}" for stage, text in stages.items() if text]
        outcome = "passed" if not failed and set(stages) == {"setup", "call", "teardown"} else "failed"
        if outcome == "passed" and not self.is_genuine(item):
            outcome = "failed"
            self.record(kind="suspect", what=f"{item.nodeid} is not the hidden test's function")
        self.record(kind="outcome", name=item.nodeid, outcome=outcome, text="\n".join(failed)[-MAX_TEXT:])
        return result

    def is_genuine(self, item):
        code = getattr(getattr(item, "obj", None), "__code__", None)
        code = code or getattr(getattr(item.obj, "__wrapped__", None), "__code__", None)
        return code is None or code.co_filename in self.hidden or str(item.path) not in self.hidden

    def watch(self, stage, item):
        """What a stage raised itself: no report is asked."""
        try:
            result = yield
        except BaseException as error:
            self.ran[item.nodeid][stage] = f"{type(error).__name__}: {error}"[:MAX_TEXT]
            raise
        self.ran[item.nodeid][stage] = ""
        return result

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item):
        return (yield from self.watch("setup", item))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item):
        return (yield from self.watch("call", item))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item, nextitem):
        return (yield from self.watch("teardown", item))


def equal_to_anything(folder, hidden):
    """The solution's classes whose == also says yes to what they can't be equal to. Asked when all tests are
    over, as it runs their code."""
    found = set()
    classes = [each for each in subclasses(object) if is_solutions(each, folder, hidden)]
    alive: dict = {}
    for each in gc.get_objects() if classes else ():
        alive.setdefault(type(each), each)
    for kind in classes:
        samples = [alive[kind]] if kind in alive else []
        for base in (object, int, str, float, list, dict, tuple, set):
            with contextlib.suppress(BaseException):
                samples.append(base.__new__(kind))
                break
        for sample in samples:
            for one, other in (object(), object()), (918273, 918274), ("probe", "other"), ([1], [2]):
                with contextlib.suppress(BaseException):
                    if sample == one and sample == other:
                        found.add(kind.__name__)
    return sorted(found)


def subclasses(kind):
    seen, open_ones = set(), [kind]
    while open_ones:
        for each in type.__subclasses__(open_ones.pop()):
            if each not in seen:
                seen.add(each)
                open_ones.append(each)
    return seen


def is_solutions(kind, folder, hidden):
    """Is the class's == a function of the solution's?"""
    for each in type.mro(kind) if kind is not type else ():
        code = getattr(each.__dict__.get("__eq__"), "__code__", None)
        if code is not None:
            return code.co_filename.startswith(folder.rstrip("/") + "/") and code.co_filename not in hidden
    return False


def names_of(manager):
    return {str(name) for name, plugin in manager.list_name_plugin() if plugin is not None}


def main(job):
    report = os.dup(1)
    os.set_inheritable(report, False)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(2, 1)  # what tests print is for people
    folder = job["folder"]
    hidden, patched = (frozenset(f"{folder}/{path}" for path in job[kind]) for kind in ("hidden", "patched"))
    # Before the solution can shadow them: what pytest, its assertions and most tests import later.
    for name in job["preload"]:
        importlib.import_module(name)
    # Plugins that happen to be installed cost seconds; a task that needs one names it: `-p pytest_asyncio`.
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    os.chdir(folder)
    sys.path.insert(0, folder)
    plugin = Plugin(hidden)
    key = bytes.fromhex(job.pop("key"))
    sys.addaudithook(make_hook(key, report, folder, hidden, patched, Plugin.record.__code__))
    del key
    started = time.monotonic()
    arguments = [
        "-q", "-p", "no:cacheprovider", "--rootdir", folder, "--no-header",
        "--tb=short", "-o", "addopts=", "--continue-on-collection-errors", *job["arguments"], *job["paths"],
    ]  # fmt: skip
    code = pytest.main(arguments, plugins=[plugin])
    for name in equal_to_anything(folder, hidden):
        plugin.record(kind="suspect", what=f"{name} is equal to anything")
    plugin.record(kind="end", code=int(code), seconds=round(time.monotonic() - started, 3))
    os._exit(0)


if __name__ == "__main__":
    main(json.loads(sys.stdin.buffer.read()))
