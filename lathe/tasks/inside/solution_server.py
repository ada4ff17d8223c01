"""Runs a solution for `python_judge` in a process of its own: calls come as lines of JSON, so do results.

Standard library only; the judge hands this source to Python with the workdir as its folder.
"""

import contextlib
import importlib
import json
import os
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

MAX_ITEMS = 100_000
PLAIN: Any = (list, tuple, set, frozenset)
VIEWS: Any = (type({}.keys()), type({}.values()), type({}.items()))
HEAP_TYPE = 1 << 9  # set for classes that Python code made: those stay objects, whatever they iterate over


class Objects:
    """What the judge can name: everything that is no plain data, by number."""

    def __init__(self):
        self.known = {}

    def encode(self, value):
        if value is None or type(value) in (bool, str, float):
            return value
        if isinstance(value, int):
            return {"t": "int", "v": hex(int.__index__(value))}
        if isinstance(value, float):  # a subclass's own comparisons stay here
            return float.__float__(value)
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, (bytes, bytearray)):
            return {"t": type(value).__name__, "v": bytes(value).hex()}
        if type(value) is complex:
            return {"t": "complex", "v": [value.real, value.imag]}
        if type(value) is range:
            return {"t": "range", "v": [value.start, value.stop, value.step]}
        for kind in PLAIN:
            if isinstance(value, kind):
                return {"t": kind.__name__, "v": [self.encode(each) for each in kind.__iter__(value)]}
        if isinstance(value, dict):
            return {"t": "dict", "v": [[self.encode(k), self.encode(v)] for k, v in dict.items(value)]}
        if isinstance(value, VIEWS) or (
            isinstance(value, Iterator) and not type(value).__flags__ & HEAP_TYPE
        ):
            return {"t": "iter", "v": [self.encode(each) for each in islice(value, MAX_ITEMS)]}
        number = len(self.known)
        self.known[number] = value
        return {"t": "object", "v": number, "n": getattr(type(value), "__name__", "?")}

    def decode(self, value):
        if not isinstance(value, dict):
            return value
        kind, inner = value["t"], value["v"]
        if kind == "object":
            return self.known[inner]
        if kind == "dict":
            return {self.decode(k): self.decode(v) for k, v in inner}
        if kind == "int":
            return int(inner, 16)
        if kind in ("bytes", "bytearray"):
            return (bytes if kind == "bytes" else bytearray).fromhex(inner)
        if kind == "complex":
            return complex(*inner)
        if kind == "range":
            return range(*inner)
        made: Any = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "iter": iter}[kind]
        return made([self.decode(each) for each in inner])


def answer(objects, request):
    what = request["do"]
    if what == "import":
        return {"value": objects.encode(importlib.import_module(request["name"]))}
    target = objects.known[request["of"]]
    if what == "get":
        return {"value": objects.encode(getattr(target, request["name"]))}
    args = [objects.decode(each) for each in request["args"]]
    kwargs = {name: objects.decode(each) for name, each in request["kwargs"].items()}
    if what == "call":
        value = objects.encode(target(*args, **kwargs))
        changed = {}
        for place, (arg, sent) in enumerate(zip(args, request["args"], strict=True)):
            if isinstance(arg, (list, dict, set, bytearray)) and (now := objects.encode(arg)) != sent:
                changed[place] = now
        return {"value": value, "changed": changed}
    done: Any = {"len": len, "str": str, "repr": repr, "iter": list, "item": lambda it, key: it[key]}[what]
    return {"value": objects.encode(done(target, *args))}


def main():
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    sys.path.insert(0, str(Path.cwd()))
    objects = Objects()
    for line in requests:
        try:
            reply = answer(objects, json.loads(line))
        except BaseException as error:
            names = [each.__name__ for each in type(error).__mro__]
            text = ""
            with contextlib.suppress(BaseException):
                text = str(error)[:2000]
            reply = {"error": names, "text": text}
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()


main()
