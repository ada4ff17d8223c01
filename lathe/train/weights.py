"""Weights from the processes that train to those that serve, by `torch.distributed`: first a line that says
what comes, then every tensor, broadcast. Through files: model/versions.py; in one process nothing is sent.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from lathe.model.transformer import Transformer
from lathe.train.parallel import ALONE, World
from lathe.train.shards import whole


def send_weights(
    model: Transformer, version: int, *, group: Any = None, source: int = 0, world: World = ALONE
) -> None:
    """Every process of `group` but `source`, a rank of the whole job, must be in `receive_weights`; returns
    when they have the weights. Of a model that a `world` shares, all its processes call it, and its first
    one is the source."""
    named = list(model.named_parameters())
    if world.is_first:
        tensors = [
            [name, str(weight.dtype).removeprefix("torch."), list(weight.shape)] for name, weight in named
        ]
        _send_line({"version": version, "tensors": tensors}, group, source, named[0][1].device)
    for _, weight in named:
        tensor = whole(weight.detach())
        if world.is_first:
            torch.distributed.broadcast(tensor.contiguous(), source, group)


def send_end(*, group: Any = None, source: int = 0, device: str = "cpu") -> None:
    """Says that no more weights will come."""
    _send_line(None, group, source, torch.device(device))


def receive_weights(
    *, group: Any = None, source: int = 0, device: str = "cpu"
) -> tuple[int, dict[str, Tensor]] | None:
    """Waits for the next version: its number, and the weights by their names in the model, for
    `engine.update_weights`. None when no more will come."""
    line = _receive_line(group, source, torch.device(device))
    if line is None:
        return None
    weights = {}
    for name, dtype, shape in line["tensors"]:
        weights[name] = torch.empty(shape, dtype=getattr(torch, dtype), device=device)
        torch.distributed.broadcast(weights[name], source, group)
    return line["version"], weights


def _send_line(line: Any, group: Any, source: int, device: torch.device) -> None:
    data = json.dumps(line).encode()
    for tensor in (torch.tensor([len(data)]), torch.tensor(list(data), dtype=torch.uint8)):
        torch.distributed.broadcast(tensor.to(device), source, group)


def _receive_line(group: Any, source: int, device: torch.device) -> Any:
    size = torch.zeros(1, dtype=torch.long, device=device)
    torch.distributed.broadcast(size, source, group)
    data = torch.empty(int(size), dtype=torch.uint8, device=device)
    torch.distributed.broadcast(data, source, group)
    return json.loads(bytes(data.tolist()))
