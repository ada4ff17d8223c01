"""Calls and JSON on demand, over a socket. A model of random weights would never get there by itself."""

import json
from pathlib import Path

import anthropic
import httpx
import jsonschema_rs
import openai
import pytest
from serving import client_of, serve

from lathe.testing import ScriptedModel
from lathe.text.chat_template import ChatTemplate
from lathe.types import Grammar, Message, SamplingParams, Trajectory

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
        "boss": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/boss"}]},
    },
    "required": ["name", "age", "boss"],
    "additionalProperties": False,
    "$defs": {
        "boss": {
            "type": "object",
            "properties": {"id": {"type": "string", "pattern": "^[A-F]{3}$"}},
            "required": ["id"],
            "additionalProperties": False,
        }
    },
}


def json_format(schema=PERSON, strict=True) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": schema, "strict": strict}}


def tool(name: str, **properties) -> dict:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [
    tool("move", direction={"enum": ["up", "down"]}, steps={"type": "integer", "minimum": 1, "maximum": 99}),
    tool("look"),
    tool("say", words={"type": "string", "maxLength": 9}, loud={"type": "boolean"}),
]
SCHEMAS = {one["function"]["name"]: one["function"]["parameters"] for one in TOOLS}


@pytest.fixture
def client(llm):
    with client_of(llm) as client:
        yield client


def check_calls(message) -> None:
    assert not message.content
    for call in message.tool_calls:
        jsonschema_rs.validate(SCHEMAS[call.function.name], json.loads(call.function.arguments))


def test_json_keeps_to_its_schema_however_it_is_drawn(client, ask):
    ways = [{"temperature": 0}, {"seed": 1}, {"top_p": 0.3}, {"presence_penalty": 1.5}]
    for way in [*ways, {"extra_body": {"top_k": 3}}, {"extra_body": {"min_p": 0.2}}]:
        reply = client.chat.completions.create(**ask, response_format=json_format(), n=2, **way)
        for choice in reply.choices:
            assert choice.finish_reason == "stop", choice
            jsonschema_rs.validate(PERSON, json.loads(choice.message.content))


def test_a_stream_is_the_whole_reply(client, ask):
    asked = dict(**ask, response_format=json_format(), seed=5)
    whole = client.chat.completions.create(**asked).choices[0]
    chunks = list(client.chat.completions.create(**asked, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.message.content
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_json_object_is_any_object(client, ask):
    reply = client.chat.completions.create(
        **ask, response_format={"type": "json_object"}, n=4, max_tokens=300, seed=3
    )
    done = [choice for choice in reply.choices if choice.finish_reason == "stop"]
    assert done
    assert all(isinstance(json.loads(choice.message.content), dict) for choice in done)


def test_text_is_free(client, ask):
    reply = client.chat.completions.create(**ask, response_format={"type": "text"}, max_tokens=8, seed=1)
    assert not reply.choices[0].message.content.startswith("{")


@pytest.mark.parametrize("temperature", [0, 1])
def test_required_gives_calls_and_nothing_else(client, ask, temperature):
    reply = client.chat.completions.create(
        **ask, tools=TOOLS, tool_choice="required", temperature=temperature, seed=2, n=2
    )
    for choice in reply.choices:
        assert choice.finish_reason == "tool_calls"
        check_calls(choice.message)


def test_a_named_tool_is_called_once(client, ask):
    for one in TOOLS:
        name = one["function"]["name"]
        choice = {"type": "function", "function": {"name": name}}
        reply = client.chat.completions.create(**ask, tools=TOOLS, tool_choice=choice, seed=4).choices[0]
        assert reply.finish_reason == "tool_calls"
        assert [call.function.name for call in reply.message.tool_calls] == [name]
        check_calls(reply.message)


def test_parallel_calls_and_one_alone(client, ask):
    asked = dict(**ask, tools=TOOLS, tool_choice="required", n=3, seed=6)
    many = client.chat.completions.create(**asked)
    assert max(len(choice.message.tool_calls) for choice in many.choices) > 1
    single = client.chat.completions.create(**asked, parallel_tool_calls=False)
    assert [len(choice.message.tool_calls) for choice in single.choices] == [1] * 3


def test_only_allowed_tools_are_called(client, ask):
    allowed = [{"type": "function", "function": {"name": "look"}}]
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": allowed}}
    reply = client.chat.completions.create(**ask, tools=TOOLS, tool_choice=choice, n=4, seed=7)
    called = {call.function.name for one in reply.choices for call in one.message.tool_calls}
    assert called == {"look"}


def test_a_cut_call_is_no_call(client, ask):
    reply = client.chat.completions.create(**ask, tools=TOOLS, tool_choice="required", max_tokens=20)
    assert reply.choices[0].finish_reason == "length"
    assert not reply.choices[0].message.tool_calls


def test_tools_beside_json_give_calls_or_such_json(client, ask):
    reply = client.chat.completions.create(
        **ask, tools=TOOLS, response_format=json_format(), n=8, seed=8, temperature=2
    )
    kinds = set()
    for choice in reply.choices:
        kinds.add(choice.finish_reason)
        if choice.finish_reason == "tool_calls":
            check_calls(choice.message)
        else:
            jsonschema_rs.validate(PERSON, json.loads(choice.message.content))
    assert kinds == {"stop", "tool_calls"}


def test_logprobs_are_those_of_the_free_model(client, ask):
    schema = {"type": "array", "items": {"enum": ["yes", "no"]}, "minItems": 2, "maxItems": 3}
    reply = client.chat.completions.create(
        **ask, response_format=json_format(schema), temperature=0, logprobs=True, top_logprobs=1
    )
    entries = reply.choices[0].logprobs.content
    assert "".join(entry.token for entry in entries) == reply.choices[0].message.content
    assert any(entry.token != entry.top_logprobs[0].token for entry in entries)
    assert all(entry.logprob <= entry.top_logprobs[0].logprob for entry in entries)


DEEP = {"type": "string"}
for _ in range(110):
    DEEP = {"type": "array", "items": DEEP}


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"tool_choice": "required"}, "tool_choice", "there are no tools"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice", "no tools"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "f"}}, "tools": TOOLS},
            "tool_choice",
            "'f', which is none of the tools",
        ),
        ({"tool_choice": {"type": "function"}, "tools": TOOLS}, "tool_choice.function", "missing"),
        ({"tool_choice": "perhaps", "tools": TOOLS}, "tool_choice", "'required'"),
        ({"response_format": {"type": "yaml"}}, "response_format.type", "'json_schema'"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema", "missing"),
        ({"response_format": json_format({"type": "strin"})}, "response_format", "Invalid type: strin"),
        ({"response_format": json_format({"pattern": "(?=a)", "type": "string"})}, "response_format", "look"),
        ({"response_format": json_format({"not": {}})}, "response_format", "not"),
        ({"response_format": json_format({"$ref": "#/$defs/x"})}, "response_format", "does not exist"),
        ({"response_format": json_format({"$ref": "#"}, strict=False)}, None, "can't be imposed"),
        ({"response_format": json_format({"enum": []}, strict=False)}, "response_format", "empty"),
        ({"response_format": json_format(DEEP)}, "response_format", "nested"),
        (
            {"response_format": json_format({"enum": [f"{n:050}" for n in range(9000)]})},
            "response_format",
            "too large",
        ),
        (
            {
                "tool_choice": "required",
                "tools": [
                    {
                        "type": "function",
                        "function": {
                            "name": "f",
                            "parameters": {"type": "object", "properties": {"x": {"not": {"const": 1}}}},
                            "strict": True,
                        },
                    }
                ],
            },
            "tools",
            "The tool f is strict, but its parameter x can't be imposed",
        ),
        (
            {
                "tool_choice": "required",
                "tools": [tool(f"f{n}", x={"enum": ["y" * 90]}) for n in range(3000)],
            },
            "tools",
            "Offer fewer tools",
        ),
    ],
)
def test_what_cannot_be_imposed_is_a_400_that_says_why(client, ask, fields, param, words):
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(**ask, extra_body=fields, stream=stream)
        assert caught.value.param == param
        assert words in str(caught.value)


def test_a_loose_schema_is_imposed_as_far_as_it_goes(client, ask):
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"], "not": {}}
    odd = {**schema, "additionalProperties": False, "properties": {"x": {"enum": [3, 4]}}}
    reply = client.chat.completions.create(**ask, response_format=json_format(odd, strict=False), seed=1)
    assert json.loads(reply.choices[0].message.content)["x"] in (3, 4)


def test_a_script_is_spoken_whatever_the_grammar(ask):
    with client_of(ScriptedModel("No JSON.", "No call.")) as client:
        free = client.chat.completions.create(**ask, response_format=json_format()).choices[0]
        assert free.message.content == "No JSON."
        uncalled = client.chat.completions.create(**ask, tools=TOOLS, tool_choice="required").choices[0]
        assert (uncalled.message.content, uncalled.finish_reason) == ("No call.", "stop")


# The other dialects: one reading each, the same grammars


def flat(one: dict, **more) -> dict:
    return {"type": "function", **one["function"], **more}


def test_responses_give_calls_and_json(client):
    asked = {"model": "m", "input": "Hi.", "temperature": 1}
    tools = [flat(one, strict=True) for one in TOOLS]
    reply = client.responses.create(**asked, tools=tools, tool_choice="required")
    assert reply.output
    for item in reply.output:
        assert item.type == "function_call"
        jsonschema_rs.validate(SCHEMAS[item.name], json.loads(item.arguments))
    assert [one.strict for one in reply.tools] == [True] * 3
    named = client.responses.create(**asked, tools=tools, tool_choice={"type": "function", "name": "look"})
    assert [item.name for item in named.output] == ["look"]
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "say"}]}
    one = client.responses.create(**asked, tools=tools, tool_choice=allowed, parallel_tool_calls=False)
    assert [item.name for item in one.output] == ["say"]
    format = {"type": "json_schema", "name": "it", "schema": PERSON, "strict": True}
    text = client.responses.create(**asked, text={"format": format})
    jsonschema_rs.validate(PERSON, json.loads(text.output_text))
    assert text.to_dict()["text"]["format"] == format


def test_messages_give_calls_and_json(llm):
    tools = [{"name": name, "input_schema": schema} for name, schema in SCHEMAS.items()]
    asked = {
        "model": "m",
        "messages": [{"role": "user", "content": "Hi."}],
        "max_tokens": 2000,
    }
    with serve(llm) as url, anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as client:
        reply = client.messages.create(**asked, tools=tools, tool_choice={"type": "any"})
        assert reply.stop_reason == "tool_use"
        for block in reply.content:
            assert block.type == "tool_use"
            jsonschema_rs.validate(SCHEMAS[block.name], block.input)
        choice = {"type": "tool", "name": "move", "disable_parallel_tool_use": True}
        with client.messages.stream(**asked, tools=tools, tool_choice=choice) as stream:
            named = stream.get_final_message()
        assert [block.name for block in named.content] == ["move"]
        alone = {"type": "any", "disable_parallel_tool_use": True}
        for _ in range(3):
            assert len(client.messages.create(**asked, tools=tools, tool_choice=alone).content) == 1
        format = {"format": {"type": "json_schema", "schema": PERSON}}
        text = client.messages.create(**asked, extra_body={"output_config": format})
        jsonschema_rs.validate(PERSON, json.loads(text.content[0].text))


@pytest.mark.parametrize(
    ("path", "fields", "words"),
    [
        ("responses", {"input": "x", "tool_choice": "required"}, "there are no tools"),
        ("responses", {"input": "x", "tool_choice": {"type": "function"}}, "tool_choice.name is missing"),
        (
            "responses",
            {"input": "x", "text": {"format": {"type": "json_schema"}}},
            "format.schema is missing",
        ),
        (
            "responses",
            {"input": "x", "text": {"format": {"type": "json_schema", "schema": {"type": "x"}}}},
            "text.format: The schema can't be imposed on a reply: Invalid type: x.",
        ),
        ("messages", {"tool_choice": {"type": "any"}}, "tool_choice asks for a call, but there are no tools"),
        ("messages", {"tool_choice": {"type": "tool"}}, "tool_choice.name is missing"),
        (
            "messages",
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "x"}}}},
            "output_config.format: The schema can't be imposed on a reply: Invalid type: x.",
        ),
        ("messages", {"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
    ],
)
def test_the_dialects_refuse_in_their_own_shape(path, fields, words):
    if path == "messages":
        fields = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 9, **fields}
    with serve(ScriptedModel()) as url:
        response = httpx.post(f"{url}/v1/{path}", json=fields)
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]
    assert (response.json().get("type") == "error") == (path == "messages")


QWEN3 = Path(__file__).parent.parent / "text" / "templates" / "qwen3.jinja"


def test_the_other_syntax_of_calls_behind_a_thought_that_is_over(llm, ask):
    llm.template = ChatTemplate(QWEN3.read_text())
    assert (llm.template.dialect, llm.template.thinks) == ("qwen3", True)
    off = {"chat_template_kwargs": {"enable_thinking": False}}
    with client_of(llm) as client:
        reply = client.chat.completions.create(
            **ask, tools=TOOLS, tool_choice="required", seed=1, n=2, extra_body=off
        )
    for choice in reply.choices:
        assert choice.finish_reason == "tool_calls"
        check_calls(choice.message)


def test_a_thought_comes_before_the_grammar(llm):
    llm.template = ChatTemplate(QWEN3.read_text())
    prompt = llm.encode(Trajectory((Message("user", "Hi."),)))
    sampling = SamplingParams(grammar=Grammar("regex", "yes|no"))
    for text in ("<think>\nHm { maybe\n</think>\n\nyes", "no"):
        matcher = llm.matcher(prompt, sampling, chat=True)
        for token_id in llm.tokenizer.encode(text, allow_special=True):
            assert matcher.allowed(300)[token_id]
            matcher.accept(token_id)
        assert matcher.is_complete
