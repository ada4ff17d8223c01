"""Many clients at once, in all dialects, some of whom leave: nobody sees an error, a lost word or another's
words, and afterwards all memory is free. Real engine, real sockets; random weights, and SmolLM2's."""

import asyncio
import gc
import json
import os
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

import httpx
import psutil
import pytest
from serving import serve, wait_until

from lathe import LLM
from lathe.engine.engine import EngineConfig

COLOURS = ("Name three colours.", "Is the sky green?", "How is purple made?", "What is a rainbow?")
TOOLS = ("What is a lathe?", "Who invented the saw?", "Describe a hammer.", "When do I need a drill?")
CODE = ("Count from one to ten.", "Reverse a string in Python.", "What does ls do?", "Explain recursion.")
TOPICS = ("The capital of France", "A list of tools:", "def add(a, b):", "Once upon a time")


@dataclass(frozen=True)
class Ask:
    path: str
    body: dict


@dataclass
class Heard:
    """What a client has of a reply so far, and how it ended, if it has."""

    text: str = ""
    end: str | None = None
    num_tokens: int | None = None


def chat(question: str, max_tokens: int, **options) -> Ask:
    messages = [{"role": "system", "content": "Chat."}, {"role": "user", "content": question}]
    options |= {"stream_options": {"include_usage": True}}
    return Ask("/v1/chat/completions", {"messages": messages, "max_tokens": max_tokens, **options})


def messages(question: str, max_tokens: int, **options) -> Ask:
    turns = [{"role": "user", "content": question}]
    return Ask(
        "/v1/messages", {"system": "Messages.", "messages": turns, "max_tokens": max_tokens, **options}
    )


def responses(question: str, max_tokens: int, **options) -> Ask:
    body = {"instructions": "Responses.", "input": question, "max_output_tokens": max_tokens, **options}
    return Ask("/v1/responses", body)


def completions(topic: str, max_tokens: int, **options) -> Ask:
    options |= {"stream_options": {"include_usage": True}}
    return Ask("/v1/completions", {"prompt": topic, "max_tokens": max_tokens, **options})


def asks(max_tokens: int, **options) -> list[Ask]:
    """The set that all clients choose from. No two have the same prompt and seed, so that no two replies are
    alike."""
    texts = {chat: COLOURS, messages: TOOLS, responses: CODE, completions: TOPICS}
    pairs = [(dialect, text) for dialect, some in texts.items() for text in some]
    options |= {"stream": True, "deterministic": True}
    return [dialect(text, max_tokens, seed=number, **options) for number, (dialect, text) in enumerate(pairs)]


def hear(heard: Heard, event: dict) -> None:
    """One event of any of the dialects."""
    assert not event.get("error"), event
    match event:
        case {"choices": [{"finish_reason": reason, **choice}]}:
            heard.text += choice["text"] if "text" in choice else choice["delta"].get("content") or ""
            heard.end = reason or heard.end
        case {"choices": [], "usage": usage}:
            heard.num_tokens = usage["completion_tokens"]
        case {"type": "content_block_delta", "delta": {"text": text}}:
            heard.text += text
        case {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": usage}:
            heard.end, heard.num_tokens = reason, usage["output_tokens"]
        case {"type": "response.output_text.delta", "delta": text}:
            heard.text += text
        case {"type": "response.completed" | "response.incomplete" as end, "response": response}:
            heard.end, heard.num_tokens = end, response["usage"]["output_tokens"]


async def listen(client: httpx.AsyncClient, ask: Ask, leave_after: int | None = None) -> Heard:
    """One reply; the client hangs up after that many events."""
    heard = Heard()
    num_events = 0
    async with client.stream("POST", ask.path, json=ask.body) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                hear(heard, json.loads(line.removeprefix("data: ")))
                num_events += 1
            if num_events == leave_after:
                break
    return heard


@dataclass
class Soak:
    """What was counted. `rss_bytes` is sampled once a second, from when every client has had a reply."""

    seconds: float = 0.0
    paths: Counter = field(default_factory=Counter)
    num_left: int = 0
    num_tokens: int = 0
    rss_bytes: list[int] = field(default_factory=list)
    most_running: int = 0
    most_waiting: int = 0

    def __str__(self) -> str:
        rss = [size / 2**20 for size in self.rss_bytes]
        return (
            f"{sum(self.paths.values())} whole replies {dict(self.paths)}, {self.num_left} left midway, "
            f"{self.num_tokens} tokens, {self.seconds:.0f} s, at most {self.most_running} running and "
            f"{self.most_waiting} waiting, RSS {rss[0]:.0f} MiB after warm-up, {max(rss):.0f} at most, "
            f"{rss[-1]:.0f} at the end"
        )


async def soak(llm: LLM, url: str, choices: list[Ask], num_clients: int, seconds: float) -> Soak:
    """Each client asks again and again until the time is over; each reply is compared as it comes."""
    result = Soak()
    num_warm = 0
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=num_clients)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        alone = [await listen(client, ask) for ask in choices]
        for ask, heard in zip(choices, alone, strict=True):
            assert heard.text and heard.end and heard.num_tokens, ask
        assert len({heard.text for heard in alone}) == len(alone), "a crossed text could not be told"
        started = time.monotonic()

        async def converse(number: int) -> None:
            nonlocal num_warm
            rng = random.Random(number)
            turn = 0
            while turn == 0 or time.monotonic() < started + seconds:
                place = (number + turn) % len(choices) if turn == 0 else rng.randrange(len(choices))
                leave_after = rng.randint(1, 6) if rng.random() < 0.2 else None
                heard = await listen(client, choices[place], leave_after)
                if leave_after is None:
                    assert heard == alone[place]
                    result.paths[choices[place].path] += 1
                else:
                    assert alone[place].text.startswith(heard.text)
                    result.num_left += 1
                result.num_tokens += heard.num_tokens or 0
                num_warm += turn == 0
                turn += 1

        async def watch() -> None:
            process = psutil.Process()
            while True:
                stats = llm.engine.stats()
                result.most_running = max(result.most_running, stats.num_running)
                result.most_waiting = max(result.most_waiting, stats.num_waiting)
                if num_warm == num_clients:
                    result.rss_bytes.append(process.memory_info().rss)
                await asyncio.sleep(min(1.0, seconds / 100))

        watching = asyncio.create_task(watch())
        async with asyncio.TaskGroup() as clients:
            for number in range(num_clients):
                clients.create_task(converse(number))
        watching.cancel()
        result.seconds = time.monotonic() - started
    gc.collect()
    result.rss_bytes.append(psutil.Process().memory_info().rss)
    return result


def check_all_is_free(llm: LLM, url: str) -> None:
    pool = llm.engine.pool
    assert wait_until(lambda: pool.num_free == pool.num_pages)
    pool.check()
    stats = llm.engine.stats()
    assert (stats.num_running, stats.num_waiting) == (0, 0)
    metrics = httpx.get(f"{url}/metrics").text
    assert "lathe_num_requests_waiting 0.0" in metrics
    assert 'reason="error"' not in metrics


async def test_eight_clients(llm):
    """More clients than the four that the engine takes at once, so that some always wait."""
    choices = asks(10, temperature=1.0)
    with serve(llm) as url:
        result = await soak(llm, url, choices, num_clients=8, seconds=2.5)
        await asyncio.to_thread(check_all_is_free, llm, url)
    assert len(result.paths) == 4
    assert result.num_left
    assert result.most_running == 4
    assert result.most_waiting


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_sixty_four_clients_for_a_minute_on_smollm2(capsys):
    llm = LLM("smollm2", engine_config=EngineConfig(kv_memory_bytes=2**28))
    with serve(llm) as url:
        seconds = float(os.environ.get("SOAK_SECONDS", "60"))
        result = await soak(llm, url, asks(12, temperature=0), num_clients=64, seconds=seconds)
        await asyncio.to_thread(check_all_is_free, llm, url)
    with capsys.disabled():
        sys.stdout.write(f"\n{result}\n")
    assert result.num_left
    assert result.most_running > 32
    assert result.rss_bytes[-1] < result.rss_bytes[0] + 2**26
