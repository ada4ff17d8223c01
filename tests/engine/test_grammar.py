"""Masks over Qwen's own vocabulary, and a matcher's life inside the engine."""

import json
import random
import threading

import jsonschema_rs
import pytest
import torch

from lathe.engine.engine import Engine, EngineConfig
from lathe.engine.grammar import MAX_COMPILED, Grammars
from lathe.engine.kv_cache import bytes_per_token
from lathe.engine.llm import LLM
from lathe.engine.sampler import sample
from lathe.engine.sequence import Sequence
from lathe.errors import GrammarError, InvalidRequest
from lathe.testing import tiny_tokenizer
from lathe.text.byte_level import BYTE_TO_CHAR, SpecialToken, Vocabulary
from lathe.text.chat_template import ChatTemplate
from lathe.text.schema_grammar import json_grammar
from lathe.text.tokenizer import Tokenizer
from lathe.types import Grammar, SamplingParams

QWEN_ROWS = 151_936  # of Qwen3's embedding; its vocabulary has 151,669 tokens
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "likes": {"type": "array", "items": {"enum": ["tea", "coffee"]}, "maxItems": 2},
    },
    "required": ["name", "age", "likes"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def grammars(qwen) -> Grammars:
    return Grammars(qwen, {qwen.special_tokens["<|im_end|>"], qwen.special_tokens["<|endoftext|>"]})


def one(matcher, **sampling) -> Sequence:
    return Sequence((0,), SamplingParams(**sampling), 1000, lambda sampled: None, matcher)


def draw(matcher, generator, *, limit=400, rows=QWEN_ROWS, **sampling) -> list[int]:
    """A reply to random logits, all of it."""
    sequence, ids = one(matcher, **sampling), []
    while not matcher.is_complete:
        assert len(ids) < limit
        ids.append(sample(torch.randn(rows, generator=generator) * 3, sequence).token_id)
    return ids


@pytest.mark.parametrize(
    "sampling", [{"temperature": 0.0}, {"seed": 1}, {"seed": 2, "top_k": 2}, {"seed": 3, "top_p": 0.1}]
)
def test_any_logits_give_valid_json(grammars, qwen, sampling):
    grammar, generator = json_grammar(PERSON), torch.Generator().manual_seed(0)
    for _ in range(3):
        ids = draw(grammars.matcher(grammar), generator, **sampling)
        jsonschema_rs.validate(PERSON, json.loads(qwen.decode(ids)))


def test_rows_without_a_token_are_never_drawn(grammars):
    matcher = grammars.matcher(Grammar("regex", "[a-z]{3}"))
    logits_V = torch.zeros(QWEN_ROWS)
    logits_V[151_669:] = 100.0
    assert sample(logits_V, one(matcher, temperature=0.0)).token_id < 151_669
    assert not matcher.allowed(QWEN_ROWS)[151_669:].any()


def test_a_vocabulary_may_have_more_tokens_than_the_model_has_rows(grammars):
    assert len(grammars.matcher(Grammar("regex", "[a-z]{3}")).allowed(500)) == 500


def test_log_probabilities_are_those_of_the_raw_logits(grammars):
    logits_V = torch.randn(QWEN_ROWS)
    token = sample(logits_V, one(grammars.matcher(json_grammar(PERSON)), temperature=0.0, logprobs=1))
    raw = logits_V.log_softmax(-1)
    assert token.logprob == pytest.approx(float(raw[token.token_id]), abs=1e-4)
    assert token.top[0][0] == int(raw.argmax())


def test_the_turn_may_end_exactly_where_the_grammar_may(grammars, qwen):
    ends = [qwen.special_tokens[name] for name in ("<|im_end|>", "<|endoftext|>")]
    matcher = grammars.matcher(Grammar("regex", "(ab)*"))
    for count in range(5):
        allowed_V = matcher.allowed(QWEN_ROWS)
        assert matcher.may_end == (count % 2 == 0)
        assert [bool(allowed_V[id]) for id in ends] == [count % 2 == 0] * 2
        matcher.accept(qwen.encode("ab"[count % 2])[0])
    assert not matcher.is_complete
    matcher.accept(qwen.encode("b")[0])
    matcher.accept(ends[0])
    assert matcher.is_complete


def test_control_tokens_are_no_text(grammars, qwen):
    allowed_V = grammars.matcher(Grammar("regex", r"(?s:.*)")).allowed(QWEN_ROWS)
    for token in qwen.vocabulary.special:
        is_end = token.text in ("<|im_end|>", "<|endoftext|>")
        assert bool(allowed_V[token.id]) == (is_end or not token.special), token
    assert allowed_V.sum() > 151_000


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>\n<function=read_file>\n",
        '{"city": "Reykjavík"}',
        "cafe\u0301 <|im_end|>",
        "日本語 \x00 😀",
    ],
)
def test_forced_text_has_the_tokens_that_the_model_knows(grammars, qwen, text):
    matcher = grammars.matcher(Grammar("lark", f"start: {json.dumps(text)}"))
    ids = draw(matcher, torch.Generator().manual_seed(0), temperature=0.0)
    assert qwen.decode(ids) == text
    if (
        "|" not in text and "\u0301" not in text
    ):  # text that looks like a control token, and what NFC would change
        assert ids == qwen.encode(text, allow_special=True)


def test_a_matcher_goes_back(grammars, qwen):
    matcher = grammars.matcher(json_grammar(PERSON))
    ids = qwen.encode('{"name": "Ada", "age": 36, "likes": ["tea"]}')
    masks = []
    for token_id in ids:
        masks.append(matcher.allowed(QWEN_ROWS))
        matcher.accept(token_id)
    assert matcher.is_complete
    for count in (1, 3, len(ids)):
        matcher.rollback(count)
        assert torch.equal(matcher.allowed(QWEN_ROWS), masks[len(ids) - count])
        for token_id in ids[len(ids) - count :]:
            matcher.accept(token_id)
    with pytest.raises(GrammarError):
        matcher.rollback(len(ids) + 1)


def test_a_token_that_is_not_allowed_changes_nothing(grammars, qwen):
    matcher = grammars.matcher(json_grammar(PERSON))
    before = matcher.allowed(QWEN_ROWS)
    with pytest.raises(GrammarError, match="does not allow token"):
        matcher.accept(qwen.encode("Sure")[0])
    assert torch.equal(matcher.allowed(QWEN_ROWS), before)


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        (Grammar("regex", "(["), "unclosed"),
        (Grammar("lark", "begin: /a/"), "start"),
        (Grammar("lark", 'start: "a" &'), "can't be imposed"),
        (Grammar("json_schema", "{"), "no JSON"),
        (Grammar("json_schema", "[1]"), "a schema is an object"),
        (Grammar("json_schema", '{"type": "strin"}'), "Invalid type"),
        (Grammar("json_schema", '{"$ref": "#"}'), "can't be imposed"),
        (Grammar("json_schema", "[" * 100_000), "no JSON"),
        (Grammar("lark", "start: /a/" + " " * 1_000_000), "characters"),
    ],
)
def test_what_can_not_be_compiled_is_said(grammars, grammar, words):
    with pytest.raises(GrammarError, match=words):
        grammars.matcher(grammar)


def test_a_schema_may_be_given_as_it_is(grammars, qwen):
    matcher = grammars.matcher(Grammar("json_schema", json.dumps(PERSON)))
    ids = draw(matcher, torch.Generator().manual_seed(1), temperature=0.0)
    jsonschema_rs.validate(PERSON, json.loads(qwen.decode(ids)))


def test_many_threads_ask_for_many_grammars():
    tokenizer = tiny_tokenizer()
    grammars = Grammars(tokenizer, {tokenizer.special_tokens["<|im_end|>"]})
    failures = []

    def ask(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(100):
            word = f"w{rng.randrange(2 * MAX_COMPILED)}"
            try:
                matcher = grammars.matcher(Grammar("regex", word))
                for byte in word.encode():
                    matcher.accept(byte)
                assert matcher.is_complete
            except BaseException as error:
                failures.append(error)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures
    assert len(grammars._compiled) == MAX_COMPILED


# In the engine, on a model of random weights over single bytes


@pytest.fixture
def llm(tiny_model):
    tokenizer = tiny_tokenizer()
    memory = bytes_per_token(tiny_model.config, torch.float32) * 320  # two such replies and no more
    engine = Engine(
        tiny_model,
        eos_token_ids=(tokenizer.special_tokens["<|im_end|>"],),
        config=EngineConfig(kv_memory_bytes=memory),
    )
    with LLM.from_parts(
        engine=engine, tokenizer=tokenizer, template=ChatTemplate.builtin(), model_id="tiny"
    ) as llm:
        yield llm


LONG = json_grammar({"type": "array", "items": {"enum": ["tea", "coffee"]}, "minItems": 12, "maxItems": 12})


def test_who_gives_way_goes_on_where_it_was(llm):
    prompts = [f"{number}" for number in range(5)]
    sampling = SamplingParams(seed=7, grammar=LONG, max_tokens=250)
    alone = [llm.generate(prompt, sampling=sampling) for prompt in prompts]
    given_way = []
    give_way = llm.engine.scheduler.give_way
    llm.engine.scheduler.give_way = lambda sequence: (given_way.append(sequence), give_way(sequence))
    together = llm.generate_many(prompts, sampling=sampling)
    assert given_way
    assert [reply.token_ids for reply in together] == [reply.token_ids for reply in alone]
    for reply in together:
        assert len(json.loads(reply.message.content)) == 12
        assert reply.finish_reason == "stop"


def test_guesses_keep_to_the_grammar(tiny_model):
    tokenizer = tiny_tokenizer()
    ends = (tokenizer.special_tokens["<|im_end|>"],)
    replies, accepted = {}, {}
    for max_drafts in (0, 7):
        engine = Engine(
            tiny_model, eos_token_ids=ends, config=EngineConfig(kv_memory_bytes=2**22, max_drafts=max_drafts)
        )
        with LLM.from_parts(
            engine=engine, tokenizer=tokenizer, template=ChatTemplate.builtin(), model_id="tiny"
        ) as llm:
            prompt = '["tea","coffee","tea","coffee",'  # and more of the same follows
            samplings = [SamplingParams(temperature=0.0, grammar=LONG), SamplingParams(seed=3, grammar=LONG)]
            replies[max_drafts] = [llm.generate(prompt, sampling=one) for one in samplings]
        accepted[max_drafts] = engine.gate.num_accepted
    assert accepted[7] > 10 > accepted[0] == 0
    assert [one.token_ids for one in replies[7]] == [one.token_ids for one in replies[0]]
    for reply in replies[7]:
        assert len(json.loads(reply.message.content)) == 12


def test_a_reply_ends_with_its_grammar_whatever_else_was_asked(llm):
    grammar = Grammar("regex", "yes|no")
    for options in ({}, {"ignore_eos": True}, {"max_tokens": 3}, {"temperature": 0.0}):
        reply = llm.generate("?", grammar=grammar, **options)
        assert reply.message.content in ("yes", "no")
        assert reply.finish_reason == "stop"
    cut = llm.generate("?", grammar=Grammar("regex", "(yes){9}"), max_tokens=4)
    assert (cut.message.content, cut.finish_reason) == ("yesy", "length")


def test_a_dead_end_is_one_replys_error(tiny_model):
    tokenizer = Tokenizer(
        Vocabulary(
            tokens={BYTE_TO_CHAR[byte]: byte for byte in range(256) if byte != ord("z")},
            merges=[],
            special=(SpecialToken(256, "<|im_end|>"),),
            pre_tokenizer={"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False},
            eos_token="<|im_end|>",
        )
    )
    engine = Engine(tiny_model, eos_token_ids=(256,), config=EngineConfig(kv_memory_bytes=2**22))
    with LLM.from_parts(
        engine=engine, tokenizer=tokenizer, template=ChatTemplate.builtin(), model_id="tiny"
    ) as llm:
        other = llm.stream_generate("?", temperature=0.0, max_tokens=30)
        next(other)
        with pytest.raises(GrammarError, match="can't go on"):
            llm.generate("?", grammar=Grammar("regex", "[ab]z"))
        assert [chunk.completion for chunk in other][-1].finish_reason == "length"


def test_a_grammar_without_its_matcher_is_refused(llm):
    sampling = SamplingParams(grammar=LONG)
    with pytest.raises(InvalidRequest, match="matcher"):
        llm.engine.submit((1, 2), sampling, lambda sampled: None)
