"""An issue that says what is wrong, as a user of the package sees it, and not where or how to mend it."""

from __future__ import annotations

import ast
import difflib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lathe.sandbox.pool import Pool
from lathe.synth.faults import other_constants
from lathe.synth.repository.bugs import Bug
from lathe.synth.repository.checkout import Repository
from lathe.synth.repository.suite import Call, Suite, run_program
from lathe.types import Message, Model, SamplingParams, Trajectory

MAX_CALLS, MAX_VARIANTS, LIMIT_S = 8, 3, 2.0
MIN_TOKENS = 4  # a line of fewer stands in any text

PROMPT = """\
This is a copy of the repository `{name}`, in `{workdir}`. Something in it does not work as it should:

{issue}

Find the cause, and mend it in the project's own code. The tests that show the fault are not here, and \
nothing that you change in tests or in their settings counts.
"""
ASK = """\
Write a bug report for the Python package `{name}`, as a user of it would: a title, and a few sentences. \
Say what goes wrong, with the example below, and what you expected. You have not read its source: guess no \
cause, and name no file, line or inner function.

{issue}
"""


@dataclass(frozen=True)
class Example:
    """A call, what it gives with the fault, and what it should give: each is a kind and a text.

    `is_tested`: the tests make this very call, so that its answer alone could be written into a program.
    """

    call: Call
    expression: str
    got: tuple[str, str]
    expected: tuple[str, str]
    is_tested: bool


async def find_example(
    repository: Repository, suite: Suite, bug: Bug, failing: Sequence[str], pool: Pool
) -> Example | None:
    """A call that comes out otherwise with the fault, seen in two sandboxes: one that is like those of the
    failing tests, with other values; else one of theirs."""
    calls = [call for test in failing for call in suite.calls.get(test, ()) if call.expression]
    calls.sort(key=lambda call: (not call.direct, len(call.expression or "")))
    own = spread(list(dict.fromkeys(calls)))[:MAX_CALLS]
    tested = {call.expression for each in suite.calls.values() for call in each}
    varied = [
        (call, each) for call in own for each in variants_of(str(call.expression)) if each not in tested
    ]
    asked = [*varied, *((call, str(call.expression)) for call in own)]
    if not asked:
        return None
    pairs = [(statement_of(call), expression) for call, expression in asked]
    job = {"roots": repository.roots, "expressions": pairs, "limit_s": LIMIT_S}
    seconds = 60.0 + LIMIT_S * len(pairs)
    sides = []
    for files in ({}, bug.files):
        told = await run_program(repository, pool, "evaluate.py", job, files=files, timeout_s=seconds)
        sides.append(json.loads(told))
    found = [
        Example(call, expression, tuple(got), tuple(expected), expression in tested)
        for (call, expression), expected, got in zip(asked, *sides, strict=True)
        if expected and got and expected != got and expected[0] != "endless"
    ]
    return min(
        found, key=lambda each: each.expected[0] == "error", default=None
    )  # the first that has a value


def variants_of(expression: str) -> list[str]:
    """The same call with one plain value in it changed."""
    tree = ast.parse(expression, mode="eval")
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant):
            was = node.value
            for now in other_constants(was)[::-1]:
                node.value = ast.literal_eval(now)
                found.append(ast.unparse(tree))
            node.value = was
    return list(dict.fromkeys(found))[:MAX_VARIANTS]


def spread(calls: Sequence[Call]) -> list[Call]:
    """One of each function first, then the second of each …"""
    seen: Counter[str] = Counter()
    ranks = {}
    for call in calls:
        ranks[call] = seen[call.function]
        seen[call.function] += 1
    return sorted(calls, key=lambda call: ranks[call])


def statement_of(call: Call) -> str:
    """What must be imported for the call."""
    line = f"from {call.module} import {call.function.split('.')[0]}"
    return f"{line}\nimport operator" if "operator." in (call.expression or "") else line


def describe(example: Example | None, suite: Suite, failing: Sequence[str]) -> str:
    """The issue by a template. Without an example it names what the failing tests call, and them."""
    if example is None:
        names = Counter(
            f"{call.module}.{call.function.removesuffix('.__init__')}"
            for test in failing
            for call in suite.calls.get(test, ())
            if call.direct
        )
        about = ", ".join(f"`{name}`" for name, _ in names.most_common(3))
        tests = "\n".join(f"- `{test.split('::', 1)[1]}`" for test in failing[:10])
        more = f"\n- and {len(failing) - 10} more" if len(failing) > 10 else ""
        what = f"{about} no longer does what its documentation says" if about else "It misbehaves"
        return f"{what}. These checks of it fail:\n\n{tests}{more}"
    is_lazy = "list" in (example.got[0], example.expected[0])
    call = f"list({example.expression})" if is_lazy else example.expression
    shown = "\n".join(f">>> {line}" for line in [*statement_of(example.call).splitlines(), call])
    got = {
        "endless": "and it does not come to an end.",
        "error": f"and it raises:\n\n```\n{example.got[1]}\n```",
    }.get(example.got[0], f"and the result is:\n\n```\n{example.got[1]}\n```")
    wanted = (
        f"an error: `{example.expected[1]}`" if example.expected[0] == "error" else f"`{example.expected[1]}`"
    )
    return f"I run this:\n\n```python\n{shown}\n```\n\n{got}\n\nI expected {wanted}."


async def written_by(
    model: Model, repository: Repository, issue: str, sampling: SamplingParams | None
) -> str | None:
    """The same in a model's words; it is told nothing more. None for an empty answer."""
    asked = ASK.format(name=repository.name, issue=issue)
    answer = await model.complete(Trajectory((Message("user", asked),)), sampling)
    return answer.message.content.strip() or None


# What of the answer stands in the issue


def leak(repository: Repository, bug: Bug, issue: str) -> float:
    """How much of a mended line the issue tells: the longest run of tokens of one, as a share of it.

    1.0: a line that was taken away by the fault, or the path of its file, stands in the issue. Lines of fewer
    than 4 tokens don't count.
    """
    told = tokens_of(issue)
    worst = 0.0
    for path, text in bug.files.items():
        if path in issue:
            return 1.0
        for line in lines_gone(repository.texts[path], text):
            own = tokens_of(line)
            if len(own) >= MIN_TOKENS:
                worst = max(worst, longest_run(own, told) / len(own))
    return round(worst, 3)


def lines_gone(was: str, now: str) -> list[str]:
    """The lines that mending brings back."""
    difference = list(difflib.unified_diff(was.splitlines(), now.splitlines(), n=0, lineterm=""))
    return [line[1:].strip() for line in difference[2:] if line.startswith("-")]


def longest_run(part: Sequence[str], whole: Sequence[str]) -> int:
    matcher = difflib.SequenceMatcher(None, part, whole, autojunk=False)
    return matcher.find_longest_match().size


def tokens_of(text: str) -> list[str]:
    """Its words and signs."""
    return re.findall(r"\w+|[^\w\s]", text)
