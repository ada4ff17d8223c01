"""Prompts equal to transformers', and conversations that templates would refuse."""

import json

import pytest
from conversations import CONVERSATIONS, QWEN_TEMPLATES, READ_FILE, TOOLS

from lathe.errors import CheckpointError, TemplateError
from lathe.text import tool_calls
from lathe.text.chat_template import ChatTemplate
from lathe.text.conversation import to_tool_dict, to_turn
from lathe.types import Message, Tool, ToolCall

OPTIONS = [{}, {"add_generation_prompt": False}, {"enable_thinking": False, "locale": "de"}]


def as_json(value):
    return json.loads(json.dumps(value))


def reference_text(tokenizer, source, messages, tools=(), **options):
    return tokenizer.apply_chat_template(
        [to_turn(message, as_json) for message in messages],
        tools=[to_tool_dict(tool, as_json) for tool in tools] or None,
        chat_template=source,
        tokenize=False,
        **{"add_generation_prompt": True, **options},
    )


@pytest.mark.parametrize("name", QWEN_TEMPLATES)
def test_text_and_ids_equal_transformers(qwen, hf_qwen, name):
    source = QWEN_TEMPLATES[name]
    template = ChatTemplate(source, eos_token=qwen.eos_token)
    for messages in CONVERSATIONS:
        for tools in ((), TOOLS):
            for options in OPTIONS:
                expected = reference_text(hf_qwen, source, messages, tools, **options)
                assert template.render(messages, tools, **options) == expected
                ids = hf_qwen.encode(expected, add_special_tokens=False)
                assert template.encode(qwen, messages, tools, **options) == ids


def test_smollm2_equals_transformers(smollm2, smollm2_metadata, tmp_path):
    from transformers import AutoTokenizer

    smollm2.save(tmp_path)
    reference = AutoTokenizer.from_pretrained(tmp_path)
    source = smollm2_metadata["tokenizer.chat_template"]
    template = ChatTemplate(source, bos_token=smollm2.bos_token, eos_token=smollm2.eos_token)
    for messages in CONVERSATIONS:
        if not any(message.tool_calls for message in messages):
            expected = reference_text(reference, source, messages)
            assert template.render(messages) == expected
            ids = reference.encode(expected, add_special_tokens=False)
            assert template.encode(smollm2, messages) == ids


def test_the_builtin_template_writes_what_qwen3_coders_does():
    builtin, published = ChatTemplate.builtin(), ChatTemplate(QWEN_TEMPLATES["qwen3_coder_extra_keys"])
    for messages in CONVERSATIONS:
        for tools in ((), TOOLS):
            assert builtin.render(messages, tools) == published.render(messages, tools)


def test_the_builtin_template_writes_calls_as_render_does():
    for messages in CONVERSATIONS:
        for message in messages:
            if message.tool_calls:
                text = ChatTemplate.builtin().render([Message("user", "x"), message])
                assert tool_calls.render(message.tool_calls) in text


def test_no_system_turn_unless_there_is_something_to_say():
    builtin = ChatTemplate.builtin()
    assert builtin.render([Message("user", "Hi")]) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert builtin.render([Message("user", "Hi")], [READ_FILE]).startswith(
        "<|im_start|>system\nYou are Qwen, a helpful AI assistant that can interact with a computer"
    )


DIALECTS = {name: "qwen3_coder" if "coder_" in name and "3" in name else "qwen3" for name in QWEN_TEMPLATES}


@pytest.mark.parametrize(("name", "dialect"), DIALECTS.items())
def test_dialects(name, dialect):
    assert ChatTemplate(QWEN_TEMPLATES[name]).dialect == dialect


def test_calls_in_a_prompt_are_read_back_in_its_dialect():
    call = ToolCall("read_file", {"path": "a.py"}, "1")
    for name, source in QWEN_TEMPLATES.items():
        template = ChatTemplate(source)
        messages = [Message("user", "x"), Message("assistant", "Yes.", tool_calls=(call,))]
        text = template.render(messages, add_generation_prompt=False).split("<|im_start|>assistant\n")[1]
        parsed = tool_calls.parse(text.removesuffix("<|im_end|>\n"), TOOLS, template.dialect)
        assert [(call.name, call.arguments) for call in parsed.tool_calls] == [
            ("read_file", {"path": "a.py"})
        ], name


@pytest.mark.parametrize("name", QWEN_TEMPLATES)
def test_tools_without_parameters_and_with_odd_schemas_render(name):
    template = ChatTemplate(QWEN_TEMPLATES[name])
    for schema in (None, {}, {"type": "object"}, {"properties": {"x": True, "y": {}}}, {"$ref": "#/x"}):
        assert "do_it" in template.render([Message("user", "x")], [Tool("do_it", "", schema)])


# A template that knows no tools


CALL = ToolCall("read_file", {"path": "a.py", "nested": {"a": [1]}}, "1")
WITH_TOOLS = [
    Message("system", "Be brief."),
    Message("user", "Go"),
    Message("assistant", " Sure. ", tool_calls=(CALL, ToolCall("now"))),
    Message("tool", "one"),
    Message("tool", "two"),
    Message("assistant", "Done."),
]


def test_tools_become_text_where_a_template_knows_none(smollm2_metadata):
    template = ChatTemplate(smollm2_metadata["tokenizer.chat_template"])
    described = ChatTemplate.builtin().render([Message("user", "x")], TOOLS)
    described = described[described.index("# Tools") : described.index("<|im_end|>")]
    assert template.dialect == "qwen3_coder"
    assert template.render(WITH_TOOLS, TOOLS) == (
        f"<|im_start|>system\nBe brief.\n\n{described}<|im_end|>\n"
        "<|im_start|>user\nGo<|im_end|>\n"
        f"<|im_start|>assistant\nSure.\n\n{tool_calls.render(WITH_TOOLS[2].tool_calls)}<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\none\n</tool_response>\n"
        "<tool_response>\ntwo\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\nDone.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert f"system\n{described}<|im_end|>" in template.render([Message("user", "Go")], TOOLS)
    assert "Tools" not in template.render([Message("user", "Go")])


def test_a_syntax_that_lathe_can_not_read_is_not_asked_for():
    source = (
        "{% for message in messages %}[{{ message.role }}]{{ message.content }}"
        "{% for call in message.tool_calls %}CALL {{ call.function | tojson }}{% endfor %}{% endfor %}"
        "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}"
    )
    template = ChatTemplate(source)
    assert template.dialect == "qwen3_coder"
    text = template.render(WITH_TOOLS, TOOLS)
    assert "CALL" not in text
    assert tool_calls.render([CALL]) in text


# Templates that are strict


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
)
STRICT = {
    "system comes first": (
        "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
        "{{ raise_exception('System message must be at the beginning.') }}{% endif %}{% endfor %}" + CHATML
    ),
    "later systems vanish": (
        "{% for m in messages %}{% if loop.first or m.role != 'system' %}[{{ m.role }}]{{ m.content }}"
        "{% endif %}{% endfor %}"
    ),
    "systems are gathered": (
        "{% for m in messages if m.role == 'system' %}{{ m.content }}{% endfor %}"
        "{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    ),
    "no system, alternating": (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% elif (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}"
        "{% endif %}{% endfor %}" + CHATML
    ),
}
ANY_ORDER = [
    Message("developer", "word1"),
    Message("system", "word2"),
    Message("user", "word3"),
    Message("user", "word4"),
    Message("assistant", "word5"),
    Message("developer", "word6"),
    Message("user", "word7"),
    Message("system", "word8"),
]


@pytest.mark.parametrize(
    "source", [*STRICT.values(), CHATML, *QWEN_TEMPLATES.values()], ids=[*STRICT, "chatml", *QWEN_TEMPLATES]
)
def test_system_and_developer_messages_stand_anywhere(source):
    text = ChatTemplate(source).render(ANY_ORDER)
    places = [text.find(message.content) for message in ANY_ORDER]
    assert -1 not in places
    assert places == sorted(places)
    assert "developer" not in text


def test_a_later_system_message_stays_one_where_it_may():
    messages = [Message("user", "a"), Message("assistant", "b"), Message("developer", "c")]
    assert ChatTemplate(CHATML).render(messages).endswith("<|im_start|>system\nc<|im_end|>\n")
    strict = ChatTemplate(STRICT["system comes first"])
    assert strict.render(messages).endswith("<|im_start|>user\nc<|im_end|>\n")


def test_turns_are_merged_only_where_they_must_alternate():
    messages = [Message("user", "a"), Message("user", "b")]
    assert ChatTemplate(CHATML).render(messages).count("<|im_start|>") == 2
    assert (
        ChatTemplate(STRICT["no system, alternating"]).render(messages)
        == "<|im_start|>user\na\n\nb<|im_end|>\n"
    )


# The environment


def render(source, content="x", **options):
    return ChatTemplate(source).render([Message("user", content)], **options)


def test_what_hugging_faces_templates_expect():
    assert render("{{ messages | tojson }}", "<é'\">") == '[{"role": "user", "content": "<é\'\\">"}]'
    assert render("{{ {'b': [1], 'a': 'é😀'} | tojson(ensure_ascii=True, sort_keys=True) }}") == (
        '{"a": "\\u00e9\\ud83d\\ude00", "b": [1]}'
    )
    assert render("{{ [1] | tojson(indent=2) }}") == "[\n  1\n]"
    assert render("a{% generation %}{{ messages[0].content }}{% endgeneration %}b") == "axb"
    assert render("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "01"
    assert len(render("{{ strftime_now('%Y-%m-%d') }}")) == 10
    assert render("  {% if true %}\n    a\n  {% endif %}\n") == "    a\n"
    assert render("{{ bos_token }}{{ tools is none }}{{ documents is none }}") == "TrueTrue"
    assert render("{{ unheard_of }}{{ depth }}", depth=3) == "3"


def test_marks_from_the_tokenizer(smollm2):
    template = ChatTemplate(
        "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
    )
    assert template.encode(smollm2, [Message("user", "a")]) == [1, *smollm2.encode("a"), 2]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('Only one image.') }}", "refuses this conversation: Only one image."),
        ("{{ messages[9].content.x }}", "refuses.*no element 9"),
        ("{{ 'a' + 1 }}", "fails on this conversation"),
        ("{{ ''.__class__.__mro__ }}", "refuses.*unsafe"),
        ("{{ messages.append(1) }}", "refuses.*unsafe"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "fails.*Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "fails.*recursion"),
    ],
)
def test_what_a_template_says_reaches_the_user(source, reason):
    with pytest.raises(TemplateError, match=reason):
        render(source)


def test_bad_jinja_is_refused_with_its_line():
    with pytest.raises(TemplateError, match="line 2"):
        ChatTemplate("ok\n{% if %}")


def test_a_conversation_needs_a_message():
    with pytest.raises(TemplateError, match="at least one message"):
        ChatTemplate.builtin().render([])


def test_tools_that_no_template_can_describe(smollm2_metadata):
    for source in (smollm2_metadata["tokenizer.chat_template"], QWEN_TEMPLATES["qwen3_coder_launch"]):
        with pytest.raises(TemplateError, match="fails"):
            ChatTemplate(source).render([Message("user", "x")], [Tool("f", "", {"properties": [1]})])


def test_json_without_end(qwen):
    deep: dict = {}
    for _ in range(5000):
        deep = {"a": deep}
    messages = [Message("user", "x"), Message("assistant", tool_calls=(ToolCall("f", deep),))]
    with pytest.raises(TemplateError, match="nested too deeply"):
        ChatTemplate.builtin().encode(qwen, messages)
    with pytest.raises(TemplateError, match="nested too deeply"):
        ChatTemplate.builtin().encode(qwen, messages[:1], note=deep)


# Checkpoints


def test_templates_in_a_folder(tmp_path, qwen):
    def words(*tools):
        template = ChatTemplate.from_folder(tmp_path, qwen)
        return template and template.render([Message("user", "x")], tools)

    assert words() is None
    config = tmp_path / "tokenizer_config.json"
    config.write_text("{}")
    assert words() is None
    config.write_text(json.dumps({"chat_template": "one {{ eos_token }}"}))
    assert words() == "one <|im_end|>"
    named = {"default": "two", "tool_use": QWEN_TEMPLATES["qwen3"], "rag": "four"}
    config.write_text(
        json.dumps({"chat_template": [{"name": name, "template": text} for name, text in named.items()]})
    )
    assert words() == "two"
    assert "return a json object" in words(READ_FILE)
    (tmp_path / "chat_template.jinja").write_text("five")
    assert words() == "five"
    assert "return a json object" in words(READ_FILE)
    config.write_text("{")
    with pytest.raises(CheckpointError, match="can't be read"):
        words()


def test_the_template_for_tools_serves_conversations_with_tools():
    template = ChatTemplate(CHATML, tool_use=QWEN_TEMPLATES["qwen3"])
    assert template.dialect == "qwen3"
    assert "For each function call, return a json object" in template.render([Message("user", "x")], TOOLS)
    assert "<tools>" not in template.render([Message("user", "x")])


def test_a_template_that_always_wants_tools_keeps_the_system_message():
    source = "{% for tool in tools %}{% endfor %}" + QWEN_TEMPLATES["qwen3"]
    template = ChatTemplate(CHATML, tool_use=source)
    text = template.render([Message("system", "Be brief."), Message("user", "x")], TOOLS)
    assert text.startswith("<|im_start|>system\nBe brief.")
    assert "return a json object" in text


def test_a_template_for_tools_that_speaks_another_syntax_is_passed_over():
    template = ChatTemplate(CHATML, tool_use="{{ tools | tojson }}")
    assert template.dialect == "qwen3_coder"
    assert template.render(WITH_TOOLS, TOOLS) == ChatTemplate(CHATML).render(WITH_TOOLS, TOOLS)
