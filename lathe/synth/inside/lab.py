"""Runs programs on inputs, each program in a fork of its own, so that an endless loop or an exit in one is
nothing to the others.

The job comes as JSON on standard input; one line of JSON for each program goes to standard output. In mode
"values" it holds an outcome for each input, in mode "compare" one letter: 1 as wanted, 0 not, t out of time,
m never begun. Times are of the processor, so that a busy machine changes nothing.
"""

import builtins
import contextlib
import json
import os
import resource
import select
import signal
import sys
import time
import types
from collections.abc import Iterator
from itertools import islice
from typing import Any

MAX_ITEMS = 2000
MAX_TEXT = 4000
MAX_SLOW = 8  # calls of a reference that are out of time
SCALARS: Any = (int, float, complex, bytes, bytearray)
CONTAINERS: Any = (list, tuple, set, frozenset)
VIEWS: Any = (type({}.keys()), type({}.values()), type({}.items()))


class NotPlain(Exception):
    """A value that is no plain data."""


class OutOfTime(BaseException):
    """Nothing that a program catches with `except Exception`."""


def plain(value, depth=0):
    """The value made of Python's own types alone, as the judge's processes hand it over."""
    if depth > 30:
        raise NotPlain("nested too deeply")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    for kind in SCALARS:
        if isinstance(value, kind):
            return kind(value)
    if type(value) is range:
        return value
    if isinstance(value, dict):
        return {plain(key, depth + 1): plain(each, depth + 1) for key, each in dict.items(value)}
    for kind in CONTAINERS:
        if isinstance(value, kind):
            if len(value) > MAX_ITEMS:
                raise NotPlain("too long")
            return kind([plain(each, depth + 1) for each in kind.__iter__(value)])
    raise NotPlain(type(value).__name__)


def is_lazy(value):
    return isinstance(value, VIEWS) or (isinstance(value, Iterator) and not type(value).__flags__ & (1 << 9))


def text_of(value):
    """Python source for a plain value: the same text for the same value, whatever the hash seed."""
    if isinstance(value, float):
        return repr(value) if value - value == 0 else f"float({str(value)!r})"
    if isinstance(value, complex):
        return f"complex({text_of(value.real)}, {text_of(value.imag)})"
    if isinstance(value, (set, frozenset)):
        inner = ", ".join(sorted(map(text_of, value)))
        if isinstance(value, set):
            return "{" + inner + "}" if value else "set()"
        return "frozenset({" + inner + "})" if value else "frozenset()"
    if isinstance(value, list):
        return "[" + ", ".join(map(text_of, value)) + "]"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(text_of, value)) + ("," if len(value) == 1 else "") + ")"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{text_of(key)}: {text_of(each)}" for key, each in value.items()) + "}"
    return repr(value)


def names_of(error):
    """The exception that the judge would raise in its place, then the names of all its classes."""
    names = [each.__name__ for each in type(error).__mro__]
    for name in names:
        kind = getattr(builtins, name, None)
        if isinstance(kind, type) and issubclass(kind, Exception) and kind is not Exception:
            try:
                kind("")
            except TypeError:
                continue
            return [name, *names]
    return [None, *names]


def call(function, given):
    """What became of a call: {"value", "lazy", "after"}, {"raises"}, or {"skip"}."""
    args, kwargs = eval(given)
    before = [text_of(each) if isinstance(each, (list, dict, set, bytearray)) else None for each in args]
    try:
        value = function(*args, **kwargs)
        lazy = is_lazy(value)
        if lazy:
            value = list(islice(value, MAX_ITEMS))
    except (RecursionError, MemoryError) as error:
        return {"skip": type(error).__name__}, None
    except Exception as error:
        return {"raises": names_of(error)}, None
    outcome = {}
    try:
        value = plain(value)
        outcome["value"] = text_of(value)
        if lazy:
            outcome["lazy"] = True
        after = {}
        for place, was in enumerate(before):
            if was is not None and (now := text_of(plain(args[place]))) != was:
                after[str(place)] = now
        if after:
            outcome["after"] = after
    except (NotPlain, RecursionError, ValueError, TypeError) as error:
        return {"skip": f"gives a {error}" if isinstance(error, NotPlain) else type(error).__name__}, None
    if len(outcome["value"]) > MAX_TEXT:
        return {"skip": "gives too much"}, None
    return outcome, value


def is_as_wanted(same, wanted, outcome, value):
    """Would a test with this outcome pass?"""
    if "raises" in wanted:
        return "raises" in outcome and wanted["raises"][0] in outcome["raises"][1:]
    if "value" not in outcome or wanted.get("after", {}).keys() != outcome.get("after", {}).keys():
        return False
    if wanted["value"] != outcome["value"] and not same(eval(wanted["value"]), value):
        return False
    return all(now == outcome["after"][place] for place, now in wanted.get("after", {}).items())


def limit(job):
    resource.setrlimit(resource.RLIMIT_AS, (job["memory_bytes"],) * 2)
    cpu = int(job["program_s"]) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    def stop(number, frame):
        raise OutOfTime

    signal.signal(signal.SIGVTALRM, stop)


def load(source, name):
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    exec(compile(source, "solution.py", "exec", dont_inherit=True), module.__dict__)
    return getattr(module, name)


def run(program, job, write):
    """In the fork."""
    limit(job)
    function = load(program, job["name"])
    wanted = job.get("wanted")
    num_slow = 0
    for place, given in enumerate(job["inputs"]):
        # Again and again, for a program that catches everything.
        signal.setitimer(signal.ITIMER_VIRTUAL, job["call_s"], 0.05)
        try:
            outcome, value = call(function, given)
            out_of_time = False
        except OutOfTime:
            out_of_time = True
        try:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        except OutOfTime:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        if wanted is None:
            write(json.dumps({"skip": "takes too long"} if out_of_time else outcome) + "\n")
            num_slow += out_of_time
            if num_slow == MAX_SLOW:
                write((json.dumps({"skip": "takes too long"}) + "\n") * (len(job["inputs"]) - place - 1))
                return
        elif out_of_time:
            write("t")
            return
        else:
            good = is_as_wanted(job["compare"], wanted[place], outcome, value)
            write("1" if good else "0")
            if not good and job.get("first_only"):
                return


def run_forked(program, job):
    """All that the program's fork wrote before it ended, or was ended."""
    end, other = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(end)
            run(program, job, lambda text: os.write(other, text.encode("utf-8", "backslashreplace")))
        except BaseException:
            pass
        os._exit(0)
    os.close(other)
    deadline = time.monotonic() + job["deadline_s"]
    parts = []
    while (left := deadline - time.monotonic()) > 0 and select.select([end], [], [], left)[0]:
        data = os.read(end, 1 << 16)
        if not data:
            break
        parts.append(data)
    os.close(end)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return b"".join(parts).decode()


def main(job):
    space: dict = {}
    exec(job["same"], space)
    job["compare"] = space["same"]
    report = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nowhere, number)
    for name in job["preload"]:
        with contextlib.suppress(ImportError):
            __import__(name)
    for program in job["programs"]:
        text = run_forked(program, job)
        report.write(json.dumps(text) + "\n")
        report.flush()


if __name__ == "__main__":
    main(json.loads(sys.stdin.buffer.read()))
