"""Written conversations as lessons: exactly the assistant's tokens are said, as the engine has them."""

import pytest

from lathe.errors import TemplateError
from lathe.testing import tiny_tokenizer
from lathe.text.chat_template import ChatTemplate
from lathe.text.lessons import lessons
from lathe.types import Message, Tool, ToolCall

SHELL = Tool("bash", "Run a command.", {"type": "object", "properties": {"command": {"type": "string"}}})
CALL = ToolCall("bash", {"command": "ls -l\n"}, "1")
TALK = (
    Message("system", "Be brief."),
    Message("user", "What is here?"),
    Message("assistant", "I look.", (CALL,)),
    Message("tool", "a.py\n<|im_end|>", tool_call_id="1"),
    Message("assistant", "", (CALL, CALL)),
    Message("tool", "a.py", tool_call_id="1"),
    Message("assistant", "\n\nA file, and <|im_end|> in another.\n"),
    Message("user", "Thanks"),
)
# Drops the reasoning of all turns but the last, as Qwen3's does.
FORGETFUL = """{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.reasoning_content is defined and loop.last %}<think>{{ m.reasoning_content }}</think>{% endif %}\
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def said(lesson, tokenizer) -> list[str]:
    """What the assistant says, run by run."""
    runs, before = [], False
    for token_id, is_said in zip(*lesson, strict=True):
        if is_said and not before:
            runs.append([])
        if is_said:
            runs[-1].append(token_id)
        before = is_said
    return [tokenizer.decode(run) for run in runs]


def test_the_mask_covers_the_assistants_tokens_and_its_end_mark(qwen):
    template = ChatTemplate.builtin()
    end = qwen.special_tokens["<|im_end|>"]
    (lesson,) = lessons(template, qwen, TALK, (SHELL,), end_token_ids={end})
    call = (
        "<tool_call>\n<function=bash>\n<parameter=command>\nls -l\n\n</parameter>\n</function>\n</tool_call>"
    )
    assert said(lesson, qwen) == [
        f"I look.\n\n{call}<|im_end|>",
        f"{call}\n{call}<|im_end|>",
        "\n\nA file, and <|im_end|> in another.\n<|im_end|>",
    ]
    # a control token that a message merely quotes is none
    assert lesson.token_ids.count(end) == 7
    assert sum(t == end for t, is_said in zip(*lesson, strict=True) if is_said) == 3


def test_what_was_read_is_what_the_engine_reads(qwen):
    """Up to each reply the ids are those of the prompt; a reply's own newlines don't melt into it."""
    template = ChatTemplate.builtin()
    (lesson,) = lessons(template, qwen, TALK[:7], (SHELL,), end_token_ids={qwen.special_tokens["<|im_end|>"]})
    starts = [
        place for place, is_said in enumerate(lesson.is_said) if is_said and not lesson.is_said[place - 1]
    ]
    for start, num_messages in zip(starts, (2, 4, 6), strict=True):
        assert lesson.token_ids[:start] == template.encode(qwen, TALK[:num_messages], (SHELL,))
    whole = template.render(TALK[:7], (SHELL,), add_generation_prompt=False)
    assert qwen.decode(lesson.token_ids) == whole.removesuffix("\n")


def test_a_template_that_forgets_gives_each_reply_its_own_lesson():
    tokenizer, template = tiny_tokenizer(), ChatTemplate(FORGETFUL)
    talk = (
        Message("user", "1"),
        Message("assistant", "one", reasoning="hm"),
        Message("user", "2"),
        Message("assistant", "two", reasoning="so"),
    )
    first, second = lessons(template, tokenizer, talk, end_token_ids={258})
    assert said(first, tokenizer) == ["<think>hm</think>one<|im_end|>"]
    assert said(second, tokenizer) == ["<think>so</think>two<|im_end|>"]
    assert "hm" not in tokenizer.decode(second.token_ids)


def test_nobody_speaks():
    tokenizer = tiny_tokenizer()
    assert lessons(ChatTemplate.builtin(), tokenizer, TALK[:2], end_token_ids={258}) == []


def test_a_turn_without_an_end_is_refused():
    template = ChatTemplate("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
                            "{% if add_generation_prompt %}assistant: {% endif %}")  # fmt: skip
    with pytest.raises(TemplateError, match="turn 3 has no end"):
        lessons(
            template, tiny_tokenizer(), (TALK[0], TALK[1], Message("assistant", "x")), end_token_ids={258}
        )
