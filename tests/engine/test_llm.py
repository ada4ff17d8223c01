"""The whole library on real weights (SmolLM2) and on scripted words."""

import asyncio
import json
import random
import time
from pathlib import Path

import pytest

from lathe import LLM
from lathe.engine.engine import EngineConfig
from lathe.errors import InvalidRequest, ModelNotFound, PromptTooLong
from lathe.testing import ScriptedModel
from lathe.text.chat_template import ChatTemplate
from lathe.text.schema_grammar import json_grammar
from lathe.text.tool_grammar import tool_grammar
from lathe.types import Message, SamplingParams, TokensDoNotExtend, Tool, Trajectory

GREEDY = SamplingParams(temperature=0.0, max_tokens=16)
ASK = [{"role": "user", "content": "What is the capital of Germany?"}]


@pytest.fixture(scope="module")
def smollm2():
    with LLM("smollm2", engine_config=EngineConfig(kv_memory_bytes=2**29)) as llm:
        yield llm


def test_real_weights_answer_a_chat(smollm2):
    reply = smollm2.chat(ASK, sampling=GREEDY)
    assert "Berlin" in reply.message.content
    assert reply.finish_reason == "stop"
    assert reply.token_ids[-1] == smollm2.tokenizer.special_tokens["<|im_end|>"]


def test_streaming_and_batches_say_the_same(smollm2):
    questions = [[{"role": "user", "content": f"What is {i} plus {i}?"}] for i in range(2)] + [ASK]
    short = SamplingParams(temperature=0.0, max_tokens=8)
    alone = [smollm2.chat(question, sampling=short).message.content for question in questions]
    together = [c.message.content for c in smollm2.chat_many(questions, sampling=short)]
    assert together == alone
    streamed = "".join(chunk.text for chunk in smollm2.stream_chat(ASK, sampling=short))
    assert streamed == alone[-1]


@pytest.mark.slow
def test_greedy_is_the_same_alone_and_among_31_others(smollm2):
    rng = random.Random(0)
    words = ["python", "sort", "a list", "of numbers", "explain", "closures", "a haiku", "fix this bug"]
    questions = [
        [{"role": "user", "content": " ".join(rng.choices(words, k=rng.randint(3, 40)))}] for _ in range(32)
    ]
    sampling = SamplingParams(temperature=0.0, max_tokens=64)
    together = [reply.token_ids for reply in smollm2.chat_many(questions, sampling=sampling)]
    assert together == [smollm2.chat(question, sampling=sampling).token_ids for question in questions]


def test_real_weights_keep_to_a_schema_and_to_a_tool(smollm2):
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "is_capital": {"type": "boolean"}},
        "required": ["city", "is_capital"],
        "additionalProperties": False,
    }
    free = smollm2.chat(ASK, temperature=0.0, max_tokens=1).message.content
    assert not free.startswith("{")
    reply = smollm2.chat(ASK, sampling=GREEDY, grammar=json_grammar(schema), max_tokens=60)
    assert reply.finish_reason == "stop"
    answer = json.loads(reply.message.content)
    assert answer.keys() == {"city", "is_capital"}
    assert "Berlin" in answer["city"]

    look_up = Tool("look_up", "", {"type": "object", "properties": {"city": schema["properties"]["city"]}})
    grammar = tool_grammar([look_up], smollm2.template.dialect, name="look_up")
    reply = smollm2.chat(ASK, [look_up], sampling=GREEDY, grammar=grammar, max_tokens=60)
    assert reply.finish_reason == "tool_calls"
    assert [call.name for call in reply.message.tool_calls] == ["look_up"]


def test_raw_text_is_continued(smollm2):
    reply = smollm2.generate("def add(a, b):\n    return", temperature=0.0, max_tokens=4)
    assert reply.message.content.startswith(" a + b")
    ids = smollm2.tokenizer.encode("def add(a, b):\n    return")
    assert smollm2.generate(ids, temperature=0.0, max_tokens=4).token_ids == reply.token_ids


def test_n_replies_and_their_seeds(smollm2):
    def ask():
        return smollm2.chat_many([ASK, ASK], temperature=1.5, seed=3, n=2, max_tokens=6)

    replies = [reply.token_ids for reply in ask()]
    assert replies == [reply.token_ids for reply in ask()]
    assert replies[:2] == replies[2:]
    assert len(set(replies)) > 1
    with pytest.raises(InvalidRequest, match="chat_many"):
        smollm2.chat(ASK, n=2)


def test_a_conversation_goes_on_from_its_tokens(smollm2):
    async def talk():
        talk = Trajectory((Message("user", "Name a colour."),))
        for _ in range(3):
            completion = await smollm2.complete(talk, SamplingParams(temperature=0.9, seed=1, max_tokens=8))
            assert completion.prompt_token_ids[: len(talk.token_ids)] == talk.token_ids
            talk = talk.extend(completion).add(Message("user", "Another one?"))
        return talk

    talk = asyncio.run(talk())
    assert sum(talk.loss_mask) == sum(p != 0.0 for p in talk.logprobs)
    assert len(talk.token_ids) == len(talk.loss_mask) == len(talk.logprobs)
    # Turns that were not cut read exactly as the template writes them.
    text = smollm2.tokenizer.decode(talk.token_ids)
    assert text.count("<|im_start|>assistant\n") == text.count("Another one?") + 1 == 3


def test_sampled_tokens_are_never_made_from_text_again():
    """The tiny tokenizer has one way to write a text; a trajectory may hold another, and keeps it."""
    model = ScriptedModel("first", "second")
    talk = Trajectory((Message("user", "a"),))

    async def turns():
        nonlocal talk
        talk = talk.extend(await model.complete(talk))
        spelled_otherwise = tuple(
            model.tokenizer.special_tokens["<think>"] if mask and place % 2 else token_id
            for place, (token_id, mask) in enumerate(zip(talk.token_ids, talk.loss_mask, strict=True))
        )
        spelled_otherwise = (*spelled_otherwise[:-1], talk.token_ids[-1])
        talk = Trajectory(
            talk.messages, token_ids=spelled_otherwise, loss_mask=talk.loss_mask, logprobs=talk.logprobs
        )
        talk = talk.add(Message("user", "b"))
        return await model.complete(talk)

    completion = asyncio.run(turns())
    assert talk.extend(completion).token_ids[: len(talk.token_ids)] == talk.token_ids
    tail = model.tokenizer.decode(completion.prompt_token_ids[len(talk.token_ids) :])
    assert tail == "\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n"
    with pytest.raises(TokensDoNotExtend):
        Trajectory(talk.messages, token_ids=(1, 2, 3)).extend(completion)


def test_closing_a_stream_frees_its_pages(smollm2):
    async def leave():
        chunks = smollm2.stream(Trajectory((Message("user", "Tell me a long story."),)))
        await anext(chunks)
        await chunks.aclose()

    asyncio.run(leave())
    pool = smollm2.engine.pool
    deadline = time.monotonic() + 5
    while pool.num_free < pool.num_pages and time.monotonic() < deadline:
        time.sleep(0.001)
    assert pool.num_free == pool.num_pages


def test_a_stop_string_frees_its_pages(smollm2):
    reply = smollm2.generate("1, 2, 3,", temperature=0.0, stop=" 6", max_tokens=500)
    assert reply.message.content == " 4, 5,"
    assert reply.finish_reason == "stop"
    assert smollm2.engine.scheduler.has_work is False or smollm2.engine.num_running <= 1


def test_logprobs_are_those_of_the_model(smollm2):
    reply = smollm2.chat(ASK, temperature=0.0, logprobs=5, max_tokens=4)
    for entry in reply.logprobs:
        assert len(entry.top) == 5
        assert entry.top[0] == (entry.token_id, pytest.approx(entry.logprob, abs=1e-5))
        assert all(a[1] >= b[1] for a, b in zip(entry.top, entry.top[1:], strict=False))


def test_calls_are_read_only_where_tools_were_offered():
    words = "<tool_call>\n<function=ls>\n</function>\n</tool_call>"
    model = ScriptedModel(words, words)
    with_tools = model.chat(ASK, tools=[Tool("ls")])
    assert [call.name for call in with_tools.message.tool_calls] == ["ls"]
    assert with_tools.finish_reason == "tool_calls"
    without = model.chat(ASK)
    assert without.message.content == words
    assert without.finish_reason == "stop"


def test_mistakes_are_named(smollm2):
    with pytest.raises(PromptTooLong, match="maximum context length"):
        smollm2.chat([{"role": "user", "content": "word " * 9000}])
    with pytest.raises(InvalidRequest, match="temprature"):
        smollm2.chat(ASK, temprature=0)
    with pytest.raises(InvalidRequest, match="role"):
        smollm2.chat([{"role": "wizard", "content": "hi"}])
    with pytest.raises(InvalidRequest, match="image"):
        smollm2.chat([{"role": "user", "content": [{"type": "image_url"}]}])
    with pytest.raises(InvalidRequest, match="outside the model"):
        smollm2.generate([10**6])
    with pytest.raises(ModelNotFound):
        LLM("smolm2")


TEMPLATES = Path(__file__).parent.parent / "text" / "templates"
CALLING = '<think>\nThe clock.\n</think>\n\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


def thinker(*replies):
    template = ChatTemplate((TEMPLATES / "qwen3.jinja").read_text(encoding="utf-8"))
    return ScriptedModel(*replies, template=template)


def test_thoughts_stay_while_tools_are_called():
    """Until the next question Qwen3's template repeats what was thought, so the tokens go on."""
    model = thinker(CALLING, "<think>\nI see.\n</think>\n\nTuesday.")

    async def turns():
        talk = Trajectory((Message("user", "What day is it?"),), (Tool("now"),))
        talk = talk.extend(await model.complete(talk))
        assert talk.messages[-1].reasoning == "The clock."
        (call,) = talk.messages[-1].tool_calls
        talk = talk.add(Message("tool", "Tuesday", tool_call_id=call.id))
        return talk, await model.complete(talk)

    talk, completion = asyncio.run(turns())
    assert talk.extend(completion).token_ids[: len(talk.token_ids)] == talk.token_ids
    assert "<think>\nThe clock.\n</think>" in model.tokenizer.decode(completion.prompt_token_ids)


@pytest.mark.parametrize(
    ("reply", "options"),
    [
        ("<think>\nHm.\n</think>\n\nYes.", {}),
        ("<think>\n\n</think>\n\nYes.", {}),
        ("Yes.", {"enable_thinking": False}),
    ],
)
def test_a_template_that_forgets_thoughts_gives_another_prompt(reply, options):
    model = thinker(reply, "No.")

    async def turns():
        talk = Trajectory((Message("user", "Is it?"),), template_kwargs=options)
        talk = talk.extend(await model.complete(talk)).add(Message("user", "Really?"))
        return talk, await model.complete(talk)

    talk, completion = asyncio.run(turns())
    assert completion.prompt_token_ids == tuple(
        model.template.encode(model.tokenizer, talk.messages, **options)
    )
    assert "think" not in model.tokenizer.decode(completion.prompt_token_ids).partition("Really?")[0]
    with pytest.raises(TokensDoNotExtend):
        talk.extend(completion)


def test_raw_text_is_not_split_into_thought_and_answer():
    words = "<think>\nHm.\n</think>\n\nYes."
    model = thinker(words, words)
    assert model.generate("Is it?").message == Message("assistant", words)
    assert model.chat(ASK).message == Message("assistant", "Yes.", reasoning="Hm.")
