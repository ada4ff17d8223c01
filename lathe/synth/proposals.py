"""What a model adds to a function: words for one that has none, and inputs that chance would not draw.

Nothing that it says is believed: words are looked through for code, inputs are validated as all others are.
"""

from __future__ import annotations

import ast
import re

from lathe.synth.argument_types import is_plain
from lathe.synth.extract import Program
from lathe.synth.inputs import MAX_INPUT_CHARS, call_text
from lathe.types import Message, Model, Trajectory

MAX_PROPOSED = 40
DESCRIBE = (
    "Describe what this Python function does, so that somebody who doesn't see it can write it anew: what it "
    "is given, what it gives back, what happens in special cases, which exceptions it raises. Do not show or "
    "paraphrase its code. Answer with the description alone, in at most 120 words.\n\n```python\n{source}```"
)
PROPOSE = (
    "Write {count} calls of the function `{name}` that would show most of what it does, also at its limits "
    "and in special cases. One call a line, in one block of Python code, arguments written out as literals, "
    "nothing else.\n\n```python\n{source}```"
)


async def ask(model: Model, prompt: str) -> str:
    completion = await model.complete(Trajectory((Message("user", prompt),)))
    return completion.message.content


async def describe(model: Model, program: Program) -> str | None:
    """In words, what the function does. None where the answer is empty, or shows code of it."""
    text = (await ask(model, DESCRIBE.format(source=program.source))).strip()
    lines = {line.strip() for line in program.source.splitlines() if len(line.strip()) > 12}
    shows_code = "```" in text or any(line in text for line in lines)
    return None if not text or shows_code or len(text) > 2000 else text


async def propose_inputs(model: Model, program: Program) -> list[str]:
    """Calls as the lab reads them. Lines that are no call with plain arguments are left out."""
    prompt = PROPOSE.format(count=MAX_PROPOSED // 2, name=program.name, source=program.source)
    answer = await ask(model, prompt)
    blocks = re.findall(r"```\w*\n(.*?)```", answer, re.DOTALL) or [answer]
    found: dict[str, None] = {}
    for line in blocks[-1].splitlines():
        try:
            node = ast.parse(line.strip().removeprefix(">>> "), mode="eval").body
        except (SyntaxError, ValueError):
            continue
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == program.name:
            values = [*node.args, *(each.value for each in node.keywords)]
            if all(map(is_plain, values)) and all(each.arg for each in node.keywords):
                kwargs = [(str(each.arg), ast.unparse(each.value)) for each in node.keywords]
                text = call_text([ast.unparse(each) for each in node.args], kwargs)
                if len(text) <= MAX_INPUT_CHARS:
                    found[text] = None
    return list(found)[:MAX_PROPOSED]
