"""One question, one answer: the code in a model's answer becomes a patch."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

from lathe.errors import TaskError
from lathe.tasks.patch import Patch
from lathe.types import Task

BLOCK = re.compile(
    r"^(?P<fence>`{3,}|~{3,})[ \t]*(?P<language>[^\s`]*)[^\n]*\n(?P<code>.*?)(?:^(?P=fence)[`~]*[ \t]*$|\Z)",
    re.DOTALL | re.MULTILINE,
)
DEFAULT_NAMES = {"python": "solution.py"}


@dataclass(frozen=True)
class Block:
    language: str
    code: str


def answer_file(task: Task) -> str:
    """The file that an answer is. Raises TaskError for a task that doesn't say it: by `info.answer_file`, by
    having one file, or by its language."""
    named = task.info.get("answer_file") or (next(iter(task.files)) if len(task.files) == 1 else None)
    name = named or DEFAULT_NAMES.get((task.language or "").lower())
    if name is None:
        raise TaskError(
            f"The task {task.id!r} can't be answered in one turn: it doesn't say which file the answer is. "
            'Name it in the task: "info": {"answer_file": "…"}.'
        )
    return str(name)


def patch_of_answer(task: Task, answer: str) -> Patch:
    """The file that the task asks for, made of the answer's code. Empty where the answer has no code.

    Of several blocks, the last that has the function (`info.entry_point`) counts, else the last of all. A
    function that was begun in a prompt of code stands behind what the prompt has before it: its imports and
    helpers. A block without it is the rest of that prompt.
    """
    name = answer_file(task)
    wanted = task.info.get("entry_point")
    entry = None if wanted is None else str(wanted)
    code = pick(blocks_in(answer), entry)
    if code is None:
        if entry is None or not defines(answer, entry):
            return Patch()
        code = answer
    head = None if entry is None else head_of(task.prompt, entry)
    if head is None or entry is None:
        return Patch.of({name: code})
    return Patch.of({name: head + code if defines(code, entry) else completed(task.prompt, code)})


def blocks_in(answer: str) -> list[Block]:
    """The fenced blocks of a text; the last one may lack its end."""
    return [Block(found["language"].lower(), found["code"]) for found in BLOCK.finditer(answer)]


def pick(blocks: list[Block], entry: str | None) -> str | None:
    for block in reversed(blocks):
        if entry is not None and defines(block.code, entry):
            return block.code
    return blocks[-1].code if blocks else None


def defines(code: str, name: str) -> bool:
    """Does it have the function or class, at the outermost level?"""
    return re.search(rf"^(?:async\s+def|def|class)\s+{re.escape(name)}\b", code, re.MULTILINE) is not None


def head_of(prompt: str, entry: str) -> str | None:
    """What stands before the function in a prompt that is Python; None where it is none."""
    found = re.search(
        rf"^(?:@[^\n]*\n)*(?:async\s+def|def|class)\s+{re.escape(entry)}\b", prompt, re.MULTILINE
    )
    if found is None:
        return None
    try:
        ast.parse(prompt[: found.start()])
    except SyntaxError:
        return None
    return prompt[: found.start()]


def completed(prompt: str, rest: str) -> str:
    """The prompt and its rest, indented as a function's body where it isn't."""
    lines = rest.strip("\n").splitlines()
    if lines and not lines[0].startswith((" ", "\t")):
        rest = "\n".join("    " + line if line.strip() else line for line in lines)
    return prompt.rstrip("\n") + "\n" + rest.strip("\n") + "\n"
