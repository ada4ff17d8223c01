"""Another engine in the place of ours: the same ids and log-probabilities, and an end of every failure."""

import threading
import time

import pytest
from serving import serve, wait_until
from tiny_models import random_model, tiny_config
from upstreams import ids_choice, text_choice, upstream_that, words_only

from lathe.engine.engine import Engine, EngineClosed, EngineConfig
from lathe.engine.llm import LLM
from lathe.engine.loading import FALLBACK_SAMPLING
from lathe.engine.upstream import UpstreamEngine, open_upstream
from lathe.engine.upstream_forms import Completions
from lathe.errors import InvalidRequest, PromptTooLong, UpstreamError, UserError
from lathe.testing import ScriptedModel, tiny_tokenizer
from lathe.text.chat_template import ChatTemplate
from lathe.types import Grammar

VOCAB = tiny_tokenizer().vocab_size
END = tiny_tokenizer().eos_token_id
PROMPT = [72, 101, 108, 108, 111]


def direct_llm() -> LLM:
    model = random_model(tiny_config(vocab_size=VOCAB, max_position_embeddings=4096))
    config = EngineConfig(max_num_seqs=8, kv_memory_bytes=2**24)
    return LLM.from_parts(
        engine=Engine(model, eos_token_ids=(END,), config=config),
        tokenizer=tiny_tokenizer(),
        template=ChatTemplate.builtin(),
        model_id="random",
        default_sampling=FALLBACK_SAMPLING,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return words_only(tmp_path_factory.mktemp("model"), VOCAB)


@pytest.fixture(scope="module")
def random():
    """The model itself, and its server's URL."""
    llm = direct_llm()
    with serve(llm) as url:
        yield llm, url


@pytest.fixture
def through(random, folder):
    """The model by way of its server."""
    with open_upstream(folder, random[1]) as llm:
        yield llm


def test_what_is_found(through, random):
    assert through.engine.is_exact
    assert through.max_context == random[0].max_context
    assert "Lathe's completions with token ids" in through.engine.describe()
    assert random[1] in through.engine.describe()


@pytest.mark.parametrize(
    "options",
    [
        dict(temperature=0.0),
        dict(temperature=0.0, logprobs=5),
        dict(temperature=0.9, seed=7, top_k=40, top_p=0.9, min_p=0.01),
        dict(temperature=0.9, seed=-3, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.2),
        dict(temperature=1.0, seed=5, ignore_eos=True, deterministic=True),
    ],
)
def test_the_same_tokens_and_log_probabilities(through, random, options):
    options |= {"max_tokens": 40}
    one, other = random[0].generate(PROMPT, **options), through.generate(PROMPT, **options)
    assert other.token_ids == one.token_ids
    assert [entry.top for entry in other.logprobs] == [entry.top for entry in one.logprobs]
    for ours, theirs in zip(other.logprobs, one.logprobs, strict=True):
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-5)
    assert (other.finish_reason, other.message, other.is_exact) == (one.finish_reason, one.message, True)


def test_ends_are_those_of_the_engine(through, random):
    greedy = random[0].generate(PROMPT, temperature=0.0, max_tokens=20)
    stops = dict(temperature=0.0, max_tokens=20, stop_token_ids=(greedy.token_ids[6],))
    for llm in (random[0], through):
        cut = llm.generate(PROMPT, **stops)
        assert cut.finish_reason == "stop" and cut.token_ids[-1] == greedy.token_ids[6]
        none = llm.generate(PROMPT, max_tokens=0)
        assert (none.finish_reason, none.token_ids) == ("length", ())


def test_several_replies_at_once(through, random):
    prompts = [[40 + place, 41, 42] for place in range(12)]
    options = dict(temperature=0.8, seed=1, max_tokens=15, n=2)
    one, other = (llm.generate_many(prompts, **options) for llm in (random[0], through))
    assert [each.token_ids for each in one] == [each.token_ids for each in other]


def test_the_cached_part_is_counted(through):
    prompt = [65 + place % 26 for place in range(300)]
    through.generate(prompt, max_tokens=1)
    assert through.generate(prompt, max_tokens=3).num_cached_tokens > 200


def test_what_the_upstream_can_not_do_is_refused(through, folder):
    with pytest.raises(InvalidRequest, match="prompt_logprobs"):
        through.generate(PROMPT, prompt_logprobs=0)
    with pytest.raises(InvalidRequest, match="grammar"):
        through.generate(PROMPT, grammar=Grammar("json_schema", "{}"))
    with pytest.raises(PromptTooLong):
        through.generate([65] * through.max_context)
    with (
        upstream_that(lambda body, http: http.stream(ids_choice(72, finish_reason="length"))) as url,
        open_upstream(folder, url) as llm,
        pytest.raises(InvalidRequest, match="deterministic"),
    ):
        llm.generate(PROMPT, deterministic=True)


def test_leaving_cancels_the_upstream(folder):
    scripted = ScriptedModel(*["word " * 2000] * 2, delay_s=0.01)
    with serve(scripted) as url, open_upstream(folder, url) as llm:
        chunks = llm.stream_generate("x")
        next(chunks)
        assert scripted.engine.num_open == 1
        chunks.close()
        assert wait_until(lambda: scripted.engine.num_open == 0)
        assert wait_until(lambda: llm.engine.stats().num_running == 0)


def test_stop_strings_end_the_upstream_too(folder):
    scripted = ScriptedModel(None, "one two three " + "word " * 2000, delay_s=0.002)
    with serve(scripted) as url, open_upstream(folder, url) as llm:
        reply = llm.generate("x", stop=("three",))
        assert (reply.message.content, reply.stop_string) == ("one two ", "three")
        assert wait_until(lambda: scripted.engine.num_open == 0)


def test_an_abort_keeps_what_there_is_and_a_close_is_an_error(folder):
    scripted = ScriptedModel(None, *["word " * 2000] * 2, delay_s=0.005)
    with serve(scripted) as url, open_upstream(folder, url) as llm:
        chunks = llm.stream_generate("x")
        next(chunks)
        llm.engine.abort_all()
        *_, last = chunks
        assert last.completion.finish_reason == "abort" and last.completion.token_ids
        chunks = llm.stream_generate("x")
        next(chunks)
        llm.close()
        with pytest.raises(EngineClosed):
            list(chunks)
        with pytest.raises(EngineClosed):
            llm.generate("x")


# What can go wrong


def after_the_probe(*answers):
    """Speaks well to the probe, and then each answer in turn."""
    waiting = iter(answers)

    def speak(body, http):
        if body["max_tokens"] == 1:
            http.stream(ids_choice(72, finish_reason="length"))
        else:
            next(waiting)(http)

    return speak


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda http: http.answer(500, b'{"error": {"message": "out of memory"}}'), "500.*out of memory"),
        (lambda http: http.answer(404, b'{"detail": "no model x"}'), "404.*no model x"),
        (lambda http: http.answer(503, b"<html>busy"), "503.*busy"),
        (lambda http: http.stream(ids_choice(72)), "before the reply was complete"),
        (lambda http: http.stream(ids_choice(72), b'data: {"error": {"message": "boom"}}\n\n'), "boom"),
        (lambda http: http.stream(b'error: {"code": 500, "message": "boom"}\n\n'), "boom"),
        (lambda http: http.stream(b"data: {nonsense\n\n"), "no JSON"),
        (lambda http: http.stream(b"data: [1]\n\n"), "no JSON object"),
        (lambda http: http.stream(b'data: {"choices": [1]}\n\n'), "could not be read"),
        (lambda http: http.stream(ids_choice(99_999)), "99999.*same model"),
        (lambda http: http.stream(ids_choice(72, finish_reason="tired")), "tired"),
        (lambda http: http.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\ndata: "), "failed"),
    ],
)
def test_a_failing_upstream_ends_the_reply_with_an_error(folder, answer, says):
    with upstream_that(after_the_probe(answer, answer)) as url, open_upstream(folder, url) as llm:
        with pytest.raises(UpstreamError, match=says):
            llm.generate(PROMPT, max_tokens=9)
        assert wait_until(lambda: llm.engine.stats().num_running == 0)


def test_silence_has_an_end():
    done = threading.Event()
    with upstream_that(lambda body, http: done.wait(20)) as url:
        engine = UpstreamEngine(
            url,
            Completions(None, frozenset({END})),
            eos_token_ids=frozenset({END}),
            vocab_size=VOCAB,
            max_context=100,
            timeout_s=0.2,
        )
        with LLM.from_parts(
            engine=engine, tokenizer=tiny_tokenizer(), template=ChatTemplate.builtin(), model_id="m"
        ) as llm:
            started = time.monotonic()
            with pytest.raises(UpstreamError, match="too long"):
                llm.generate(PROMPT)
            assert time.monotonic() - started < 5
        done.set()


def test_a_turn_that_ends_without_its_end_mark(folder):
    """The upstream stops and gives no token for it: the reply has none either."""
    answer = after_the_probe(lambda http: http.stream(ids_choice(72, 105), ids_choice(finish_reason="stop")))
    with upstream_that(answer) as url, open_upstream(folder, url) as llm:
        reply = llm.generate(PROMPT, max_tokens=9)
        assert (reply.token_ids, reply.message.content, reply.finish_reason) == ((72, 105), "Hi", "stop")


def test_text_alone_is_said_to_be_inexact(folder, caplog):
    call = "<tool_call>\n<function=go>\n</function>\n</tool_call>"

    def speak(body, http):
        assert body["max_tokens"] == 1 or "return_token_ids" not in body
        http.stream(text_choice("é 🎈"), text_choice(call), text_choice("", "stop"), b"data: [DONE]\n\n")

    with upstream_that(speak) as url:
        with open_upstream(folder, url) as llm:
            assert not llm.engine.is_exact
            assert "text alone" in caplog.text
            tool = {"type": "function", "function": {"name": "go"}}
            reply = llm.chat([{"role": "user", "content": "x"}], [tool])
            assert reply.message.content == "é 🎈" and reply.message.tool_calls[0].name == "go"
            assert not reply.is_exact
            with pytest.raises(InvalidRequest, match="logprobs"):
                llm.generate(PROMPT, logprobs=1)
        with pytest.raises(UserError, match="--record"):
            open_upstream(folder, url, exact=True)


# What is known at the start


def test_nobody_there(folder):
    with pytest.raises(UserError, match="can't be reached"):
        open_upstream(folder, "http://127.0.0.1:9/v1")
    with pytest.raises(UserError, match="http://"):
        open_upstream(folder, "localhost:8000")


def test_a_wrong_key(folder):
    with serve(ScriptedModel(), api_key="secret") as url:
        with pytest.raises(UserError, match="--upstream-key"):
            open_upstream(folder, url)
        with open_upstream(folder, f"{url}/v1/", api_key="secret") as llm:
            assert llm.generate("x").finish_reason == "stop"


def test_a_model_that_is_not_there(folder):
    with serve(ScriptedModel(), aliases=("small",)) as url:
        with pytest.raises(UserError, match="scripted, small"):
            open_upstream(folder, url, model="large")
        open_upstream(folder, url, model="small").close()


def test_another_tokenizer(folder):
    def speak(body, http):
        http.stream(
            b'data: {"choices": [{"text": " Paris", "token_ids": [72], "finish_reason": "length", '
            b'"logprobs": {"token_logprobs": [0.0]}}]}\n\n'
        )

    with upstream_that(speak) as url, pytest.raises(UserError, match="another tokenizer"):
        open_upstream(folder, url)


def test_nothing_usable(folder):
    with (
        upstream_that(lambda body, http: http.answer(404, b'{"detail": "Not Found"}')) as url,
        pytest.raises(UserError, match=r"no usable answer.*404, Not Found"),
    ):
        open_upstream(folder, url)


def test_the_context_is_the_upstreams(folder, random):
    with open_upstream(folder, random[1], max_context=128) as llm:
        assert llm.max_context == 128
    with pytest.raises(UserError, match="--max-context"):
        open_upstream(folder, random[1], max_context=10**6)
