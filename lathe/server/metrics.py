"""What the server has done and what it has on its hands, as Prometheus reads it at GET /metrics.

Requests are counted in one place, by `Metrics.watch` around `Service.stream`, whatever their dialect. The
engine's numbers are read when someone asks. Names are vLLM's with another prefix where it has such a metric.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fastapi import FastAPI, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CollectorRegistry, Counter, Histogram, Info, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from lathe.engine.engine import EngineClosed
from lathe.engine.reply import Chunk
from lathe.engine.stats import EngineStats

# Steps of about two: wide enough for a laptop that reads 20,000 tokens and for a GPU that answers at once.
REQUEST_BUCKETS_S = (
    0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000,
)  # fmt: skip
TOKEN_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class Metrics:
    """One app's counters, in a registry of their own. To be used from the server's event loop only."""

    def __init__(self, stats: Callable[[], EngineStats], *, model_id: str, max_context: int):
        self.registry = Registry()
        self.registry.register(EngineCollector(stats))
        info = Info("lathe_model", "The served model", registry=self.registry)
        info.info({"model": model_id, "max_model_len": str(max_context)})
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts that were read")
        self.cached_prompt_tokens = self._counter(
            "cached_prompt_tokens", "Tokens of prompts that an earlier request had computed already"
        )
        self.generation_tokens = self._counter("generation_tokens", "Tokens that were sampled")
        self.successes = self._counter(
            "request_success",
            "Replies that ended, each of n for itself, by why they ended",
            "dialect",
            "finish_reason",
        )
        self.failures = self._counter(
            "request_failure",
            "Requests without a whole reply: cancelled (nobody waited), stopped (the engine was), error",
            "dialect",
            "reason",
        )
        self.time_to_first_token = self._histogram(
            "time_to_first_token_seconds",
            "From the request's arrival to its first token",
            REQUEST_BUCKETS_S,
        )
        self.time_per_output_token = self._histogram(
            "time_per_output_token_seconds",
            "Mean time between the tokens of a reply, one observation a reply of two tokens or more",
            TOKEN_BUCKETS_S,
        )
        self.latency = self._histogram(
            "e2e_request_latency_seconds",
            "From the request's arrival to the end of its last reply",
            REQUEST_BUCKETS_S,
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"lathe_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"lathe_{name}", text, buckets=buckets, registry=self.registry)

    @contextmanager
    def watch(
        self, dialect: str, num_prompt_tokens: int, started: float
    ) -> Iterator[Callable[[Chunk], None]]:
        """Measure a request from its chunks: call what this yields with each. `started` is its arrival, on
        the monotonic clock."""
        first_at: dict[int, float] = {}  # of each of n replies
        num_tokens: dict[int, int] = {}

        def see(chunk: Chunk) -> None:
            now = time.monotonic()
            if not first_at:
                self.prompt_tokens.inc(num_prompt_tokens)
                self.cached_prompt_tokens.inc(chunk.num_cached_tokens)
                self.time_to_first_token.observe(now - started)
            first_at.setdefault(chunk.index, now)
            count = num_tokens[chunk.index] = num_tokens.get(chunk.index, 0) + len(chunk.logprobs)
            self.generation_tokens.inc(len(chunk.logprobs))
            completion = chunk.completion
            if completion is None:
                return
            self.successes.labels(dialect, completion.finish_reason).inc()
            if count > 1:
                self.time_per_output_token.observe((now - first_at[chunk.index]) / (count - 1))

        try:
            yield see
        except BaseException as error:
            self.failures.labels(dialect, failure(error)).inc()
            raise
        self.latency.observe(time.monotonic() - started)


def failure(error: BaseException) -> str:
    """Why a request has no whole reply, in a word."""
    match error:
        case asyncio.CancelledError() | GeneratorExit():
            return "cancelled"
        case EngineClosed():
            return "stopped"
    return "error"


class EngineCollector:
    """The engine's numbers, all of one moment."""

    def __init__(self, stats: Callable[[], EngineStats]):
        self.stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self.stats()
        yield gauge("num_requests_running", "Replies that are being made", stats.num_running)
        yield gauge("num_requests_waiting", "Replies that wait for their turn", stats.num_waiting)
        used = stats.num_used_pages / stats.num_pages if stats.num_pages else 0.0
        yield gauge("kv_cache_usage_ratio", "Share of the cache's pages that running replies hold", used)
        pages = GaugeMetricFamily(
            "lathe_kv_cache_pages", "The cache's pages, by what they hold", labels=["state"]
        )
        pages.add_metric(["used"], stats.num_used_pages)
        pages.add_metric(["cached"], stats.num_cached_pages)
        pages.add_metric(["free"], stats.num_free_pages)
        yield pages
        drafts = CounterMetricFamily(
            "lathe_draft_tokens", "Tokens that speculation guessed, by how it went", labels=["outcome"]
        )
        drafts.add_metric(["accepted"], stats.num_accepted_tokens)
        drafts.add_metric(["rejected"], stats.num_draft_tokens - stats.num_accepted_tokens)
        yield drafts


def gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"lathe_{name}", text, value)


class Registry(CollectorRegistry):
    """A registry that leaves out when each counter was made: as many lines again, and nobody reads them."""

    def collect(self) -> Iterator[Metric]:
        for family in super().collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family


def install(app: FastAPI, metrics: Metrics) -> None:
    """Add the route."""

    @app.get(
        "/metrics",
        response_class=PlainTextResponse,
        responses={200: {"description": "Prometheus' text format, version 0.0.4"}},
    )
    async def read_metrics() -> Response:
        """Counters, times and the engine's load, for Prometheus."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)
