"""What test_parallel.py runs in two processes, and for comparison in one: a few steps of training, by name.

torchrun --nproc-per-node 2 two_processes.py FOLDER VARIANT …
"""

import multiprocessing
import os
import queue
import socket
import sys
import time
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
from tiny_models import random_model, tiny_config

from lathe.engine.engine import Engine, EngineConfig
from lathe.engine.kv_cache import bytes_per_token
from lathe.kernels.cpu.library import load
from lathe.model.transformer import Transformer
from lathe.train.batch import Batch, Sample, pack
from lathe.train.lora import Lora, LoraConfig
from lathe.train.parallel import World, gather, joined, shard, whole_model
from lathe.train.trainer import TrainConfig, Trainer
from lathe.train.weights import receive_weights, send_end, send_weights
from lathe.types import SamplingParams

# three experts, seven samples and micro-batches of 40 tokens: nothing is even
MOE = dict(architecture="qwen3_moe", num_experts=3, num_experts_per_tok=2, moe_intermediate_size=32)
PLAIN = TrainConfig(lr=1e-3, max_tokens=40, clip_norm=0.5)
VARIANTS = {
    "plain": PLAIN,
    "one batch": replace(PLAIN, max_tokens=1000),
    "recomputed": replace(PLAIN, checkpoint_activations=True),
    "exact": replace(PLAIN, deterministic=load() is not None, checkpoint_activations=True),
    "muon": replace(PLAIN, optimizer="muon"),
    "bf16": replace(PLAIN, dtype="bfloat16"),
    "lora": replace(PLAIN, lr=1e-2),
    "tied": PLAIN,
}
SAMPLES = [
    Sample(
        tuple((7 * n + 5 * k) % 300 for k in range(9 + 3 * n)),
        (False, *[k % 3 > 0 for k in range(8 + 3 * n)]),
        weights=tuple(0.0 if k == 0 or (k - 1) % 3 == 0 else 0.02 + 0.001 * n for k in range(9 + 3 * n)),
    )
    for n in range(7)
]


def nll(logprobs_N, batch: Batch):
    return -(batch.weights_N * logprobs_N).sum(), {"nll": -logprobs_N.detach().sum()}


def trainer_of(variant: str, world: World) -> Trainer:
    config = VARIANTS[variant]
    shape = MOE if variant != "tied" else dict(tie_word_embeddings=True)
    model = random_model(tiny_config(**shape))
    shard(model, world, config.dtype)
    lora = Lora(model, LoraConfig(rank=3, alpha=6)) if variant == "lora" else None
    return Trainer(model, config, lora, world)


def run(variant: str, world: World, state: dict | None = None) -> dict:
    """Two steps, and two more from a state between."""
    trainer = trainer_of(variant, world)
    if state is not None:
        trainer.load_state_dict(state)
    first = [trainer.step(SAMPLES, nll) for _ in range(2)]
    between = trainer.state_dict()
    between["optimizers"] = [
        {
            **each,
            "state": {
                n: {k: torch.as_tensor(v).clone() for k, v in s.items()} for n, s in each["state"].items()
            },
        }
        for each in between["optimizers"]
    ]
    between["model"] = {name: weight.clone() for name, weight in between["model"].items()}
    logprobs = trainer.logprobs(pack(SAMPLES[:2]))  # by all processes together
    trainer.load_state_dict(between)
    return {
        "stats": first + [trainer.step(SAMPLES, nll) for _ in range(2)],
        "state": between,
        "logprobs": logprobs,
        "export": exported(trainer),
        "weights": gather({name: weight.detach() for name, weight in trainer.model.named_parameters()}),
        "rows": [
            len(weight) if world.size == 1 else len(weight.to_local())
            for weight in trainer.model.parameters()
        ],
    }


def exported(trainer: Trainer) -> dict | None:
    plain = whole_model(trainer.model, trainer.world)
    return None if plain is None else plain.state_dict()


def train_and_serve(folder: Path, world: World) -> dict | None:
    """The first process trains, the second serves what it is sent; they agree on every bit."""
    model = random_model(tiny_config(**MOE), seed=world.rank)
    if not world.is_first:
        return serve(folder, model)
    trainer = Trainer(model, VARIANTS["exact"], Lora(model, LoraConfig(rank=3)))
    same = []
    for version in (1, 2):
        trainer.step(SAMPLES, nll)
        send_weights(model, version)
        torch.distributed.barrier()
        ids, logprobs, its_version = torch.load(folder / "reply.pt")
        sample = Sample(ids, (False,) * 3 + (True,) * 8)
        same.append((its_version == version, trainer.logprobs(pack([sample])).tolist() == logprobs))
    send_end()
    return {"same": same}


def serve(folder: Path, model: Transformer) -> None:
    memory = bytes_per_token(model.config, torch.float32) * 1024
    engine = Engine(model, config=EngineConfig(kv_memory_bytes=memory))
    while (received := receive_weights()) is not None:
        version, weights = received
        engine.update_weights(weights, version=version)
        tokens: queue.SimpleQueue = queue.SimpleQueue()
        sampling = SamplingParams(max_tokens=8, seed=version, deterministic=True, logprobs=0)
        engine.submit((5, 6, 7), sampling, tokens.put)
        reply = [tokens.get(timeout=60).token for _ in range(8)]
        ids = (5, 6, 7, *(token.token_id for token in reply))
        torch.save((ids, [token.logprob for token in reply], engine.weights_version), folder / "reply.pt")
        torch.distributed.barrier()
    engine.close()


def train(folder: str, variants: list[str]) -> None:
    """What one process does."""
    with joined() as world:
        for variant in variants:
            path = Path(folder, f"{variant}.from")
            if variant == "weights":
                found = train_and_serve(Path(folder), world)
            else:
                found = run(variant, world, torch.load(path) if path.exists() else None)
            if world.is_first:
                torch.save(found, Path(folder, f"{variant}.pt"))


def as_rank(rank: int, port: int, *task: Any) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "TORCHELASTIC_RUN_ID": "test",
    }
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    train(*task)


def main(folder: str, variants: list[str]) -> int:
    """What torchrun does, but for what takes long: PyTorch is imported once, and the processes are forked."""
    import torch._dynamo
    import torch.distributed.fsdp
    import torch.distributed.tensor  # noqa: F401

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=as_rank, args=(rank, port, folder, variants)) for rank in range(2)]
    for process in processes:
        process.start()
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and not any(process.exitcode for process in processes):
        running = [process.sentinel for process in processes if process.exitcode is None]
        if not running:
            break
        wait(running, timeout=1)
    for process in processes:
        process.kill()  # one whose fellow died waits for it
        process.join()
    return max(abs(process.exitcode or 0) for process in processes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
