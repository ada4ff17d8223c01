"""One conversation with real weights through every dialect: the same words, and a cached second turn."""

import anthropic
import httpx
import openai
import pytest
from serving import serve

from lathe import LLM
from lathe.engine.engine import EngineConfig

QUESTIONS = ["What is the capital of France? Answer in one sentence.", "And of Italy?"]
OPTIONS = dict(model="smollm2", temperature=0)


def chat(url: str, turns: list[dict]) -> tuple[str, int]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        reply = client.chat.completions.create(**OPTIONS, messages=turns, max_tokens=10)
    return reply.choices[0].message.content, reply.usage.prompt_tokens_details.cached_tokens


def messages(url: str, turns: list[dict]) -> tuple[str, int]:
    with anthropic.Anthropic(base_url=url, api_key="x", max_retries=0) as client:
        # Its newest versions have no argument for the temperature.
        reply = client.messages.create(
            model="smollm2", messages=turns, max_tokens=10, extra_body={"temperature": 0}
        )
    return reply.content[0].text, reply.usage.cache_read_input_tokens


def responses(url: str, turns: list[dict]) -> tuple[str, int]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        reply = client.responses.create(**OPTIONS, input=turns, max_output_tokens=10)
    return reply.output_text, reply.usage.input_tokens_details.cached_tokens


def completions(url: str, turns: list[dict]) -> tuple[str, int]:
    """The prompt that the chat template makes of the turns, as ids."""
    ids = httpx.post(f"{url}/tokenize", json={"messages": turns}).json()["tokens"]
    with openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        reply = client.completions.create(**OPTIONS, prompt=ids, max_tokens=10)
    return reply.choices[0].text, reply.usage.prompt_tokens_details.cached_tokens


@pytest.mark.timeout(300)
def test_every_dialect_tells_the_same():
    llm = LLM("smollm2", engine_config=EngineConfig(kv_memory_bytes=2**29, deterministic=True))
    told = {}
    with serve(llm) as url:
        for ask in (chat, messages, responses, completions):
            llm.engine.pool.forget_all()  # no reply is being made
            turns, replies, cached = [], [], []
            for question in QUESTIONS:
                turns.append({"role": "user", "content": question})
                text, num_cached = ask(url, turns)
                turns.append({"role": "assistant", "content": text})
                replies.append(text)
                cached.append(num_cached)
            told[ask.__name__] = (replies, cached)
    assert len({str(each) for each in told.values()}) == 1, told
    replies, (first, second) = told["chat"]
    assert "Paris" in replies[0]
    assert first == 0
    assert second >= 32
