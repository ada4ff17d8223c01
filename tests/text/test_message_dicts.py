"""Plain dicts become Lathe's nouns, and what is neither is named."""

import pytest

from lathe.errors import InvalidRequest
from lathe.text.messages import to_messages, to_tools
from lathe.types import Message, Tool, ToolCall


def test_a_conversation_as_the_field_writes_it():
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    written = [
        {"role": "user", "content": [{"type": "text", "text": "one"}, "two"]},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"},
        {"role": "tool", "content": "3", "tool_call_id": "c1", "name": "f"},
        Message("user", "done"),
    ]
    assert to_messages(written) == (
        Message("user", "one\ntwo"),
        Message("assistant", tool_calls=(ToolCall("f", {"a": 1}, "c1"),), reasoning="hm"),
        Message("tool", "3", tool_call_id="c1", name="f"),
        Message("user", "done"),
    )


@pytest.mark.parametrize(
    ("given", "read"),
    [({"a": 1}, {"a": 1}), ("", {}), (None, {}), ("[1", {"arguments": "[1"}), ([1], {"arguments": "[1]"})],
)
def test_arguments_are_always_an_object(given, read):
    call = {"function": {"name": "f", "arguments": given}}
    (message,) = to_messages([{"role": "assistant", "tool_calls": [call]}])
    assert message.tool_calls[0].arguments == read


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ("Hello", "A message is 'H'; it must be a dict such as {'role': 'user'"),
        ([["user", "Hello"]], r"A message is \['user', 'Hello'\]"),
        ([{"role": "usr"}], "the role 'usr'; it must be one of system"),
        ([{"content": "x"}], "the role None"),
        ([{"role": "user", "content": 5}], "content is int"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "'image_url'; this model reads text only"),
        ([{"role": "assistant", "tool_calls": ["f"]}], "A tool call is 'f'"),
        ([{"role": "assistant", "tool_calls": [{"function": "f"}]}], "A tool call is {'function': 'f'}"),
    ],
)
def test_what_is_no_message_is_named(messages, complaint):
    with pytest.raises(InvalidRequest, match=complaint):
        to_messages(messages)


def test_tools_in_both_spellings():
    inner = {"name": "f", "description": "does", "parameters": {"type": "object"}}
    tool = Tool("f", "does", {"type": "object"})
    assert to_tools([inner, {"type": "function", "function": inner}, tool]) == (tool, tool, tool)
    assert to_tools(None) == ()
    with pytest.raises(InvalidRequest, match=r"function with a name.*\['type'\]"):
        to_tools([{"type": "web_search"}])
