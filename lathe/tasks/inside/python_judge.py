"""Runs hidden tests against a solution that lives in another process, and says what became of each.

The solution never shares an interpreter with the tests: it can't see them, patch what compares, or end the
process that judges. What comes from it is plain data, made anew here, so that no `==` of its own is asked.

Standard library only. The job comes as JSON on standard input, behind this source; the results go to the
standard output, which the solution doesn't have.
"""

import builtins
import ctypes
import importlib.abc
import importlib.util
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

PR_SET_DUMPABLE = 4
MAX_ERROR_CHARS = 2000


class SolutionDied(Exception):
    """The solution's process ended in the middle of a call."""


class SolutionError(Exception):
    """The solution raised an exception that is not one of Python's own."""


class Solution:
    """The process that runs the solution. It is started again after it has died."""

    def __init__(self, server, folder):
        self._argv = [sys.executable, "-I", "-B", "-c", server]
        self._folder = folder
        self._process: Any = None

    def ask(self, **request):
        if self._process is None:
            self._process = subprocess.Popen(
                self._argv,
                cwd=self._folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            self.stop()
            raise SolutionDied("the solution's process ended")
        reply = json.loads(line)
        if "error" in reply:
            raise _exception(reply["error"], reply["text"])
        return reply

    def stop(self):
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _exception(names, text):
    """The first of Python's own exceptions among an exception's classes."""
    for name in names:
        kind = getattr(builtins, str(name), None)
        if isinstance(kind, type) and issubclass(kind, Exception) and kind is not Exception:
            try:
                return kind(text)
            except TypeError:  # some want more than a text
                continue
    return SolutionError(f"{names[0]}: {text}")


class Remote:
    """Something of the solution's that is no plain data: a module, a function, a class, an instance."""

    def __init__(self, solution, number, name):
        self.__dict__.update(_solution=solution, _number=number, _name=name)

    def _ask(self, do, **request):
        reply = self._solution.ask(do=do, of=self._number, **request)
        return reply, decode(self._solution, reply["value"])

    def __getattr__(self, name):
        if name.startswith("__") and name != "__name__":
            raise AttributeError(name)
        return self._ask("get", name=name)[1]

    def __call__(self, *args, **kwargs):
        sent = [encode(each) for each in args]
        named = {name: encode(each) for name, each in kwargs.items()}
        reply, value = self._ask("call", args=sent, kwargs=named)
        for place, now in reply.get("changed", {}).items():
            _refill(args[int(place)], decode(self._solution, now))
        return value

    def __len__(self):
        return self._ask("len", args=[], kwargs={})[1]

    def __iter__(self):
        return iter(self._ask("iter", args=[], kwargs={})[1])

    def __getitem__(self, key):
        return self._ask("item", args=[encode(key)], kwargs={})[1]

    def __str__(self):
        return self._ask("str", args=[], kwargs={})[1]

    def __repr__(self):
        return self._ask("repr", args=[], kwargs={})[1]

    def __eq__(self, other):
        raise TypeError(f"a {self._name} of the solution is compared: compare plain data")

    __hash__ = None  # type: ignore[assignment]


def _refill(old, new):
    """Make a list, dict, set or bytearray what the solution made of it."""
    old.clear()
    (old.extend if isinstance(old, (list, bytearray)) else old.update)(new)


def encode(value):
    if value is None or type(value) in (bool, str, float):
        return value
    if isinstance(value, Remote):
        return {"t": "object", "v": value._number}
    if isinstance(value, int):
        return {"t": "int", "v": hex(value)}
    if isinstance(value, (bytes, bytearray)):
        return {"t": type(value).__name__, "v": value.hex()}
    if isinstance(value, complex):
        return {"t": "complex", "v": [value.real, value.imag]}
    if isinstance(value, range):
        return {"t": "range", "v": [value.start, value.stop, value.step]}
    if isinstance(value, dict):
        return {"t": "dict", "v": [[encode(k), encode(v)] for k, v in value.items()]}
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return {"t": kind.__name__, "v": [encode(each) for each in value]}
    raise TypeError(f"a {type(value).__name__} can't be handed to the solution: it is no plain data")


def decode(solution, value):
    if not isinstance(value, dict):
        return value
    kind, inner = value["t"], value["v"]
    if kind == "object":
        return Remote(solution, inner, value["n"])
    if kind == "dict":
        return {decode(solution, k): decode(solution, v) for k, v in inner}
    if kind == "int":
        return int(inner, 16)
    if kind in ("bytes", "bytearray"):
        return (bytes if kind == "bytes" else bytearray).fromhex(inner)
    if kind == "complex":
        return complex(*inner)
    if kind == "range":
        return range(*inner)
    made: Any = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "iter": iter}[kind]
    return made([decode(solution, each) for each in inner])


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports in tests: other hidden files by their text, and the solution's modules from afar."""

    def __init__(self, files, solution, folder):
        self._files = {path[:-3].replace("/", "."): (path, text) for path, text in files.items()}
        self._solution = solution
        self._names = {each.name.removesuffix(".py") for each in Path(folder).iterdir()} - self._files.keys()

    def find_spec(self, name, path=None, target=None):
        if name in self._files or name.split(".")[0] in self._names:
            return importlib.util.spec_from_loader(name, self, is_package=name not in self._files)
        return None

    def create_module(self, spec):
        if spec.name in self._files:
            return None
        self._solution.ask(do="import", name=spec.name.split(".")[0])
        return decode(self._solution, self._solution.ask(do="import", name=spec.name)["value"])

    def exec_module(self, module):
        if not isinstance(module, Remote):
            path, text = self._files[module.__name__]
            exec(compile(text, path, "exec"), module.__dict__)


def run_test(test):
    """None when it passed, else what went wrong."""
    try:
        test()
    except BaseException as error:
        text = "".join(traceback.format_exception(error, limit=-3)).strip()
        return text[-MAX_ERROR_CHARS:] or type(error).__name__
    return None


def run_file(path, text, results):
    """Every function test_* of a file. One without any is a test itself, passed when it runs to its end."""
    space = {"__name__": path[:-3].replace("/", "."), "__file__": path}
    failed = run_test(lambda: exec(compile(text, path, "exec"), space))
    tests = {name: each for name, each in space.items() if name.startswith("test_") and callable(each)}
    if failed is not None or not tests:
        results[path] = failed
        return
    for name, test in tests.items():
        results[f"{path}::{name}"] = run_test(test)


def main(job):
    # Other processes of this user may not look into this one, nor take its files by way of /proc.
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    report = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    solution = Solution(job["server"], job["folder"])
    sys.meta_path.insert(0, Finder(job["files"], solution, job["folder"]))
    results: dict = {}
    for path, text in job["files"].items():
        if path.split("/")[-1].startswith("test_"):
            run_file(path, text, results)
    solution.stop()
    os.write(report, json.dumps(results).encode())


main(json.loads(sys.stdin.buffer.read()))
