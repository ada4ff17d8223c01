"""One measured function, four kinds of tasks: write it, fix it, complete it, predict what it gives.

No prompt holds an answer: "write" and "complete" show none of what is asked for, "fix" shows the program with
a fault in it, and the examples in prompts are no hidden tests.
"""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from lathe.synth.extract import Program
from lathe.synth.lab import inside
from lathe.synth.suite import Case, call_of, hidden_files
from lathe.types import HiddenTests, Limits, Task

Kind = Literal["write", "fix", "complete", "predict"]
KINDS: tuple[Kind, ...] = get_args(Kind)
FILE = "solution.py"
ANSWER = "answer.txt"
LIMITS = Limits(memory_bytes=1 << 30, num_processes=32, disk_bytes=64 << 20)
TIMEOUT_S = 60.0
HOLE = "# ... here lines are missing ..."
MIN_WORDS = 4
# Reads a literal and writes it as the makers do: spaces, quotes and the order of a set make no difference.
READ_ANSWER = (
    "import ast, sys\n{text_of}\nprint(text_of(ast.literal_eval(open('answer.txt').read(100_000).strip())))"
)


@dataclass(frozen=True)
class Measured:
    """A function with its tests. `examples` may be shown, `cases` are hidden. `description` is in words what
    it does: its docstring, or what a model said of it."""

    program: Program
    cases: Sequence[Case]
    examples: Sequence[Case]
    description: str | None

    @property
    def name(self) -> str:
        return self.program.name


def write_task(measured: Measured) -> Task | None:
    """From signature, description and examples to the function. None where nobody said what it does."""
    if measured.description is None or len(measured.description.split()) < MIN_WORDS:
        return None
    prompt = (
        f"Write the Python function `{measured.name}` in `{FILE}`.\n\n"
        f"```python\n{signature_of(measured)}\n```\n\n"
        f"{examples_text(measured)}It stands alone: use Python's standard library only."
    )
    return code_task(measured, "write", prompt, {})


def fix_task(measured: Measured, faulty: str, shown: Case | None) -> Task:
    """From a program with a fault to one without. `shown` is a call that the fault spoils."""
    symptom = ""
    if shown is not None:
        symptom = f"`{call_of(measured.name, shown.given)}` should {outcome_text(shown)}, and doesn't.\n\n"
    prompt = (
        f"The function `{measured.name}` in `{FILE}` has a fault:\n\n```python\n{faulty.strip()}\n```\n\n"
        f"{contract_text(measured)}{symptom}{examples_text(measured, 'What is right:')}"
        f"Find the fault and correct it: give the whole of `{FILE}`."
    )
    return code_task(measured, "fix", prompt, {FILE: faulty})


def complete_task(measured: Measured, before: str, after: str) -> Task:
    """From a program with a hole to a whole one."""
    indent = re.findall(r"[ \t]*$", before)[0]
    text = f"{before}{HOLE}\n{after}"
    prompt = (
        f"In `{FILE}`, some lines of the function `{measured.name}` are missing:\n\n"
        f"```python\n{text.strip()}\n```\n\n{contract_text(measured)}{examples_text(measured)}"
        f"Write the missing lines: give the whole of `{FILE}`."
    )
    task = code_task(measured, "complete", prompt, {FILE: text})
    return with_info(task, fim={"prefix": before, "suffix": after, "indent": indent})


def predict_task(measured: Measured, case: Case) -> Task:
    """From a program and a call to the value. The answer is a literal, so no program can compute it."""
    prompt = (
        f"What does `{call_of(measured.name, case.given)}` give?\n\n"
        f"```python\n{measured.program.source.strip()}\n```\n\n"
        f"Write the value as a Python literal into `{ANSWER}`, and nothing else."
    )
    source = inside("lab.py")
    functions = [each for each in ast.parse(source).body if isinstance(each, ast.FunctionDef)]
    (found,) = (each for each in functions if each.name == "text_of")
    text_of = ast.get_source_segment(source, found)
    program = READ_ANSWER.format(text_of=text_of)
    tests = HiddenTests(
        ("python3", "-I", "-B", "-c", program),
        "stdio",
        cases=(("", str(case.wanted.value)),),
        timeout_s=TIMEOUT_S,
    )
    return task_of(measured, "predict", prompt, tests, {}, {ANSWER: f"{case.wanted.value}\n"}, ANSWER)


def can_predict(case: Case) -> bool:
    """Is the outcome a short literal, and nothing else?"""
    wanted = case.wanted
    if wanted.value is None or wanted.after or wanted.is_lazy or not 0 < len(wanted.value) <= 160:
        return False
    try:
        ast.literal_eval(wanted.value)
    except (ValueError, SyntaxError):
        return False
    return len(case.given) <= 200


# Parts of tasks


def code_task(measured: Measured, kind: Kind, prompt: str, files: dict[str, str]) -> Task:
    tests = HiddenTests(
        report="python", files=hidden_files(measured.name, measured.cases), timeout_s=TIMEOUT_S
    )
    return task_of(measured, kind, prompt, tests, files, {FILE: measured.program.source}, FILE)


def task_of(
    measured: Measured,
    kind: Kind,
    prompt: str,
    tests: HiddenTests,
    files: dict[str, str],
    reference: dict[str, str],
    answer_file: str,
) -> Task:
    """`info.reference` is a patch that solves it: for training on solutions, never for a prompt."""
    candidate = measured.program.candidate
    origin = candidate.file.origin
    info = {
        "kind": kind, "entry_point": measured.name, "answer_file": answer_file, "reference": reference,
        "importable": candidate.file.is_importable,
    }  # fmt: skip
    if answer_file == ANSWER:
        del info["entry_point"]
    return Task(
        id=f"{candidate.id}:{kind}",
        prompt=prompt,
        tests=tests,
        files=files,
        limits=LIMITS,
        language="python",
        source=origin.place(candidate.file.where, candidate.node.lineno),
        licence=origin.licence,
        info=info,
    )


def with_info(task: Task, **more: object) -> Task:
    return replace(task, info={**task.info, **more})


def signature_of(measured: Measured) -> str:
    function = measured.program.function
    head = ast.unparse(
        ast.FunctionDef(function.name, function.args, [ast.Pass()], [], function.returns, lineno=1)
    )
    head = head.removesuffix("    pass").rstrip()
    words = (measured.description or "").replace("\\", "\\\\").replace('"""', r"\"\"\"")
    return f'{head}\n    """' + words.replace("\n", "\n    ").replace("\n    \n", "\n\n") + '\n    """'


def contract_text(measured: Measured) -> str:
    """What it should do, where the program doesn't say it itself."""
    if measured.description is None or measured.program.docstring is not None:
        return ""
    return f"What it should do:\n\n{measured.description}\n\n"


def examples_text(measured: Measured, head: str = "For example:") -> str:
    lines = [f">>> {call_of(measured.name, each.given)}\n{shown_outcome(each)}" for each in measured.examples]
    return f"{head}\n\n```python\n" + "\n".join(lines) + "\n```\n\n" if lines else ""


def shown_outcome(case: Case) -> str:
    wanted = case.wanted
    if wanted.raises:
        return f"# raises {wanted.raises[0]}"
    value = f"{wanted.value}  # what it gives, as a list" if wanted.is_lazy else str(wanted.value)
    changed = "".join(
        f"\n# its argument {place + 1} is {text} afterwards" for place, text in wanted.after.items()
    )
    return value + changed


def outcome_text(case: Case) -> str:
    wanted = case.wanted
    if wanted.raises:
        return f"raise {wanted.raises[0]}"
    changed = " and ".join(f"make its argument {place + 1} {text}" for place, text in wanted.after.items())
    given = f"give `{wanted.value}`" + (", item by item" if wanted.is_lazy else "")
    return given + (f" and {changed}" if changed else "")


def holes_of(program: Program, seed: int, count: int = 6) -> list[tuple[str, str, str]]:
    """Places where lines of the function can be left out: what stands before, after, and with `pass` there.

    A hole is one to four statements of one block, never the whole body.
    """
    function = program.function
    lines = program.source.splitlines(keepends=True)
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    blocks = [body]
    for node in ast.walk(function):
        for name in ("body", "orelse"):
            block = getattr(node, name, None)
            if isinstance(block, list) and node is not function and block and isinstance(block[0], ast.stmt):
                blocks.append(block)
    holes = []
    for block in blocks:
        for first in range(len(block)):
            for last in range(first, min(first + 4, len(block))):
                if block is body and first == 0 and last == len(block) - 1:
                    continue
                start, end = block[first].lineno - 1, block[last].end_lineno or 0
                margin = re.match(r"[ \t]*", lines[start]).group()  # type: ignore[union-attr]
                is_elif = lines[start].lstrip().startswith("elif")
                if is_elif or lines[start][: block[first].col_offset].strip():
                    continue
                before, after = "".join(lines[:start]) + margin, "".join(lines[end:])
                holes.append((before, after, f"{before}pass\n{after}"))
    random.Random(seed).shuffle(holes)
    return holes[:count]
