"""Runs a test suite once and writes down which functions each test enters, and calls that can be repeated.

Job on standard input: {"folder", "arguments", "sources", "paths", "out"}. The file `out` gets
{"functions": [[path, line], …], "reach": {test: [number of a function, …]}, "imported": [number, …],
 "calls": {test: [{"module", "function", "expression", "direct"}, …]}, "seconds": {test: s}}.
Only calls are traced, no lines: a suite takes about twice its time.
"""

import builtins
import json
import math
import operator
import os
import sys
import threading
import time
from typing import Any

import pytest

MAX_CALLS, MAX_CALLS_OF_ONE, MAX_TEXT = 40, 6, 120
PLAIN = {type(None), bool, int, str, bytes}
NAMED = {type, type(len)}
SIGNS = {"__lt__": "<", "__le__": "<=", "__gt__": ">", "__ge__": ">=", "__eq__": "==", "__ne__": "!=",
         "__add__": "+", "__sub__": "-", "__mul__": "*", "__contains__": "in"}  # fmt: skip


class NotPlain(Exception):
    """A value that no short expression makes."""


def literal(value: Any, depth: int = 0) -> str:
    """An expression that makes the value. Asks nothing of objects of unknown types."""
    kind: Any = type(value)
    if depth > 4:
        raise NotPlain
    if kind in PLAIN or (kind is float and math.isfinite(value)):
        text = repr(value)
    elif kind is list or kind is tuple or kind is set or kind is frozenset:
        if len(value) > 20:
            raise NotPlain
        items = ", ".join(literal(each, depth + 1) for each in value)
        if kind is tuple:
            text = f"({items},)" if len(value) == 1 else f"({items})"
        elif kind is set and value:
            text = f"{{{items}}}"
        else:
            text = f"[{items}]" if kind is list else f"{kind.__name__}([{items}])"
    elif kind is dict:
        if len(value) > 20:
            raise NotPlain
        items = ", ".join(
            f"{literal(key, depth + 1)}: {literal(each, depth + 1)}" for key, each in value.items()
        )
        text = f"{{{items}}}"
    elif kind is range:
        text = repr(value)
    elif kind in NAMED and getattr(builtins, name := getattr(value, "__name__", ""), None) is value:
        text = name
    elif kind in NAMED and getattr(operator, name := getattr(value, "__name__", ""), None) is value:
        text = f"operator.{name}"
    else:
        raise NotPlain
    if len(text) > MAX_TEXT:
        raise NotPlain
    return text


class Tracer:
    def __init__(self, folder, sources, tests):
        self.folder = folder + "/"
        self.sources, self.tests = ({f"{folder}/{path}" for path in paths} for paths in (sources, tests))
        self.codes = {}
        self.numbers = {}
        self.functions = []
        self.made = {}  # objects by id: how a test made them, as long as nothing was done with them
        self.calls = []
        self.counts = {}

    def begin(self):
        self.codes, self.calls, self.counts, self.made = {}, [], {}, {}
        threading.settrace(self.trace)
        sys.settrace(self.trace)

    def end(self):
        sys.settrace(None)
        threading.settrace(None)
        return sorted({number for code in self.codes.values() if (number := self.number(code)) is not None})

    def number(self, code):
        path = code.co_filename
        if path not in self.sources:
            return None
        key = (path[len(self.folder) :], code.co_firstlineno)
        if key not in self.numbers:
            self.numbers[key] = len(self.functions)
            self.functions.append(key)
        return self.numbers[key]

    def trace(self, frame, event, arg):
        code = frame.f_code
        self.codes[id(code)] = code
        if len(self.calls) < MAX_CALLS and code.co_filename in self.sources:
            count = self.counts.get(id(code), 0)
            if count < MAX_CALLS_OF_ONE:
                self.counts[id(code)] = count + 1
                try:
                    self.note(frame, code)
                except Exception:  # whatever an object of the tests does when it is looked at
                    pass

    def note(self, frame, code):
        name = code.co_qualname
        module = frame.f_globals.get("__name__", "")
        parts = name.split(".")
        special = parts[-1].startswith("__") and parts[-1].endswith("__")
        if (
            "<" in name
            or len(parts) > 2
            or any(part.startswith("_") for part in parts[: len(parts) - special])
        ):
            return
        direct = frame.f_back is not None and frame.f_back.f_code.co_filename in self.tests
        names = code.co_varnames[: code.co_argcount]
        values = frame.f_locals
        owner = values.get(names[0]) if names else None
        if not direct and len(parts) > 1:
            return
        call = {"module": module, "function": name, "expression": None, "direct": direct}
        self.calls.append(call)
        if len(parts) == 2 and names and names[0] == "self":
            if parts[1] == "__init__":
                kind = type(owner)
                if kind.__module__ == module and kind.__qualname__ == parts[0]:
                    call["expression"] = f"{parts[0]}({self.arguments(frame, code, 1)})"
                    self.made[id(owner)] = (owner, call["expression"])
                return
            receiver = self.made.pop(id(owner), (None, None))[1]
            if receiver is None:
                return
            if parts[1] in SIGNS:
                other = literal(values[names[1]])
                sides = (other, receiver) if parts[1] == "__contains__" else (receiver, other)
                call["expression"] = f"{sides[0]} {SIGNS[parts[1]]} {sides[1]}"
            elif special:
                call["expression"] = f"{receiver}.{parts[1]}({self.arguments(frame, code, 1)})"
            elif isinstance(vars(type(owner)).get(parts[1]), property):
                call["expression"] = f"{receiver}.{parts[1]}"
            else:
                call["expression"] = f"{receiver}.{parts[1]}({self.arguments(frame, code, 1)})"
        else:
            skipped = 1 if len(parts) == 2 and names and names[0] == "cls" else 0
            call["expression"] = f"{name}({self.arguments(frame, code, skipped)})"

    def arguments(self, frame, code, skipped):
        values, names = frame.f_locals, code.co_varnames
        count, keywords = code.co_argcount, code.co_kwonlyargcount
        found = self.function(frame, code)
        defaults = list(getattr(found, "__defaults__", None) or ())
        positional = list(names[skipped:count])
        rest = count + keywords
        extra = values[names[rest]] if code.co_flags & 4 else ()
        shown = [(name, values[name]) for name in positional]
        while shown and defaults and not extra and same(shown[-1][1], defaults[-1]):
            shown.pop()
            defaults.pop()
        texts = [literal(value) for _, value in shown] + [literal(value) for value in extra]
        known = getattr(found, "__kwdefaults__", None) or {}
        for name in names[count:rest]:
            if name not in known or not same(values[name], known[name]):
                texts.append(f"{name}={literal(values[name])}")
        if code.co_flags & 8:
            named = values[names[rest + bool(code.co_flags & 4)]]
            texts += [f"{name}={literal(value)}" for name, value in named.items() if name.isidentifier()]
        return ", ".join(texts)

    def function(self, frame, code):
        """The function of a frame, where its name leads to it."""
        value = frame.f_globals
        for part in code.co_qualname.split("."):
            value = value.get(part) if isinstance(value, dict) else vars(value).get(part)
        value = getattr(value, "__func__", value)
        return value if getattr(value, "__code__", None) is code else None


def same(value, default):
    return value is default or (type(value) is type(default) and type(value) in PLAIN and value == default)


class Plugin:
    def __init__(self, tracer):
        self.tracer = tracer
        self.imported = []
        self.reach = {}
        self.calls = {}
        self.seconds = {}

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection(self, session):
        self.tracer.begin()
        try:
            return (yield)
        finally:
            self.imported = self.tracer.end()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item, nextitem):
        started = time.perf_counter()
        self.tracer.begin()
        try:
            return (yield)
        finally:
            self.reach[item.nodeid] = self.tracer.end()
            self.calls[item.nodeid] = self.tracer.calls
            self.seconds[item.nodeid] = round(time.perf_counter() - started, 4)


def main(job):
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    os.chdir(job["folder"])
    sys.path.insert(0, job["folder"])
    sys.dont_write_bytecode = True
    os.dup2(2, 1)
    tracer = Tracer(job["folder"], job["sources"], job["paths"])
    plugin = Plugin(tracer)
    arguments = [
        "-q", "-p", "no:cacheprovider", "--rootdir", job["folder"], "--no-header", "--tb=no",
        "-o", "addopts=", "--continue-on-collection-errors", *job["arguments"], *job["paths"],
    ]  # fmt: skip
    pytest.main(arguments, plugins=[plugin])
    found = {
        "functions": tracer.functions, "reach": plugin.reach, "imported": plugin.imported,
        "calls": plugin.calls, "seconds": plugin.seconds,
    }  # fmt: skip
    with open(job["out"], "w") as out:
        json.dump(found, out)
    os._exit(0)


if __name__ == "__main__":
    main(json.loads(sys.stdin.buffer.read()))
