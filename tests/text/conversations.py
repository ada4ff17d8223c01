"""Conversations and tools that show what templates do, and the templates themselves."""

from pathlib import Path

from lathe.types import Message, Tool, ToolCall

FOLDER = Path(__file__).with_name("templates")
QWEN_TEMPLATES = {file.stem: file.read_text(encoding="utf-8") for file in sorted(FOLDER.glob("*.jinja"))}

# Qwen3-Thinking-2507: as Qwen3, but the prompt begins the thought.
THINKING_2507 = (
    QWEN_TEMPLATES["qwen3"].partition("{%- if add_generation_prompt %}")[0]
    + "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}"
)

READ_FILE = Tool(
    "read_file",
    '  Reads a file, "quoted" and it\'s trimmed.\n',
    {
        "type": "object",
        "properties": {
            "path": {"type": "string", "description": " The path. "},
            "mode": {"type": ["string", "null"], "enum": ["r", "w", None, 3], "default": None},
            "options": {
                "type": "object",
                "properties": {
                    "name": {"type": "string"},
                    "x-y": {"type": "array", "items": {"minimum": 0.5}},
                },
                "additionalProperties": False,
                "$comment": "hi there",
                "some-key": {"a": [1, "b's", 'c"', "\\"]},
            },
        },
        "required": ["path"],
    },
)
TOOLS = (
    READ_FILE,
    Tool("now", "The time"),
    Tool("größe", "日本語 <b>", {"type": "object", "properties": {}}),
)

ARGUMENTS = {
    "path": " a.py\n",
    "count": 1,
    "ratio": 1.5,
    "really": True,
    "nothing": None,
    "nested": {"list": [1, "it's", 'q"', "é\n\t\x07\u200b", False]},
    "many": [{"x": None}],
}

CONVERSATIONS = [
    [Message("user", "Hi")],
    [Message("system", "Be brief."), Message("user", "Hi")],
    [
        Message("system", ""),
        Message("user", "a"),
        Message("assistant", "  b "),
        Message("user", "\nc\r\n"),
        Message("assistant", ""),
    ],
    [
        Message("user", "Read it"),
        Message("assistant", "", tool_calls=(ToolCall("read_file", ARGUMENTS, "call_1"),)),
        Message("tool", "line 1\n<html>&amp;\n", tool_call_id="call_1"),
    ],
    [
        Message("system", "Be brief."),
        Message("user", "Do both"),
        Message(
            "assistant",
            "  I will. \n",
            reasoning="Two calls.",
            tool_calls=(ToolCall("read_file", {"path": "a.py"}, "1"), ToolCall("now", {}, "2")),
        ),
        Message("tool", "one", tool_call_id="1", name="read_file"),
        Message("tool", "two", tool_call_id="2", name="now"),
        Message("assistant", "Done.", reasoning="\nEasy.\n"),
        Message("user", "Thanks 👍🏽"),
        Message("assistant", "\n\nYou're welcome."),
    ],
    [Message("user", "a"), Message("assistant", "b"), Message("system", "later"), Message("user", "c")],
    [Message("user", "a"), Message("user", "b"), Message("system", "last")],
]
