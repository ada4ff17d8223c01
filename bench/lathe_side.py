"""Lathe's engine in a process of its own, which computes when it is asked to, and else sleeps."""

from __future__ import annotations

import multiprocessing
import queue
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from llamacpp.peer import Ids

from lathe.engine.engine import Engine, EngineConfig
from lathe.engine.sequence import Sampled
from lathe.model.checkpoint import Quantize, load_model, open_checkpoint
from lathe.types import SamplingParams


class LatheSide:
    """A model in the engine (see `engine_of`), which samples greedily.

    `last_ids` is what it sampled last, a row a prompt.
    """

    def __init__(self, path: Path, threads: int, quantize: Quantize | None = "keep"):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, path, threads, quantize), daemon=True)
        self.process.start()
        theirs.close()
        self.pipe.recv()  # it is loaded
        self.last_ids: Ids = []

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def generate(self, prompts: Ids, num_new: int) -> tuple[float, float]:
        """Seconds until all prompts have their first token, and from then until all have `num_new`."""
        self.pipe.send((prompts, num_new))
        prefill_s, decode_s, self.last_ids = self.pipe.recv()
        return prefill_s, decode_s

    def measure(self, prompts: Ids, following: Ids) -> tuple[float, float]:
        """`generate`, with as many tokens as Peer.measure reads; only their number counts."""
        return self.generate(prompts, len(following[0]) + 1)

    def __enter__(self) -> LatheSide:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.join()


def serve(pipe: Connection, path: Path, threads: int, quantize: Quantize | None) -> None:
    torch.set_num_threads(threads)
    engine = engine_of(path, quantize)
    pipe.send(None)
    while True:  # until it is terminated
        pipe.send(generate(engine, *pipe.recv()))


def engine_of(path: Path, quantize: Quantize | None = "keep", *, compiled: bool = True) -> Engine:
    """One that reads eight prompts of 128 tokens in a step, keeps none of them, and guesses nothing.

    The weights have the bits that the file gives them ("keep"), or are plain float32 (None).
    """
    with ThreadPoolExecutor(1) as loader:  # its OpenMP pool ends with it; see LLM
        model = loader.submit(load_model, open_checkpoint(path), quantize=quantize).result()
    config = EngineConfig(
        max_context=2048,
        kv_memory_bytes=2**30,
        prefill_chunk=8 * 128,
        prefix_cache=False,
        max_drafts=0,
        compiled=compiled,
    )
    return Engine(model, config=config)


def generate(engine: Engine, prompts: Ids, num_new: int) -> tuple[float, float, Ids]:
    """As LatheSide.generate, and what was sampled."""
    reports: queue.SimpleQueue[tuple[list[int], Sampled]] = queue.SimpleQueue()
    sampling = SamplingParams(temperature=0.0, max_tokens=num_new, ignore_eos=True)
    rows: list[list[int]] = [[] for _ in prompts]
    start = time.perf_counter()
    with engine._wake:  # all prompts are there before the first step, so that they decode together
        for prompt, row in zip(prompts, rows, strict=True):
            engine.submit(tuple(prompt), sampling, lambda report, row=row: reports.put((row, report)))
    first = start
    for count in range(1, len(prompts) * num_new + 1):
        row, report = reports.get()
        if report.token is None:
            raise report.error or RuntimeError("a reply ended early")
        row.append(report.token.token_id)
        if count == len(prompts):
            first = time.perf_counter()
    return first - start, time.perf_counter() - first, rows
