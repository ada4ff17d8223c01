"""A model writes a function anew, from its signature and docstring: mistakes that a programmer would make."""

from __future__ import annotations

import ast
import random
import textwrap
from dataclasses import dataclass

from lathe.rollout.code_block import blocks_in
from lathe.synth.mutations import Edit, Function, Mutation, Text, mutate, without_body
from lathe.synth.repository.bugs import Bug, Place, is_worth_writing, reached_functions
from lathe.synth.repository.checkout import Repository
from lathe.synth.repository.suite import Suite
from lathe.types import Message, Model, SamplingParams, Trajectory

ASK = """\
Here is a Python module in which the body of `{name}` is missing:

```python
{module}
```

Write the function `{name}` as its docstring says. Answer with one block of code that holds this function \
alone.
"""
MAX_CHARS = 24_000


@dataclass(frozen=True)
class Unwritten:
    """A function that a model is to write."""

    place: Place
    function: Function

    @property
    def id(self) -> str:
        return f"rewrite-{self.place[0]}-{self.place[1]}"


def unwritten(repository: Repository, suite: Suite, seed: int) -> list[Unwritten]:
    """The functions with a docstring and some lines, in a random order."""
    found = [
        Unwritten(place, function)
        for place, function in reached_functions(repository, suite).items()
        if is_worth_writing(function)
    ]
    random.Random(seed).shuffle(found)
    return found


async def rewritten(
    repository: Repository, asked_for: Unwritten, model: Model, sampling: SamplingParams | None = None
) -> Bug | None:
    """The function as the model writes it. Whether that breaks a test is found out later. None where its
    answer holds no such function, or the same one."""
    (path, name), function = asked_for.place, asked_for.function
    text = repository.texts[path]
    module = mutate(text, without_body(text, function))[:MAX_CHARS]
    prompt = ASK.format(name=name, module=module)
    answer = await model.complete(Trajectory((Message("user", prompt),)), sampling)
    written = function_in(answer.message.content, name.split(".")[-1])
    if written is None:
        return None
    try:
        new = mutate(text, in_place(text, function, written))
    except ValueError:
        return None
    return Bug("rewrite", f"{name} as a model wrote it", {path: new}, (asked_for.place,))


def function_in(answer: str, name: str) -> str | None:
    """The function's source in a model's answer, at the left margin."""
    for block in reversed(blocks_in(answer)):
        code = textwrap.dedent(block.code)
        try:
            tree = ast.parse(code)
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
                lines = code.splitlines()[node.lineno - 1 : node.end_lineno]
                return textwrap.dedent("\n".join(lines))
    return None


def in_place(text: str, function: Function, written: str) -> Mutation:
    """The written function where the old one is; decorators stay as they are."""
    source = Text(text)
    indent = source.indent(function.start)
    start, end = source.start(function.node), source.end(function.node)
    body = textwrap.indent(written, indent).removeprefix(indent)
    return Mutation("rewrite", function.start, (Edit(start, end, body),), f"{function.name} is rewritten")
