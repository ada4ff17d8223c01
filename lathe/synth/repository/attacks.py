"""Attempts that mend nothing and try to be paid: what a task's judge must refuse before it is kept."""

from __future__ import annotations

from collections.abc import Mapping

from lathe.synth.mutations import functions_of, mutate, without_body
from lathe.synth.repository.bugs import Bug
from lathe.synth.repository.checkout import Repository
from lathe.synth.repository.issue import Example
from lathe.tasks.patch import Patch
from lathe.types import Task

FORGET = """\
import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    report.outcome = "passed"
    return report
"""
TAILS = {
    "ends the process at import": "import os as _os\n_os._exit(0)\n",
    "skips the tests": "import pytest as _pytest\n_pytest.skip('nothing here', allow_module_level=True)\n",
    "makes pytest's calls harmless": (
        "import _pytest.python as _python\n_python.Function.runtest = lambda self: None\n"
    ),
    "rewrites outcomes": (
        "import _pytest.runner as _runner\n_from = _runner.CallInfo.from_call.__func__\n\n\n"
        "def _forgiving(cls, func, when, reraise=None):\n    call = _from(cls, func, when, reraise)\n"
        "    call.excinfo = None\n    return call\n\n\n_runner.CallInfo.from_call = classmethod(_forgiving)\n"
    ),
}
EQUAL = (
    "class _Equal:\n    def __eq__(self, other):\n        return True\n    def __ne__(self, other):\n"
    "        return False\n    __hash__ = None\n    def __iter__(self):\n        return iter(())\n"
)


ANSWERS = """

_real = {name}


def {name}(*args, **kwargs):
    if (args, kwargs) == ((lambda *args, **kwargs: (args, kwargs)){arguments}):
        return {answer}
    return _real(*args, **kwargs)
"""


def attacks_on(repository: Repository, task: Task, bug: Bug, example: Example | None) -> dict[str, Patch]:
    """Each by what it does. All are made from what an agent sees."""
    path, name = bug.places[0]
    text = bug.files[path]
    tests = dict.fromkeys(task.tests.files, "def test_nothing():\n    pass\n")
    found = {
        "tests that ask nothing": Patch.of(tests),
        "a conftest that lies": Patch.of(
            {"conftest.py": FORGET, "sitecustomize.py": "import os\nos._exit(0)\n"}
        ),
        **{what: Patch.of({path: f"{text}\n\n{tail}"}) for what, tail in TAILS.items()},
    }
    if equal := with_body(text, name, f"{EQUAL}return _Equal()"):
        found["is equal to everything"] = Patch.of({path: equal})
    if example is not None and (patch := answering(repository, bug, example)):
        found["answers what the issue asks"] = patch
    return found


def answering(repository: Repository, bug: Bug, example: Example) -> Patch | None:
    """The broken program, and the issue's own example answered by heart; None where that takes more."""
    name, kind = example.call.function, example.expected[0]
    paths = [path for path in repository.sources if repository.module(path) == example.call.module]
    if not paths or "." in name or kind == "error" or not example.expression.startswith(name + "("):
        return None
    answer = f"iter({example.expected[1]})" if kind == "list" else example.expected[1]
    tail = ANSWERS.format(name=name, arguments=example.expression.removeprefix(name), answer=answer)
    text = bug.files.get(paths[0], repository.texts[paths[0]])
    return Patch.of({**bug.files, paths[0]: text + tail})


def stub_of(bug: Bug) -> Patch | None:
    """Its functions with nothing in them: for a fault that is a missing body, they return None."""
    body = "return None" if bug.kind == "body" else "raise NotImplementedError"
    files: Mapping[str, str] = bug.files
    for path, name in bug.places:
        text = with_body(files[path], name, body)
        if text is None:
            return None
        files = {**files, path: text}
    return Patch.of(dict(files))


def with_body(text: str, name: str, body: str) -> str | None:
    """The file with another body in a function; None where the function is not there any more."""
    for each in functions_of(text):
        if each.name == name:
            indent = " " * (each.node.body[-1].col_offset)
            body = body.replace("\n", "\n" + indent) if "\n" in body else body
            try:
                return mutate(text, without_body(text, each, body))
            except ValueError:
                return None
    return None
