"""Thoughts and answers, whole, in pieces of every size, and cut at every character."""

import re
import time
from itertools import pairwise

import pytest
from conversations import QWEN_TEMPLATES, THINKING_2507
from hypothesis import given
from hypothesis import strategies as st

from lathe.text.chat_template import ChatTemplate
from lathe.text.reasoning import ReasoningParser, parser_after
from lathe.types import Message

# name: (does the reply begin inside, the reply, its thought, its answer)
CASES = {
    "a thought and an answer": (False, "<think>\nHm.\n</think>\n\nHi!", "Hm.", "Hi!"),
    "the prompt has opened the thought": (True, "Hm.\n</think>\n\nHi!", "Hm.", "Hi!"),
    "the prompt has, and the reply does it again": (True, "\n<think>\nHm.\n</think>\n\nHi!", "Hm.", "Hi!"),
    "no newlines": (False, "<think>Hm.</think>Hi!", "Hm.", "Hi!"),
    "newlines inside are the texts' own": (
        False,
        "<think>\n\n a\n\n b \n\n\n</think>\n\n\n  1\n\n2\n\n",
        " a\n\n b ",
        "  1\n\n2\n\n",
    ),
    "white space before": (False, " \n<think>\nHm.\n</think>\nHi!", "Hm.", "Hi!"),
    "an empty thought": (False, "<think>\n\n</think>\n\nHi!", "", "Hi!"),
    "no thought": (False, "\n Hi <think>!</think>\n", "", "\n Hi <think>!</think>\n"),
    "nothing at all": (False, "", "", ""),
    "nothing but space": (False, " \n", "", " \n"),
    "almost a thought": (False, "<thing> and </think>", "", "<thing> and </think>"),
    "no answer": (False, "<think>\nHm.\n</think>\n\n", "Hm.", ""),
    "never closed": (False, "<think>\nHm.\n</thin", "Hm.\n</thin", ""),
    "never closed, and begun by the prompt": (True, "Hm.\n\nSo", "Hm.\n\nSo", ""),
    "tags that almost close": (False, "<think>a </thin> < </ think></think>d", "a </thin> < </ think>", "d"),
    "closed twice": (False, "<think>a</think>\n</think>\n\nb </think>", "a", "b </think>"),
    "opened twice": (False, "<think>a <think> b</think>c", "a <think> b", "c"),
    "a call that is drafted and then made": (
        False,
        "<think>\n<tool_call>\n{}\n</tool_call>\n</think>\n\n<tool_call>\n{}\n</tool_call>",
        "<tool_call>\n{}\n</tool_call>",
        "<tool_call>\n{}\n</tool_call>",
    ),
}  # fmt: skip
every_case = pytest.mark.parametrize(("inside", "text", "thought", "answer"), CASES.values(), ids=CASES)


def read(inside: bool, pieces: list[str]) -> tuple[str, str]:
    parser = ReasoningParser(starts_inside=inside)
    settled = [parser.feed(piece) for piece in pieces] + [parser.finish()]
    return "".join(thought for thought, _ in settled), "".join(answer for _, answer in settled)


@every_case
def test_a_reply_is_split(inside, text, thought, answer):
    assert read(inside, [text]) == (thought, answer)


@every_case
def test_pieces_change_nothing(inside, text, thought, answer):
    for size in range(1, 10):
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        assert read(inside, pieces) == (thought, answer), size
    for at in range(len(text)):
        assert read(inside, [text[:at], text[at:]]) == (thought, answer), at


@every_case
def test_a_reply_that_is_cut_has_thought_or_said_what_it_had_so_far(inside, text, thought, answer):
    for end in range(len(text)):
        cut_thought, cut_answer = read(inside, [text[:end]])
        if re.search("<(t(h(i(nk?)?)?)?|/(t(h(i(nk?)?)?)?)?)?$", text[:end]):
            continue  # a tag that is cut is text: nobody can know better
        assert thought.startswith(cut_thought), text[:end]
        if "</think>" not in text[:end] and (inside or text[:end].lstrip().startswith("<think>")):
            assert cut_answer == ""
        else:
            assert answer.startswith(cut_answer) or text[:end].isspace(), text[:end]


TEXT = st.text("<>/think\n x", max_size=30)


@given(TEXT, TEXT, st.booleans(), st.lists(st.integers(0, 90), max_size=5))
def test_what_a_template_writes_is_read_back(thought, answer, inside, cuts):
    thought, answer = thought.strip("\n").replace("</think>", ""), answer.lstrip("\n").replace("</think>", "")
    text = f"{'' if inside else '<think>'}\n{thought}\n</think>\n\n{answer}"
    edges = [0, *sorted(min(edge, len(text)) for edge in cuts), len(text)]
    pieces = [text[start:end] for start, end in pairwise(edges)]
    if not (inside and thought.lstrip().startswith("<think>")):
        assert read(inside, pieces) == (thought.strip("\n"), answer)
    assert read(inside, pieces) == read(inside, [text])


def test_a_thought_leaves_while_it_arrives():
    parser = ReasoningParser()
    said = [
        parser.feed(piece)[0]
        for piece in ("<think>", "\n", "One", " two", "\n", "\nthree", "</th", "e", "</think>")
    ]
    assert said == ["", "", "One", " two", "", "\n\nthree", "", "</the", ""]
    assert parser.feed("\n\nYes") == ("", "Yes")


@pytest.mark.parametrize("text", ["\n", "<", "</think", "word ", " "])
def test_time_is_linear(text):
    def seconds(length: int) -> float:
        parser = ReasoningParser(starts_inside=True)
        started = time.process_time()
        for char in text * (length // len(text)):
            parser.feed(char)
        parser.finish()
        return time.process_time() - started

    once = min(seconds(20_000) for _ in range(3))
    assert any(seconds(80_000) < 8 * once + 0.02 for _ in range(3)), once


# Which templates think, and where their replies begin


def test_which_templates_think():
    thinking = {name for name, source in QWEN_TEMPLATES.items() if ChatTemplate(source).thinks}
    assert thinking == {"qwen3"}
    assert ChatTemplate(THINKING_2507).thinks
    assert not ChatTemplate.builtin().thinks


def test_smollm2_does_not_think(smollm2_metadata):
    assert not ChatTemplate(smollm2_metadata["tokenizer.chat_template"]).thinks


GENERATION = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}"
)


@pytest.mark.parametrize(
    ("source", "thinks"),
    [
        (GENERATION + "assistant: {% endif %}", False),
        (GENERATION + "assistant: <think>\n{% endif %}", True),
        (GENERATION + "{% if enable_thinking is false %}<think></think>{% endif %}{% endif %}", True),
        ("Answer with <think>. " + GENERATION + "assistant: {% endif %}", False),
        ("{{ raise_exception('nothing at all') }}", False),
    ],
)  # fmt: skip
def test_thinking_is_found_by_asking_the_template(source, thinks):
    assert ChatTemplate(source).thinks == thinks


def test_where_a_reply_begins():
    asked = [Message("user", "Is <think> a tag? </think>")]
    hybrid, always = ChatTemplate(QWEN_TEMPLATES["qwen3"]), ChatTemplate(THINKING_2507)
    assert not parser_after(hybrid.render(asked)).inside
    assert parser_after(hybrid.render(asked, enable_thinking=False)) is None
    assert parser_after(always.render(asked)).inside
