"""Runs hidden tests with pytest, and reports on each so that the tested code can't easily speak for it.

Tested code shares this interpreter, so nothing here is beyond a program that tries hard. What is done:
Each record is signed with a key that only the audit hook below holds: hooks can't be removed or listed
(PEP 578), and what could reach into one (gc, frames, ctypes, /proc/self/mem) is seen by it first. A record is
only signed when called by this file's own plugin under pytest's own frames. A test's outcome is what its call
raised, not what a report says. pytest's and unittest's own functions are compared, before and after each
test, with what they were before any other code ran.

The job comes as JSON on standard input, behind this source. Records go to a copy of the standard output.
"""

import ast
import builtins
import ctypes
import hashlib
import hmac
import importlib
import json
import os
import sys
import threading
import time
import types
import warnings
from typing import Any

import pytest
from _pytest.assertion import rewrite

PR_SET_DUMPABLE = 4

WATCHED = ("_pytest.", "pluggy", "unittest.case", "unittest.suite", "unittest.loader", "pytest")
LOOKS_INSIDE = {
    "gc.get_objects", "gc.get_referrers", "gc.get_referents", "sys._getframe", "sys._current_frames",
    "sys._current_exceptions", "sys.settrace", "sys.setprofile", "sys.addaudithook",
}  # fmt: skip
READS = {"tb_frame", "gi_frame", "cr_frame", "ag_frame", "f_code", "__code__"}
# Modules that hand out the frames that they look at, and those that look further only when asked to.
LOOKERS = ("/inspect.py", "/bdb.py", "/pdb.py", "/trace.py", "/cgitb.py", "/asyncio/base_tasks.py",
           "/_pytest/_code/code.py", "/dis.py")  # fmt: skip
WALKERS = ("/traceback.py",)
EVENTS = {
    "lathe.record", "lathe.code", "lathe.changes", "open", "compile", "code.__new__", "marshal.loads",
    "object.__setattr__", "object.__getattr__", "ctypes.addressof", "ctypes.call_function", "ctypes.cdata",
    "ctypes.cdata/buffer", "ctypes.create_string_buffer", "ctypes.create_unicode_buffer",
    "ctypes.dlopen", "ctypes.dlsym",
    "ctypes.dlsym/handle", "ctypes.get_errno", "ctypes.set_errno", "ctypes.string_at", "ctypes.wstring_at",
    "ctypes.set_exception", "ctypes.seh_exception", "ctypes.PyObj_FromPtr",
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


def make_hook(key, descriptor, folder, hidden, patched, record_code, codes):
    """The audit hook. It writes the plugin's records, and `suspect` ones on its own account. It alone holds
    the hidden tests' `codes`, until pytest imports them."""
    sign = hmac.new(key, digestmod=hashlib.sha256)
    pid, main_thread = os.getpid(), threading.get_ident()
    get_ident = threading.get_ident
    count = 0
    changes = 0  # of functions' code, by anybody
    seen = set()
    below = set()  # what called the judge is not the solution
    frame = caller()
    while frame is not None:
        below.add(id(frame))
        frame = frame.f_back
    looking = set()
    events = EVENTS | LOOKS_INSIDE

    def emit(record):
        nonlocal count
        if os.getpid() != pid:  # a fork has the key, too: it may accuse itself, and say nothing else
            record = {"n": 0, **record} if record["kind"] == "suspect" else None
        else:
            count += 1
            record = {"n": count, **record}
        if record is None:
            return
        body = json.dumps(record)
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
        frame = caller().f_back.f_back  # look's and the hook's own
        while frame is not None and frame.f_code.co_filename.endswith(through or ("\0",)):
            frame = frame.f_back
        return frame is not None and id(frame) not in below and is_solution(frame.f_code.co_filename)

    def walks_traceback():
        frame = caller().f_back.f_back
        return frame.f_code.co_name == "walk_tb" and is_solution(frame.f_back.f_code.co_filename)

    def is_hidden_test(function):
        own = getattr(function, "__globals__", {}).get("__file__")
        return own in hidden and getattr(function, "__name__", "").startswith("test")

    def solution_is_running():
        frame = caller().f_back
        while frame is not None and id(frame) not in below:
            if is_solution(frame.f_code.co_filename):
                return True
            frame = frame.f_back
        return False

    def hook(event, args):
        if event not in events or (event == "object.__getattr__" and args[1] not in READS):
            return
        if event == "object.__getattr__" and args[1] == "__code__" and not is_hidden_test(args[0]):
            return  # most of all events: the judge compares thousands of functions
        here = get_ident()
        if here in looking:  # caller() reads tb_frame, which is an event itself
            return
        looking.add(here)
        try:
            look(event, args)
        finally:
            looking.discard(here)

    def look(event, args):
        nonlocal changes
        if event == "lathe.changes":
            args[0].append(changes)
        elif event == "object.__getattr__":
            if args[1] != "__code__":
                if asked_by_solution(LOOKERS) or walks_traceback():
                    accuse(f"the solution reads {args[1]}")
            elif solution_is_running():
                accuse("the solution reads a hidden test's code")
        elif event == "lathe.code":
            if solution_is_running():
                accuse("the solution asks for a hidden test's code")
            elif args[0] in codes:
                args[1].append(codes.pop(args[0]))
        elif event == "lathe.record":
            frame = caller().f_back
            if frame.f_code is not record_code or threading.get_ident() != main_thread:
                accuse("a forged record")
            elif solution_is_running():
                accuse("a record that the solution called for")
            else:
                emit(args[0])
        elif event in LOOKS_INSIDE:
            if asked_by_solution(LOOKERS) or asked_by_solution(WALKERS):
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
            changes += args[1] == "__code__"
            if args[1] in CHANGES_CODE and asked_by_solution():
                accuse(f"the solution sets {args[1]}")
        elif asked_by_solution(("/ctypes/__init__.py", "/ctypes/util.py")):
            accuse("the solution uses ctypes")

    return hook


def functions_of(names):
    """Where each function of those modules and their classes stands, and what it was before others ran:
    (label, namespace, key, value, code). Namespaces are the live ones; to look at them costs little."""
    found = []
    for name, module in list(sys.modules.items()):
        if not any(name == each or name.startswith(each) for each in names):
            continue
        found.append((("sys.modules", name), sys.modules, name, module, None))
        for key, value in list(vars(module).items()):
            add_function(found, (name, key), vars(module), key, value)
            if isinstance(value, type) and value.__module__ == name:
                for inner, member in list(vars(value).items()):
                    add_function(found, (f"{name}.{key}", inner), vars(value), inner, member)
    for key, value in list(vars(builtins).items()):
        add_function(found, ("builtins", key), vars(builtins), key, value)
    return found


def add_function(found, label, namespace, key, value):
    if label not in MAY_CHANGE and (
        callable(value) or isinstance(value, (staticmethod, classmethod, property))
    ):
        found.append((label, namespace, key, value, getattr(value, "__code__", None)))


MAY_CHANGE = {
    ("builtins", "_"), ("builtins", "@py_builtins"), ("_pytest.assertion.util", "_reprcompare"),
    ("_pytest.assertion.util", "_assertion_pass"), ("_pytest.assertion.util", "_config"),
}  # fmt: skip


class Plugin:
    """Tells the hook what became of each test, and what is no longer as it was."""

    def __init__(self, hidden):
        self.hidden = hidden
        self.before = []
        self.plugins = set()
        self.ran = {}

    def record(self, **fields):
        sys.audit("lathe.record", fields)

    def check(self, audit=sys.audit):
        """Codes are read only when somebody has set one: each reading is an event, one of thousands."""
        told: list = []
        audit("lathe.changes", told)
        has_changes = told != [0]
        for label, namespace, key, value, code in self.before:
            now = namespace.get(key)
            if now is not value or (has_changes and getattr(now, "__code__", None) is not code):
                self.record(kind="suspect", what=f"{'.'.join(label)} was replaced")
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
        failed = [each for each in failed if not each.startswith("report")] or failed
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

    def pytest_runtest_logreport(self, report):
        """unittest's failures and subtests' are no exceptions of the call: they stand in reports alone."""
        if report.outcome != "passed" or getattr(report, "wasxfail", None) is not None:
            stages = self.ran.setdefault(report.nodeid, {})
            stages["report"] = stages.get("report") or f"{report.outcome}: {report.longrepr}"[-MAX_TEXT:]

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


def other(value, depth=0):
    """Something of the same kind that is not equal to a plain value."""
    kind = type(value)
    if kind is bool:
        return not value
    if kind in (int, float):
        return value + 1 + abs(value) // 2
    if kind is str:
        return value + "~"
    if kind is bytes:
        return value + b"~"
    if kind in (list, tuple, set, frozenset) and value and depth < 20:
        return kind([other(each, depth + 1) for each in value])
    if kind is dict and value and depth < 20:
        return {key: other(each, depth + 1) for key, each in value.items()}
    return object()


def make_probe():
    """The functions that stand in hidden tests (see `controls.py`). Nothing that others can reach is
    looked up when they run."""

    def probe(found, left, right, order, *known, other=other, Error=Exception):
        answers = set(known)
        while order > 1:  # 1: are they equal? 0: is one equal to something else?
            try:
                if order & 1:
                    answers.add(left == right)
                elif left == other(right) or other(left) == right:
                    found.append("equal to something else")
            except Error:
                pass
            order >>= 1
        if len(answers) > 1:
            found.append("now equal, now not")

    def end(found, spoiled, Error=AssertionError):
        if spoiled and not found:
            raise Error("spoiled")

    def equal(found, left, right, order):
        if order & 1:
            probe(found, left, right, order)
            return left == right
        result = left == right
        probe(found, left, right, order, *([result] if result is True or result is False else []))
        return result

    def within(found, left, right, order, plain=(list, tuple, set, frozenset), Error=Exception):
        result = left in right
        try:
            if left == object() or (type(right) in plain and object() in right):
                found.append("equal to something else")
        except Error:
            pass
        return result

    return {"<lathe probe>": probe, "<lathe end>": end, "<lathe equal>": equal, "<lathe within>": within}


def compiled(path, text, functions):
    """A hidden test's code, its assertions rewritten and its probes in place."""
    tree = ast.parse(text, path)
    rewrite.rewrite_asserts(tree, text.encode(), path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        return implanted(compile(tree, path, "exec", dont_inherit=True), functions)


def implanted(code, functions):
    def put(value):
        if isinstance(value, types.CodeType):
            return implanted(value, functions)
        return functions.get(value, value) if type(value) is str else value

    return code.replace(co_consts=tuple(map(put, code.co_consts)))


def serve_hidden_tests(paths, audit=sys.audit):
    """pytest imports hidden tests from memory: no file has them."""
    real_rewrite, real_read = rewrite._rewrite_test, rewrite._read_pyc

    def _rewrite_test(fn, config):
        found: list = []
        audit("lathe.code", str(fn), found)
        return (fn.stat(), found[0]) if found else real_rewrite(fn, config)

    def _read_pyc(source, *args, **kwargs):
        return None if str(source) in paths else real_read(source, *args, **kwargs)

    rewrite._rewrite_test, rewrite._read_pyc = _rewrite_test, _read_pyc


def names_of(manager):
    return {str(name) for name, plugin in manager.list_name_plugin() if plugin is not None}


def main(job):
    # Programs that the solution starts may not look into this process by way of /proc, nor trace it.
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
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
    sys.dont_write_bytecode = True
    plugin = Plugin(hidden)
    key = bytes.fromhex(job.pop("key"))
    functions = make_probe()
    codes = {f"{folder}/{path}": compiled(f"{folder}/{path}", text, functions)
             for path, text in job.pop("tests").items()}  # fmt: skip
    serve_hidden_tests(frozenset(codes))
    sys.addaudithook(make_hook(key, report, folder, hidden, patched, Plugin.record.__code__, codes))
    del key, codes, functions
    started = time.monotonic()
    arguments = [
        "-q", "-p", "no:cacheprovider", "--rootdir", folder, "--no-header",
        "--tb=short", "-o", "addopts=", "--continue-on-collection-errors", *job["arguments"], *job["paths"],
    ]  # fmt: skip
    code = pytest.main(arguments, plugins=[plugin])
    plugin.record(kind="end", code=int(code), seconds=round(time.monotonic() - started, 3))
    os._exit(0)


if __name__ == "__main__":
    main(json.loads(sys.stdin.buffer.read()))
