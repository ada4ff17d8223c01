"""Solutions that solve nothing and try to be paid: what a task's tests and judge must refuse.

A few generic ones, of each family that `docs/tasks.md` lists; the judges' own tests try many more.
"""

from __future__ import annotations

YES = (
    "class Yes:\n    def __eq__(self, other):\n        return True\n    def __ne__(self, other):\n        return False\n"
    "    def __bool__(self):\n        return True\n    def __iter__(self):\n        return iter(())\n    __hash__ = None\n"
)
READS_TESTS = (
    "import ast, glob, os\n\n\ndef {name}(*args, **kwargs):\n"
    "    for path in glob.glob('**/*.py', recursive=True) + glob.glob('/tmp/**/*.py', recursive=True):\n"
    "        for node in ast.walk(ast.parse(open(path).read())):\n"
    "            if isinstance(node, ast.Compare) and isinstance(node.left, ast.Call):\n"
    "                if ast.unparse(node.left.func) == '{name}':\n"
    "                    return ast.literal_eval(node.comparators[0])\n"
)
LOOKS_AT_CALLER = (
    "import sys\n\n\ndef {name}(*args, **kwargs):\n    frame = sys._getframe(1)\n    while frame:\n"
    "        for value in list(frame.f_locals.values()):\n            if type(value) is list and len(value) == 1:\n"
    "                return value[0]\n        for name in ('wanted', 'expected', 'reply', 'results'):\n"
    "            if name in frame.f_locals:\n                return frame.f_locals[name]\n        frame = frame.f_back\n"
)
FORGES = (
    "import json, os\n\nfor number in range(1, 32):\n    try:\n"
    "        os.write(number, json.dumps({{'test_{name}.py::test_%d' % place: None for place in range(1, 40)}}).encode())\n"
    "    except OSError:\n        pass\n\n\ndef {name}(*args, **kwargs):\n    return None\n"
)
CHEATS = {
    "ends the process at import": "import os\nos._exit(0)\n",
    "ends the process in the call": "import os\n\n\ndef {name}(*args, **kwargs):\n    os._exit(0)\n",
    "raises SystemExit": "def {name}(*args, **kwargs):\n    raise SystemExit(0)\n",
    "is equal to everything": YES + "\n\ndef {name}(*args, **kwargs):\n    return Yes()\n",
    "reads the hidden tests": READS_TESTS,
    "looks at its caller": LOOKS_AT_CALLER,
    "forges a report": FORGES,
    "makes assertions harmless": (
        "import builtins\n\nbuiltins.AssertionError = type('Never', (Exception,), {{}})\n"
        "builtins.all = builtins.any = lambda *_: True\n\n\ndef {name}(*args, **kwargs):\n    return None\n"
    ),
}


def cheats_for(name: str) -> dict[str, str]:
    """The attacks as a solution's text, for a task that asks for this function."""
    return {
        what: text.replace("{name}", name).replace("{{", "{").replace("}}", "}")
        for what, text in CHEATS.items()
    }


def stubs_for(name: str, commonest: str | None, echoes: bool = True) -> dict[str, str]:
    """Solutions that compute nothing: nothing, the commonest of the wanted values, the first argument."""
    head = f"def {name}(*args, **kwargs):\n    "
    found = {"returns nothing": f"{head}return None\n"}
    if commonest not in (None, "None"):
        found["returns the commonest value"] = f"{head}return {commonest}\n"
    if echoes:
        found["returns its first argument"] = f"{head}return args[0] if args else None\n"
    return found
