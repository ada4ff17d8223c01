"""What of an answer becomes the solution's file."""

import pytest

from lathe.errors import TaskError
from lathe.rollout.code_block import answer_file, patch_of_answer
from lathe.types import HiddenTests, Task

PROMPT = "from typing import List\n\n\ndef helper(x):\n    return x\n\n\ndef f(x):\n    '''Doc.'''\n"
TASK = Task("t", PROMPT, HiddenTests(), language="python", info={"entry_point": "f"})
IN_WORDS = Task("t", "Write a program.", HiddenTests(), info={"answer_file": "main.c"})
HEAD = "from typing import List\n\n\ndef helper(x):\n    return x\n\n\n"


def code_of(task: Task, answer: str) -> str | None:
    patch = patch_of_answer(task, answer)
    (change,) = patch.changes.values() or [None]
    return None if change is None else change.data.decode()


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("```python\ndef f(x):\n    return 1\n```", HEAD + "def f(x):\n    return 1\n"),
        ("First\n```\nx = 1\n```\nthen\n~~~py\ndef f(x):\n    return 1\n~~~",
         HEAD + "def f(x):\n    return 1\n"),
        ("```python\ndef f(x):\n    return 1\n```\nTry it:\n```python\nprint(f(1))\n```",
         HEAD + "def f(x):\n    return 1\n"),
        ("```python\ndef f(x):\n    return 1", HEAD + "def f(x):\n    return 1"),
        ("def f(x):\n    return 1\n", HEAD + "def f(x):\n    return 1\n"),
        ("```\nreturn 1\n```", PROMPT + "    return 1\n"),
        ("```\n    y = 1\n\n    return y\n```", PROMPT + "    y = 1\n\n    return y\n"),
        ("````markdown\n```python\nx\n```\n````\n```python\nasync def f(x):\n    pass\n```",
         HEAD + "async def f(x):\n    pass\n"),
        ("I don't know.", None),
        ("", None),
    ],
)  # fmt: skip
def test_the_function_that_was_asked_for(answer, code):
    assert code_of(TASK, answer) == code


def test_a_whole_program_is_the_last_block():
    assert code_of(IN_WORDS, "```c\nint x;\n```\nBetter:\n```c\nint y;\n```") == "int y;\n"
    assert code_of(IN_WORDS, "No code.") is None


def test_where_the_answer_goes():
    assert answer_file(TASK) == "solution.py"
    assert answer_file(IN_WORDS) == "main.c"
    assert answer_file(Task("t", "", HiddenTests(), files={"a.rs": ""})) == "a.rs"
    with pytest.raises(TaskError, match="'t' can't be answered in one turn"):
        answer_file(Task("t", "", HiddenTests(), language="rust"))
