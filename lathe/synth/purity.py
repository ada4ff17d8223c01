"""What a self-contained function may use: no clock, no file, no network, no chance, no identity."""

from __future__ import annotations

import ast
import builtins

MODULES = frozenset({
    "abc", "array", "ast", "base64", "binascii", "bisect", "calendar", "cmath", "codecs", "collections",
    "collections.abc", "colorsys", "contextlib", "copy", "csv", "dataclasses", "datetime", "decimal",
    "difflib", "enum", "fnmatch", "fractions", "functools", "hashlib", "heapq", "html", "html.entities",
    "ipaddress", "itertools", "json", "keyword", "math", "ntpath", "numbers", "operator", "posixpath",
    "quopri", "re", "shlex", "statistics", "string", "stringprep", "struct", "textwrap", "token", "types",
    "typing", "unicodedata", "urllib.parse", "zlib", "_collections_abc",
})  # fmt: skip
"""Whose functions give the same for the same arguments, but for forbidden ones."""

ATTRIBUTES = {
    "sys": {"maxsize", "maxunicode", "float_info", "int_info", "byteorder"},
    "os": {"fspath", "PathLike", "sep", "path", "linesep"},
    "io": {"StringIO", "BytesIO"},
    "warnings": {"warn"},
}
"""Of other modules, what may be used."""

FORBIDDEN_NAMES = frozenset({
    "open", "input", "print", "exec", "eval", "compile", "__import__", "globals", "locals", "vars", "id",
    "hash", "breakpoint", "exit", "quit", "help", "memoryview", "__file__", "__builtins__", "__name__",
    "__loader__",
})  # fmt: skip
FORBIDDEN_ATTRIBUTES = frozenset({
    "now", "today", "utcnow", "fromtimestamp", "localtime", "getcwd", "exists", "isfile", "isdir", "realpath",
    "abspath", "expanduser", "expandvars", "getsize", "getmtime", "islink", "lexists", "ismount", "samefile",
    "urandom", "environ", "__subclasses__", "__globals__", "__code__", "f_back", "_getframe", "gethostname",
})  # fmt: skip
BUILTINS = frozenset(dir(builtins))


def impurity(node: ast.AST) -> str | None:
    """The first thing in a piece of a program that depends on more than its arguments, or None."""
    for each in ast.walk(node):
        match each:
            case ast.Name(id=name) if name in FORBIDDEN_NAMES:
                return f"uses {name}"
            case ast.Attribute(attr=name) if name in FORBIDDEN_ATTRIBUTES:
                return f"uses .{name}"
            case ast.Attribute(value=ast.Name(id=module), attr=name) if module in ATTRIBUTES:
                if name not in ATTRIBUTES[module]:
                    return f"uses {module}.{name}"
            case ast.Global():
                return "changes a global variable"
            case ast.AsyncFunctionDef() | ast.Await():
                return "is asynchronous"
    return None


def is_allowed(module: str, name: str | None = None) -> bool:
    """May `import module`, or `from module import name`, stand in a self-contained program?"""
    if module in ("os.path", "path"):
        return name not in FORBIDDEN_ATTRIBUTES
    if module in ATTRIBUTES and module not in MODULES:
        return name is None or name in ATTRIBUTES[module]
    return module in MODULES and name not in FORBIDDEN_ATTRIBUTES
