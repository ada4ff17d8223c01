"""The server in front of another engine, which is a Lathe or llama.cpp's server on a real socket."""

import json
import threading

import anthropic
import httpx
import openai
import pytest
from serving import client_of, serve, wait_until
from upstreams import ids_choice, upstream_that, words_only

from lathe import LLM
from lathe.cli import app
from lathe.engine.engine import EngineConfig
from lathe.engine.upstream import open_upstream
from lathe.jsonl import read_rollouts
from lathe.model import hub
from lathe.testing import ScriptedModel, tiny_tokenizer

VOCAB = tiny_tokenizer().vocab_size
HI = [{"role": "user", "content": "Hi."}]
READ = {
    "name": "read",
    "parameters": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
}
CALL = (
    "I look.\n<tool_call>\n<function=read>\n<parameter=path>\na.py\n</parameter>\n</function>\n</tool_call>"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return words_only(tmp_path_factory.mktemp("model"), VOCAB)


@pytest.fixture(scope="module")
def smollm2():
    """SmolLM2 itself, and a server of it."""
    llm = LLM("smollm2", engine_config=EngineConfig(kv_memory_bytes=2**28))
    with serve(llm) as url:
        yield llm, url


def test_calls_are_read_here(folder):
    """The upstream is asked for tokens and knows nothing of tools. Whole and streamed say the same."""
    with serve(ScriptedModel(None, CALL, CALL)) as url, client_of(open_upstream(folder, url)) as client:
        ask = dict(model="m", messages=HI, tools=[{"type": "function", "function": READ}])
        choice = client.chat.completions.create(**ask).choices[0]
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", "I look.")
        assert json.loads(choice.message.tool_calls[0].function.arguments) == {"path": "a.py"}
        deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(**ask, stream=True)]
        parts = [part for delta in deltas for part in delta.tool_calls or ()]
        assert parts[0].function.name == "read"
        assert json.loads("".join(part.function.arguments or "" for part in parts)) == {"path": "a.py"}


def test_a_second_turn_is_recorded_token_for_token(folder, tmp_path):
    upstream = ScriptedModel(None, CALL, "It prints 1.", prefix_cache=True)
    with serve(upstream) as url, serve(open_upstream(folder, url, exact=True), record=tmp_path) as front:
        with anthropic.Anthropic(base_url=front, api_key="x", max_retries=0) as client:
            tools = [{"name": "read", "input_schema": READ["parameters"]}]
            talk = list(HI)
            first = client.messages.create(model="m", max_tokens=500, messages=talk, tools=tools)
            use = first.content[-1]
            result = {"type": "tool_result", "tool_use_id": use.id, "content": "print(1)"}
            talk += [
                {"role": "assistant", "content": first.content},
                {"role": "user", "content": [result]},
            ]
            second = client.messages.create(model="m", max_tokens=500, messages=talk, tools=tools)
        assert second.content[0].text == "It prints 1."
        assert second.usage.cache_read_input_tokens > 100
        metrics = httpx.get(f"{front}/metrics").text
        assert f"cached_prompt_tokens_total {second.usage.cache_read_input_tokens}.0" in metrics
    (rollout,) = read_rollouts(tmp_path)
    (trajectory,) = rollout.trajectories
    _probe, one, two = upstream.engine.prompts
    assert len(trajectory.segments) == 2
    encode = upstream.tokenizer.encode
    end = sorted(upstream.engine.eos_token_ids)
    said = [tuple(encode(text, allow_special=True) + end) for text in (CALL, "It prints 1.")]
    assert trajectory.token_ids == two + said[1]
    assert two[: len(one) + len(said[0])] == one + said[0]


def test_an_upstream_that_dies_is_a_502(folder):
    waiting = threading.Event()

    def speak(body, http):
        if body["max_tokens"] == 1:
            return http.stream(ids_choice(72, finish_reason="length"))
        if not waiting.is_set():
            waiting.set()
            return http.answer(500, b'{"error": {"message": "out of memory"}}')
        return http.stream(ids_choice(72), ids_choice(105))

    with upstream_that(speak) as url, serve(open_upstream(folder, url)) as front:
        body = {"model": "m", "messages": HI, "max_tokens": 50}
        reply = httpx.post(f"{front}/v1/chat/completions", json=body)
        assert (reply.status_code, reply.json()["error"]["code"]) == (502, "upstream_error")
        assert "out of memory" in reply.json()["error"]["message"]
        reply = httpx.post(f"{front}/v1/messages", json=body)
        assert (reply.status_code, reply.json()["error"]["type"]) == (502, "api_error")
        with (
            openai.OpenAI(base_url=f"{front}/v1", api_key="x", max_retries=0) as client,
            pytest.raises(openai.APIError, match="closed the connection"),
        ):
            list(client.chat.completions.create(**body, stream=True))


def test_a_client_who_leaves_ends_the_upstreams_reply(folder):
    upstream = ScriptedModel(None, "word " * 3000, delay_s=0.005)
    with serve(upstream) as url, client_of(open_upstream(folder, url)) as client:
        with client.chat.completions.create(model="m", messages=HI, stream=True) as stream:
            next(iter(stream))
            assert wait_until(lambda: upstream.engine.num_open == 1)
        assert wait_until(lambda: upstream.engine.num_open == 0)


def test_what_the_upstream_can_not_do_is_a_400(folder):
    with (
        serve(ScriptedModel()) as url,
        client_of(open_upstream(folder, url)) as client,
    ):
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError, match="prompt_logprobs"):
                client.completions.create(model="m", prompt="x", echo=True, logprobs=1, stream=stream)
            with pytest.raises(openai.BadRequestError, match="response_format"):
                client.chat.completions.create(
                    model="m", messages=HI, response_format={"type": "json_object"}, stream=stream
                )


def test_the_command_line(folder, monkeypatch):
    from typer.testing import CliRunner

    served = {}

    def run(app, bound, show_how_to_ask, grace):
        served["engine"] = app.state.service.llm.engine
        served["context"] = app.state.service.llm.max_context

    monkeypatch.setattr("lathe.server.run.run", run)
    with serve(ScriptedModel(), api_key="secret") as url:
        base = ["serve", str(folder), "--port", "0", "--upstream", url]
        done = CliRunner().invoke(app, [*base, "--max-context", "500"], env={"LATHE_UPSTREAM_KEY": "secret"})
        assert done.exit_code == 0, done.output
        assert served["engine"].url == url and served["context"] == 500
        done = CliRunner().invoke(app, base)
        assert done.exit_code == 1 and "--upstream-key" in done.output
        done = CliRunner().invoke(app, [*base, "--yarn", "2"])
        assert done.exit_code == 1 and "give them to the upstream" in done.output


def test_smollm2_by_way_of_another_lathe(smollm2, tmp_path):
    """Real weights: the same greedy ids and log-probabilities as asked directly, and as recorded."""
    llm, url = smollm2
    ask = dict(model="m", messages=HI, temperature=0, max_tokens=10, logprobs=True, top_logprobs=2)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        direct = client.chat.completions.create(**ask).choices[0]
    with client_of(open_upstream("smollm2", url, exact=True), record=tmp_path) as client:
        through = client.chat.completions.create(**ask).choices[0]
    assert through.message.content == direct.message.content
    assert through.finish_reason == direct.finish_reason
    assert [entry.token for entry in through.logprobs.content] == [
        entry.token for entry in direct.logprobs.content
    ]
    for ours, theirs in zip(through.logprobs.content, direct.logprobs.content, strict=True):
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-3)
        assert [top.bytes for top in ours.top_logprobs] == [top.bytes for top in theirs.top_logprobs]
    (rollout,) = read_rollouts(tmp_path)
    trajectory = rollout.trajectories[0]
    sampled = llm.generate(
        trajectory.token_ids[: trajectory.segments[0].start], temperature=0.0, max_tokens=10
    )
    assert trajectory.token_ids[trajectory.segments[0].start :] == sampled.token_ids


@pytest.fixture(scope="module")
def llamacpp():
    """llama.cpp's own HTTP server, with SmolLM2."""
    xllamacpp = pytest.importorskip("xllamacpp")
    if not hasattr(xllamacpp.Server, "listening_address"):
        pytest.skip("this xllamacpp has no HTTP server")
    params = xllamacpp.CommonParams()
    params.model.path = str(hub.resolve("smollm2"))
    params.n_ctx, params.n_parallel, params.n_gpu_layers = 2048, 2, 0
    params.warmup, params.fit_params, params.verbosity = False, False, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.port = 0
    server = xllamacpp.Server(params)
    yield server.listening_address
    del server


def test_smollm2_by_way_of_llamacpp(llamacpp, smollm2, tmp_path):
    llm, _ = smollm2
    front = open_upstream("smollm2", llamacpp, exact=True)
    assert "llama.cpp" in front.engine.describe()
    assert front.max_context == 1024, "the context of one of its two slots"
    with client_of(front, record=tmp_path) as client:
        talk = [{"role": "user", "content": "Say only: Hi"}]
        ask = dict(model="m", messages=talk, temperature=0, extra_body={"repetition_penalty": 1.0})
        reply = client.chat.completions.create(**ask, max_tokens=24, logprobs=True, top_logprobs=3).choices[0]
        assert reply.finish_reason == "stop" and len(reply.logprobs.content[0].top_logprobs) == 3
        again = client.chat.completions.create(**ask, max_tokens=2)
        assert again.choices[0].finish_reason == "length"
        assert again.usage.completion_tokens == 2
        assert again.usage.prompt_tokens_details.cached_tokens > 20
    (*_, rollout) = sorted(read_rollouts(tmp_path), key=lambda each: len(each.trajectories[0].token_ids))
    trajectory = rollout.trajectories[0]
    start = trajectory.segments[0].start
    direct = llm.generate(
        trajectory.token_ids[:start], temperature=0.0, repetition_penalty=1.0, max_tokens=24, logprobs=3
    )
    assert trajectory.token_ids[start:] == direct.token_ids
    for ours, theirs in zip(trajectory.logprobs[start:], direct.logprobs, strict=True):
        assert ours == pytest.approx(
            theirs.logprob, abs=0.1
        )  # its arithmetic on quantized weights is rougher


def test_llamacpp_keeps_half_characters_back(llamacpp):
    """Its stream leaves out the ids of tokens that end inside a character: the text is whole, and the reply
    is marked, so that nothing is trained on it."""
    with open_upstream("smollm2", llamacpp) as llm:
        reply = llm.generate(
            "Smile: 😀😃😄 and again 😀", temperature=0.0, repetition_penalty=1.0, max_tokens=6
        )
        assert reply.message.content == "😃😄"
        assert llm.tokenizer.decode(reply.token_ids) == "😃😄"
        assert not reply.is_exact
