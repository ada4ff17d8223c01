"""Output tokens a second through the server, with 1, 8 and 32 streams at once.

    lathe serve smollm2 --port 8000     # in another terminal
    python bench/serving.py [--url http://localhost:8000] [--streams 1 8 32]

Time to the first token is that of the first text, not of the first event.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time

import httpx

REQUEST = {
    "messages": [{"role": "user", "content": "Write a long story about a lathe."}],
    "max_tokens": 64,
    "stream": True,
    "stream_options": {"include_usage": True},
    "ignore_eos": True,
}


async def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    made.add_argument("--url", default="http://localhost:8000")
    made.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    options = made.parse_args()
    print("| streams | output tokens/s | median seconds to the first token |\n|---|---|---|")
    async with httpx.AsyncClient(base_url=options.url, timeout=300) as client:
        await stream(client)  # warm up
        for count in options.streams:
            started = time.perf_counter()
            replies = await asyncio.gather(*(stream(client) for _ in range(count)))
            seconds = time.perf_counter() - started
            rate = sum(tokens for tokens, _ in replies) / seconds
            first = statistics.median(first for _, first in replies)
            print(f"| {count} | {rate:.1f} | {first:.2f} |")


async def stream(client: httpx.AsyncClient) -> tuple[int, float]:
    """Tokens of one streamed reply, and the seconds until its first text."""
    started, first, tokens = time.perf_counter(), 0.0, 0
    async with client.stream("POST", "/v1/chat/completions", json=REQUEST) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            if not first and any(choice["delta"].get("content") for choice in event["choices"]):
                first = time.perf_counter() - started
            if event.get("usage"):
                tokens = event["usage"]["completion_tokens"]
    return tokens, first


if __name__ == "__main__":
    asyncio.run(main())
