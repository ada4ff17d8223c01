"""Training in many processes, started by torchrun: weights are shared out among them (FSDP2), and samples.

Every process holds some rows of each weight, of its gradient and of the optimizer's state; a layer's weights
are gathered when it is their turn (Zhao et al. 2023, "PyTorch FSDP"; `fully_shard`). As every loss is a sum
over trained tokens whose weights were computed over the whole step, gradients are added up and not averaged,
and a step is the same step whatever the number of processes.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from lathe.errors import UserError
from lathe.model.packed import packed_weights
from lathe.model.transformer import Transformer
from lathe.train.batch import Sample, cut
from lathe.train.shards import cut_like, is_sharded, local, rows_here, whole

PATIENCE = timedelta(minutes=30)  # a process that waits longer for the others ends with an error


@dataclass(frozen=True)
class World:
    """The processes of a run, and which of them this is. Alone unless `joined` says otherwise."""

    rank: int = 0
    size: int = 1
    mesh: Any = None

    @property
    def is_first(self) -> bool:
        """Whether it is this process that writes files and speaks to the user."""
        return self.rank == 0


ALONE = World()


@contextmanager
def joined() -> Iterator[World]:
    """The world that torchrun started this process in; alone without torchrun. Once in a process, around all
    that it does. On CPUs, by gloo."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        yield ALONE
        return
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", timeout=PATIENCE)
    size = dist.get_world_size()
    yield World(dist.get_rank(), size, init_device_mesh("cpu", (size,)))
    dist.destroy_process_group()  # not after an error: it would wait for the others


def shard(model: Transformer, world: World, dtype: str = "float32") -> None:
    """Leaves each process its rows of every weight. In bf16 they stay in fp32, and are gathered as bf16.

    Before adapters, optimizers and engines: the model's parameters are others afterwards.
    """
    if world.size == 1:
        return
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    if packed_weights(model):
        raise UserError("Quantized weights can't be trained in many processes: load them without --quantize.")
    narrow = getattr(torch, dtype) if dtype != "float32" else None
    # inputs are cast by the model itself: the tables of positions stay in fp32
    policy = MixedPrecisionPolicy(narrow, torch.float32, cast_forward_inputs=False)
    parts: list[Any] = [*model.layers, model]
    for part in parts:
        fully_shard(part, mesh=world.mesh, mp_policy=policy)
        part.set_gradient_divide_factor(1.0)  # sums, where FSDP would take means
        part.set_force_sum_reduction_for_comms(True)  # gloo knows no scaled sum


@contextmanager
def first_goes_first(world: World) -> Iterator[None]:
    """What is inside is done by the first process, and then by the others, who find what it has made."""
    if not world.is_first:
        torch.distributed.barrier(world.mesh.get_group())
    yield
    if world.is_first and world.size > 1:
        torch.distributed.barrier(world.mesh.get_group())


def share(samples: Sequence[Sample], max_tokens: int, world: World) -> Iterator[tuple[list[Sample], bool]]:
    """This process's micro-batches, and whether they count.

    All processes get as many, since weights are gathered by all of them together; where one would have less
    work, it repeats the smallest, for nothing. Micro-batches without a trained token are left out.
    """
    groups = cut(samples, _even(samples, max_tokens, world.size))
    groups = [group for group in groups if any(sample.num_trained for sample in group)]
    for first in range(0, len(groups), world.size):
        place = first + world.rank
        if place < len(groups):
            yield groups[place], True
        else:
            yield min(groups, key=_num_tokens), False


def _even(samples: Sequence[Sample], max_tokens: int, parts: int) -> int:
    """The smallest bound of tokens that leaves every part as few micro-batches as `max_tokens` does."""
    if parts == 1:
        return max_tokens
    most = -(-len(cut(samples, max_tokens)) // parts) * parts
    sizes = range(1, max_tokens + 1)
    return sizes[bisect.bisect_left(sizes, True, key=lambda size: len(cut(samples, size)) <= most)]


def _num_tokens(group: Sequence[Sample]) -> int:
    return sum(len(sample.token_ids) for sample in group)


def add_up(numbers: Mapping[str, float], world: World) -> dict[str, float]:
    """The sums over all processes; every one of them gets them."""
    if world.size == 1:
        return dict(numbers)
    sums: dict[str, float] = {}
    for each in _gathered(dict(numbers), world):
        for name, value in each.items():
            sums[name] = sums.get(name, 0.0) + value
    return sums


def largest(number: float, world: World) -> float:
    return number if world.size == 1 else max(_gathered(number, world))


def _gathered(thing: Any, world: World) -> list[Any]:
    found: list[Any] = [None] * world.size
    torch.distributed.all_gather_object(found, thing, world.mesh.get_group())
    return found


def add_gradients(weights: Iterable[nn.Parameter], world: World) -> None:
    """Adds up the gradients of weights that every process holds whole, as adapters. FSDP adds up shards."""
    if world.size == 1:
        return
    for weight in weights:
        if weight.grad is not None and not is_sharded(weight.grad):
            torch.distributed.all_reduce(weight.grad, group=world.mesh.get_group())


def gather(tree: Any) -> Any:
    """The same dicts and lists with whole tensors, so that they mean the same to any number of processes.
    Every process must call it, and gets them."""
    if isinstance(tree, Mapping):
        return {name: gather(each) for name, each in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(gather(each) for each in tree)
    return whole(tree) if isinstance(tree, Tensor) else tree


def whole_model(model: Transformer, world: World, dtype: str = "float32") -> Transformer | None:
    """The model as one that any part of Lathe takes, for exports: on the first process, None on the others.
    Every process must call it. Alone it is the model itself."""
    if world.size == 1:
        return model
    weights = {}
    for name, weight in model.named_parameters():
        tensor = whole(weight.detach())
        if world.is_first:
            weights[name] = tensor.to("cpu", getattr(torch, dtype))
    if not world.is_first:
        return None
    plain = Transformer(model.config, device="meta", dtype=getattr(torch, dtype))
    plain.load_state_dict(weights, assign=True)
    return plain


@torch.no_grad()
def load_weights(model: Any, weights: Mapping[str, Tensor]) -> None:
    """Whole weights into a model, of which this process may hold a part. In place."""
    named = dict(model.named_parameters())
    if not any(map(is_sharded, named.values())):
        model.load_state_dict(weights)
        return
    for name, weight in named.items():
        local(weight).copy_(weights[name][rows_here(weight)])


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """A gathered state into an optimizer, of whose weights this process may hold a part."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    mine = {
        number: {
            name: cut_like(value, weights[number])
            if isinstance(value, Tensor) and value.shape == weights[number].shape
            else value
            for name, value in each.items()
        }
        for number, each in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": mine})
