"""How fast tool calls are read: one with a 1 MB argument, whole and in pieces. python bench/tool_calls.py"""

import time

from lathe.text.tool_calls import ToolCallParser, render
from lathe.types import Tool, ToolCall

LINE = 'def f(x): return "<b>" + x  # </parameter> 漢\n'
TOOL = Tool("write_file", "", {"type": "object", "properties": {"content": {"type": "string"}}})


def main() -> None:
    call = ToolCall("write_file", {"content": LINE * (1_000_000 // len(LINE))})
    print("| dialect | whole | pieces of 5 characters | of 1 character |\n|---|---|---|---|")
    for dialect in ("qwen3_coder", "qwen3"):
        text = render([call], dialect)
        times = (f"{seconds(text, dialect, size):.2f} s" for size in (len(text), 5, 1))
        print(f"| {dialect} | {' | '.join(times)} |")


def seconds(text: str, dialect: str, size: int) -> float:
    parser = ToolCallParser([TOOL], dialect)
    started = time.perf_counter()
    for first in range(0, len(text), size):
        parser.feed(text[first : first + size])
    parser.finish()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
