"""`lathe serve` beside `llama-server` on the same file: many streams at once, and an agent's conversation.

    python bench/cpu_serving.py [--model moe1b-q4_0] [--rounds 5] [--streams 1 8 32] [--conversation 20]

Both servers run, and one sleeps while the other is measured; which comes first takes turns. Requests go to
the completions endpoints with the prompt's token ids, greedy, each reply of the same length whatever it says.

streams       so many requests at once, each with a prompt of its own: output tokens a second of all together,
              and seconds until a reply's first token. llama-server has as many slots as there are streams.
conversation  turns of one agent, each prompt being all before it, the reply's sampled tokens, and a tool's
              result: 20 turns grow to 20,000 tokens. Seconds for all. Both servers' prompt caches are on.

Lathe guesses no words ahead here (--no-speculate): what a random model says repeats itself, and guessing
would look better than it is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
from cpu_models import MODELS, model_file
from llamacpp.build import FOLDER, VERSION, built
from machine import MAX_TRIES, NOISE_LIMIT, describe, kernels, quietly

STREAM_PROMPT, STREAM_REPLY = 256, 64
FIRST_PROMPT, REPLY, RESULT = 6_000, 100, 637  # of an agent's turns: 20 make 20,103 tokens of prompt
VOCABULARY = 30_000  # prompts' ids are below it


@dataclass(frozen=True)
class Server:
    name: str
    url: str
    pid: int

    def request(self, prompt: list[int], num_new: int) -> tuple[str, dict]:
        """The path, and the JSON that asks for `num_new` greedy tokens, streamed with their ids."""
        common = {"prompt": prompt, "stream": True, "temperature": 0.0, "ignore_eos": True}
        if self.name == "Lathe":
            return "/v1/completions", common | {"max_tokens": num_new, "return_token_ids": True}
        return "/completion", common | {"n_predict": num_new, "return_tokens": True, "cache_prompt": True}

    def ids(self, event: dict) -> list[int]:
        """The tokens that an event of the stream brings."""
        if self.name == "Lathe":
            return [id for choice in event["choices"] for id in choice.get("token_ids") or ()]
        return event.get("tokens") or []


@dataclass(frozen=True)
class Reply:
    first_s: float
    ids: list[int]


def main() -> None:
    options = parser().parse_args()
    path = model_file(options.model, options.folder.expanduser())
    print(f"{describe()}\nLathe's kernels: {kernels(options.threads)}")
    print(f"llama.cpp of llama-cpp-python {VERSION}, {options.model}, ", end="")
    print(f"{options.threads} threads, {options.rounds} rounds: medians\n")
    rng = random.Random(0)
    with lathe_server(path, options) as lathe:
        print("| streams | | Lathe | llama-server | ratio | noisy |\n|---|---|---|---|---|---|", flush=True)
        for count in options.streams:
            context = count * (STREAM_PROMPT + STREAM_REPLY + 64)
            with llama_server(path, options.threads, slots=count, context=context) as peer:
                compare_streams(count, (lathe, peer), rng, options)
        if options.conversation:
            with llama_server(path, options.threads, slots=1, context=options.context) as peer:
                compare_conversations((lathe, peer), rng, options)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    made.add_argument("--model", default="moe1b-q4_0")
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--streams", type=int, nargs="*", default=[1, 8, 32])
    made.add_argument("--conversation", type=int, default=20, help="turns; 0: none")
    made.add_argument("--conversation-rounds", type=int, default=1)
    made.add_argument("--context", type=int, default=32_768, help="the longest conversation")
    made.add_argument("--quantize", default="keep", help="of `lathe serve`: keep, or none for float32")
    made.add_argument("--folder", type=Path, default=MODELS, help="where cpu_models.py writes")
    made.add_argument("--tries", type=int, default=MAX_TRIES, help="of a measurement that others disturb")
    return made


def compare_streams(
    count: int, servers: tuple[Server, Server], rng: random.Random, options: argparse.Namespace
) -> None:
    def measure(server: Server) -> tuple[float, list[float]]:
        prompts = [random_ids(rng, STREAM_PROMPT) for _ in range(count)]  # new ones: none is cached
        return asyncio.run(run_streams(server, prompts))

    for server in servers:
        measure(server)  # warms up
    rounds, noisy = in_turns(measure, servers, options.rounds, options.tries)
    rates = [[one[0] for one in pair] for pair in rounds]
    row(f"{count}", "output tokens/s", rates, noisy)
    firsts = [np.concatenate([pair[side][1] for pair in rounds]) for side in (0, 1)]
    for percent in (50, 95):
        ours, theirs = (float(np.percentile(first, percent)) for first in firsts)
        print(
            f"| {count} | first token, p{percent}, s | {ours:.2f} | {theirs:.2f} | {theirs / ours:.2f}x | |"
        )


def compare_conversations(
    servers: tuple[Server, Server], rng: random.Random, options: argparse.Namespace
) -> None:
    def measure(server: Server) -> tuple[float, list[float]]:
        return asyncio.run(run_conversation(server, rng, options.conversation))

    rounds, noisy = in_turns(measure, servers, options.conversation_rounds, options.tries)
    what = f"a conversation of {options.conversation} turns"
    row(what, "all of it, s", [[one[0] for one in pair] for pair in rounds], noisy, less_is_better=True)
    firsts = [[statistics.median(one[1]) for one in pair] for pair in rounds]
    row(what, "a turn's first token, s", firsts, noisy, less_is_better=True)


def in_turns(
    measure: Callable[[Server], tuple[float, list[float]]],
    servers: tuple[Server, Server],
    rounds: int,
    tries: int,
) -> tuple[list[list[tuple[float, list[float]]]], int]:
    """What both servers gave in each round, and how many rounds others disturbed."""
    results, noisy = [], 0
    for number in range(rounds):
        pair, noise = {}, 0.0
        for server in servers if number % 2 == 0 else reversed(servers):
            pair[server], share = quietly(lambda server=server: measure(server), [server.pid], tries)
            noise = max(noise, share)
        results.append([pair[server] for server in servers])
        noisy += noise > NOISE_LIMIT
    return results, noisy


def row(what: str, unit: str, pairs: list[list[float]], noisy: int, less_is_better: bool = False) -> None:
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(b / a if less_is_better else a / b for a, b in pairs)
    print(
        f"| {what} | {unit} | {ours:.2f} | {theirs:.2f} | {ratio:.2f}x | {noisy} of {len(pairs)} |",
        flush=True,
    )


# Requests


async def run_streams(server: Server, prompts: list[list[int]]) -> tuple[float, list[float]]:
    """Output tokens a second of all together, and each one's seconds to its first."""
    async with client(server) as http:
        started = time.perf_counter()
        replies = await asyncio.gather(*(stream(http, server, prompt, STREAM_REPLY) for prompt in prompts))
        seconds = time.perf_counter() - started
    return sum(len(reply.ids) for reply in replies) / seconds, [reply.first_s for reply in replies]


async def run_conversation(server: Server, rng: random.Random, num_turns: int) -> tuple[float, list[float]]:
    """Seconds of the whole conversation, and of each turn to its first token."""
    prompt, firsts = random_ids(rng, FIRST_PROMPT), []
    async with client(server) as http:
        started = time.perf_counter()
        for _ in range(num_turns):
            reply = await stream(http, server, prompt, REPLY)
            firsts.append(reply.first_s)
            prompt += reply.ids + random_ids(rng, RESULT)
        return time.perf_counter() - started, firsts


async def stream(http: httpx.AsyncClient, server: Server, prompt: list[int], num_new: int) -> Reply:
    path, body = server.request(prompt, num_new)
    started, first_s, ids = time.perf_counter(), 0.0, []
    async with http.stream("POST", path, json=body) as response:
        if response.status_code != 200:
            sys.exit(f"{server.name} answered {response.status_code}: {(await response.aread()).decode()}")
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                ids += server.ids(json.loads(line.removeprefix("data: ")))
                first_s = first_s or (time.perf_counter() - started if ids else 0.0)
    if len(ids) != num_new:
        sys.exit(f"{server.name} gave {len(ids)} tokens, not {num_new}")
    return Reply(first_s, ids)


def client(server: Server) -> httpx.AsyncClient:
    # llama-server closes a connection behind a stream without having said so: each request has its own.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx.AsyncClient(base_url=server.url, timeout=1800, limits=limits)


def random_ids(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(256, VOCABULARY) for _ in range(count)]


# Servers


@contextmanager
def lathe_server(path: Path, options: argparse.Namespace) -> Iterator[Server]:
    port = free_port()
    program = [sys.executable, "-c", "from lathe.cli import main; main()", "serve", path, "--port", port]
    program += ["--quantize", options.quantize, "--no-speculate", "--max-context", options.context]
    with started("Lathe", program, port, options.threads) as server:
        yield server


@contextmanager
def llama_server(path: Path, threads: int, slots: int, context: int) -> Iterator[Server]:
    """`context` tokens of cache in all, shared out among the slots."""
    port = free_port()
    program = [built("llama-server"), "-m", path, "--host", "127.0.0.1", "--port", port, "-t", threads]
    with started("llama-server", [*program, "-np", slots, "-c", context], port, threads) as server:
        yield server


@contextmanager
def started(name: str, command: list, port: int, threads: int) -> Iterator[Server]:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    log = FOLDER / f"{name}.log"
    with log.open("w") as out:
        process = subprocess.Popen(list(map(str, command)), env=environment, stdout=out, stderr=out)
    url = f"http://127.0.0.1:{port}"
    try:
        while not answers(url):
            if process.poll() is not None:
                sys.exit(f"{name} ended with code {process.returncode}; see {log}")
            time.sleep(0.2)
        yield Server(name, url, process.pid)
    finally:
        process.terminate()
        process.wait()


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=10).status_code == 200
    except httpx.TransportError:
        return False


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


if __name__ == "__main__":
    main()
