"""Raw completions and fill-in by the real engine: scores are the model's own, ids are the sampled ones."""

import httpx
import openai
import pytest
import torch
from serving import serve, wait_until
from tiny_models import random_model, tiny_config

from lathe.engine.engine import Engine, EngineConfig
from lathe.engine.llm import LLM
from lathe.kernels.attention import causal_attention
from lathe.kernels.experts import grouped_experts
from lathe.testing import tiny_tokenizer
from lathe.text import fim
from lathe.text.chat_template import ChatTemplate
from lathe.text.fim import FimPrompt

TEXT = "def mean(xs):\n    return sum(xs) / len(xs)  # é€🎈\n" * 3
GREEDY = {"model": "m", "temperature": 0}


@pytest.fixture(scope="module")
def model():
    return random_model(tiny_config(vocab_size=tiny_tokenizer().vocab_size, max_position_embeddings=4096))


@pytest.fixture
def llm(model):
    tokenizer = tiny_tokenizer()
    return LLM.from_parts(
        engine=Engine(
            model,
            eos_token_ids=(tokenizer.eos_token_id,),
            config=EngineConfig(max_num_seqs=8, kv_memory_bytes=2**24, prefill_chunk=64),
        ),
        tokenizer=tokenizer,
        template=ChatTemplate.builtin(),
        model_id="random",
    )


@pytest.fixture
def client(llm):
    with serve(llm) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as client:
        yield client


@torch.inference_mode()
def reference_scores(model, ids: list[int]) -> torch.Tensor:
    """Each token's log-probability after those before it: one pass, no cache."""
    hidden = model(
        torch.tensor(ids),
        torch.arange(len(ids)),
        lambda layer, q, k, v: causal_attention(q, k, v, [len(q)]),
        grouped_experts,
    )
    return model.logits(hidden).log_softmax(-1)


def test_a_text_is_scored_with_the_models_own_numbers(client, llm, model):
    ids = llm.tokenizer.encode(TEXT)
    expected = reference_scores(model, ids)
    for _ in range(2):  # the second time, its beginning is in the cache
        (choice,) = client.completions.create(
            **GREEDY, prompt=TEXT, max_tokens=0, echo=True, logprobs=3
        ).choices
        scores = choice.logprobs
        assert (choice.text, choice.finish_reason) == (TEXT, "length")
        assert len(scores.tokens) == len(scores.text_offset) == len(ids)
        assert scores.token_logprobs[0] is None
        own = expected[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        assert torch.tensor(scores.token_logprobs[1:]) == pytest.approx(own, abs=1e-4)
        best = expected[:-1].topk(3).values
        for place, top in enumerate(scores.top_logprobs[1:]):
            assert sorted(top.values())[-3:] == pytest.approx(sorted(best[place].tolist()), abs=1e-4)


@pytest.mark.parametrize("stream", [False, True])
def test_prompt_and_reply_are_scored_alike(client, stream):
    fields = {**GREEDY, "prompt": [TEXT, "x"], "max_tokens": 20, "echo": True, "logprobs": 0}
    fields["extra_body"] = {"return_token_ids": True, "ignore_eos": True}
    if stream:
        lists: dict[int, list] = {0: [], 1: []}
        ids: dict[int, list] = {0: [], 1: []}
        for chunk in client.completions.create(**fields, stream=True):
            (piece,) = chunk.choices
            lists[piece.index] += piece.logprobs.token_logprobs
            ids[piece.index] += (piece.model_extra.get("prompt_token_ids") or []) + piece.token_ids
    else:
        choices = client.completions.create(**fields).choices
        lists = {choice.index: choice.logprobs.token_logprobs for choice in choices}
        ids = {choice.index: choice.prompt_token_ids + choice.token_ids for choice in choices}
    for index in (0, 1):
        again = client.completions.create(
            **GREEDY, prompt=ids[index], max_tokens=0, echo=True, logprobs=0
        ).choices[0]
        assert lists[index][0] is None
        assert len(lists[index]) == len(ids[index])
        assert again.logprobs.token_logprobs[1:] == pytest.approx(lists[index][1:], abs=1e-4)


def test_ids_go_on_from_ids(client):
    fields = {**GREEDY, "extra_body": {"return_token_ids": True, "ignore_eos": True}}
    whole = client.completions.create(**fields, prompt=TEXT, max_tokens=24).choices[0]
    half = client.completions.create(**fields, prompt=TEXT, max_tokens=12).choices[0]
    rest = client.completions.create(
        **fields, prompt=half.prompt_token_ids + half.token_ids, max_tokens=12
    ).choices[0]
    assert half.token_ids + rest.token_ids == whole.token_ids


def test_a_place_is_filled_in_as_the_library_does(client, llm):
    (choice,) = client.completions.create(**GREEDY, prompt=TEXT, suffix="\n", max_tokens=30).choices
    ids = fim.encode(llm.tokenizer, FimPrompt(TEXT, "\n"))
    sampling = fim.ending_middles(llm.tokenizer, fim.DEFAULT_SAMPLING)
    expected = llm.generate(ids, sampling, max_tokens=30)
    assert (choice.text, choice.finish_reason) == (expected.message.content, expected.finish_reason)


def test_an_editors_warm_up_is_what_the_next_request_has_cached(llm):
    files = [{"filename": "a.py", "text": TEXT}, {"filename": "b.py", "text": TEXT}]
    body = {"input_prefix": "", "input_suffix": "", "input_extra": files, "n_predict": 0}
    with serve(llm) as url:
        warm = httpx.post(f"{url}/infill", json=body).json()
        assert (warm["content"], warm["tokens_predicted"], warm["stop_type"]) == ("", 0, "limit")
        body |= {"input_prefix": "x = ", "input_suffix": "\n", "n_predict": 5}
        reply = httpx.post(f"{url}/infill", json=body).json()
    assert 2 * len(TEXT) < reply["tokens_cached"] < reply["tokens_evaluated"]
    assert reply["timings"]["prompt_n"] == reply["tokens_evaluated"] - reply["tokens_cached"]


def test_who_leaves_ends_the_replies_to_all_prompts(client, llm):
    stream = client.completions.create(
        **GREEDY, prompt=["a", "b", "c"], max_tokens=4000, stream=True, extra_body={"ignore_eos": True}
    )
    next(stream)
    assert wait_until(lambda: llm.engine.num_running == 3)
    stream.close()
    assert wait_until(lambda: llm.engine.num_running == 0)
