import pytest
from hypothesis import given
from hypothesis import strategies as st

from lathe.engine.reply import Reply, StopStrings
from lathe.engine.sequence import Sampled
from lathe.testing import tiny_tokenizer
from lathe.text.reasoning import ReasoningParser
from lathe.text.tool_calls import Reasoning, ToolCallParser
from lathe.types import Message, SamplingParams, TokenLogprob, Tool

TOKENIZER = tiny_tokenizer()
END = TOKENIZER.special_tokens["<|im_end|>"]
SHELL = Tool("bash", "", {"type": "object", "properties": {"command": {"type": "string"}}})
CALL = "<tool_call>\n<function=bash>\n<parameter=command>\nls\n</parameter>\n</function>\n</tool_call>"


def read(text, *, tools=(), reasoning=None, end=True, last="stop", versions=None, **options):
    """The chunks of a reply that says these words."""
    reply = Reply(
        0,
        TOKENIZER,
        SamplingParams(**options),
        prompt_token_ids=(1, 2),
        eos_token_ids=frozenset({END}),
        parser=ToolCallParser(tools, "qwen3_coder") if tools else None,
        reasoning=reasoning,
    )
    ids = TOKENIZER.encode(text, allow_special=True) + [END] * end
    chunks = []
    for place, token_id in enumerate(ids):
        reason = last if place + 1 == len(ids) else None
        version = versions[place] if versions else 0
        chunks.append(reply.push(Sampled(TokenLogprob(token_id, -0.5), reason, weights_version=version)))
        if reply.ended:
            break
    return chunks, ids


@given(
    st.text(alphabet="abc<>é漢🙂", max_size=20),
    st.lists(st.text("abcé漢", min_size=1, max_size=3), max_size=3),
)
def test_a_stop_string_ends_the_text_before_it(text, stops):
    chunks, _ = read(text, stop=tuple(stops))
    places = [text.find(stop) for stop in stops if stop in text]
    wanted = text[: min(places)] if places else text
    # Of stop strings that overlap, the one that is complete first ends the reply.
    said = "".join(chunk.text for chunk in chunks)
    assert said == chunks[-1].completion.message.content
    assert said == wanted or (len(places) > 1 and text.startswith(said))
    assert chunks[-1].completion.finish_reason == "stop"
    ended_by = chunks[-1].completion.stop_string
    assert (ended_by is None) == (said == text)
    assert ended_by is None or (ended_by in stops and text.startswith(said + ended_by))


@given(st.text("ab", max_size=30), st.sampled_from(["ab", "aab", "abab", "bbb"]))
def test_stop_strings_hold_back_no_more_than_their_beginning(text, stop):
    stops, said = StopStrings((stop,)), ""
    for place, char in enumerate(text):
        said += stops.feed(char)
        if stops.found:
            break
        held = text[len(said) : place + 1]
        assert stop.startswith(held)
    assert said + ("" if stops.found else stops.finish()) == text.split(stop)[0]


def test_the_tokens_are_those_that_were_sampled_to_the_end():
    chunks, ids = read("hello", end=True)
    completion = chunks[-1].completion
    assert completion.token_ids == tuple(ids)
    assert completion.prompt_token_ids == (1, 2)
    assert completion.message.content == "hello"
    assert [entry.token_id for entry in completion.logprobs] == ids
    assert all(chunk.completion is None for chunk in chunks[:-1])


def test_after_a_stop_string_nothing_is_kept():
    chunks, ids = read("hello END and more", stop=("END",))
    assert chunks[-1].completion.token_ids == tuple(ids[: len("hello END")])


def test_characters_arrive_whole():
    chunks, _ = read("a漢🙂b")
    assert [chunk.text for chunk in chunks if chunk.text] == ["a", "漢", "🙂", "b"]


def test_half_a_character_at_the_end_is_shown_as_lost():
    chunks, _ = read("🙂", end=False, last="length")
    reply = chunks[-1].completion
    assert (reply.message.content, reply.finish_reason) == ("🙂", "length")


@pytest.mark.parametrize(("last", "reason"), [("stop", "tool_calls"), ("length", "length")])
def test_a_call_is_reported_with_an_honest_reason(last, reason):
    chunks, _ = read("Look:\n" + CALL, tools=(SHELL,), last=last)
    completion = chunks[-1].completion
    assert completion.finish_reason == reason
    assert completion.message.content == "Look:"
    assert [(call.name, call.arguments) for call in completion.message.tool_calls] == [
        ("bash", {"command": "ls"})
    ]


def test_a_cut_call_is_no_call():
    chunks, _ = read(CALL[:-30], tools=(SHELL,), end=False, last="length")
    completion = chunks[-1].completion
    assert completion.finish_reason == "length"
    assert completion.message.tool_calls == ()


def test_without_tools_tags_are_text():
    chunks, _ = read(CALL)
    assert chunks[-1].completion.message.content == CALL
    assert chunks[-1].completion.finish_reason == "stop"


def test_control_tokens_in_the_middle_are_not_shown():
    chunks, _ = read("a<|im_start|>b")
    assert chunks[-1].completion.message.content == "ab"


# Thoughts

THOUGHT = "<think>\nLet me see.\n</think>\n\n"


def test_a_thought_is_no_content():
    chunks, _ = read(THOUGHT + "Yes.", reasoning=ReasoningParser())
    completion = chunks[-1].completion
    assert (completion.message.reasoning, completion.message.content) == ("Let me see.", "Yes.")
    events = [event for chunk in chunks for event in chunk.events]
    assert "".join(event.text for event in events if isinstance(event, Reasoning)) == "Let me see."
    assert "".join(chunk.text for chunk in chunks) == "Yes."
    assert completion.num_reasoning_tokens == len("<\nLet me see.\n>"), "each tag is one token here"


def test_a_reply_without_a_thought_has_none():
    for reasoning in (ReasoningParser(), None):
        completion = read("Yes.", reasoning=reasoning)[0][-1].completion
        assert completion.message.reasoning is None
        assert completion.num_reasoning_tokens == 0


def test_whoever_does_not_think_may_speak_of_tags():
    text = "<think>\nis a tag.\n</think>\n"
    assert read(text)[0][-1].completion.message == Message("assistant", text)


@pytest.mark.parametrize("num_tokens", range(1, 14))
def test_a_cut_thought_is_all_of_the_reply(num_tokens):
    text = "Let me see.\n</think>\n\nYes."[:num_tokens]
    chunks, _ = read(text, reasoning=ReasoningParser(starts_inside=True), end=False, last="length")
    completion = chunks[-1].completion
    assert completion.finish_reason == "length"
    assert (completion.message.reasoning, completion.message.content) == (text.rstrip("\n"), "")
    assert completion.num_reasoning_tokens == len(completion.token_ids) == num_tokens


def test_a_turn_that_ends_in_its_thought_says_nothing():
    completion = read("Hm", reasoning=ReasoningParser(starts_inside=True))[0][-1].completion
    assert completion.message == Message("assistant", "", reasoning="Hm")
    assert completion.num_reasoning_tokens == 2, "the end mark is no thought"


def test_stop_strings_wait_for_the_answer():
    text = "<think>\nEND? No END yet.\n\n</think>\n\nYes. END of it."
    completion = read(text, stop=("END", "\n\n"), reasoning=ReasoningParser())[0][-1].completion
    assert completion.message == Message("assistant", "Yes. ", reasoning="END? No END yet.")
    assert completion.finish_reason == "stop"


def test_a_call_in_a_thought_is_a_thought():
    text = f"<think>\nI could call\n{CALL}\n</think>\n\nNow:\n{CALL}"
    completion = read(text, tools=(SHELL,), reasoning=ReasoningParser())[0][-1].completion
    assert completion.message.reasoning == f"I could call\n{CALL}"
    assert completion.message.content == "Now:"
    assert [call.arguments for call in completion.message.tool_calls] == [{"command": "ls"}]
    assert completion.finish_reason == "tool_calls"


# A turn that ends inside a call


def test_a_turn_that_ends_behind_a_value_has_made_its_call():
    completion = read(CALL.partition("</function>")[0], tools=(SHELL,))[0][-1].completion
    assert [call.arguments for call in completion.message.tool_calls] == [{"command": "ls"}]
    assert (completion.message.content, completion.finish_reason) == ("", "tool_calls")


def test_a_turn_that_ends_in_a_value_has_made_none_and_loses_no_word():
    words = "Look:\n\n" + CALL.partition("s\n</parameter>")[0]
    chunks, _ = read(words, tools=(SHELL,))
    completion = chunks[-1].completion
    assert completion.message == Message("assistant", words)
    assert completion.finish_reason == "stop"
    assert "".join(chunk.text for chunk in chunks) == words, "a stream says the same"


@pytest.mark.parametrize(
    ("options", "reason"), [({"stop": ("</function",)}, "stop"), ({"last": "length"}, "length")]
)
def test_what_cuts_a_reply_ends_no_turn(options, reason):
    words = CALL if "stop" in options else CALL.partition("</function>")[0]
    chunks, _ = read(words, tools=(SHELL,), end=False, **options)
    completion = chunks[-1].completion
    assert completion.message == Message("assistant")
    assert completion.finish_reason == reason


def test_a_reply_says_where_newer_weights_took_over():
    chunks, _ = read("abcd", versions=(3, 3, 5, 5, 8))
    completion = chunks[-1].completion
    assert (completion.weights_version, completion.weights_updates) == (3, ((2, 5), (4, 8)))
    assert [chunk.weights_version for chunk in chunks] == [3, 3, 5, 5, 8]
    assert read("abcd")[0][-1].completion.weights_updates == ()
