"""Tensors of which every process holds some rows (FSDP2's DTensors, cut along their first axis), or all.

Nothing here imports `torch.distributed.tensor`, which takes a second: who has such tensors has imported it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "to_local")


def local(tensor: Any) -> Tensor:
    """The rows that this process holds; a view. A plain tensor is held whole."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def rows_here(tensor: Any) -> slice:
    """Which rows of the whole tensor those are."""
    if not is_sharded(tensor):
        return slice(None)
    mesh, num_rows = tensor.device_mesh, tensor.shape[0]
    size = -(-num_rows // mesh.size())  # as torch.chunk cuts
    first = min(mesh.get_local_rank() * size, num_rows)
    return slice(first, min(first + size, num_rows))


def whole(tensor: Any) -> Tensor:
    """All rows, on every process. Every process of the mesh must call it."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def cut_like(tensor: Tensor, other: Any) -> Tensor:
    """A whole tensor in the shards of another of its shape. No process sends anything."""
    if not is_sharded(other):
        return tensor
    mine = tensor[rows_here(other)].to(local(other).device)
    return type(other).from_local(
        mine,
        other.device_mesh,
        other.placements,
        run_check=False,
        shape=other.shape,
        stride=tuple(other.stride()),
    )
