"""A matrix product that is quick for a few rows, too: decoding reads every weight for one row a sequence.

On a CPU `F.linear` reads weights for one row on a single thread, and for two to eight rows with a kernel made
for many: 14 and 8 GB/s where the machine reads 30. The product the other way round, W x^T with exactly four
columns, takes a quick path at any of these counts (see docs/log.md). As four columns are
always computed, a row's result does not depend on how many others there are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

COLUMNS, MOST_ROWS = 4, 8
SMALL = 2**16  # numbers: a matrix below this is not worth waking a second thread for


class Linear(nn.Linear):
    """nn.Linear for x [..., in] of any number of rows."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b. Wherever the detour is not quicker, just `F.linear`."""
    if not gains(x, weight) or not 1 <= len(x) <= MOST_ROWS:
        return F.linear(x, weight, bias)
    blocks = [_four_columns(x[first : first + COLUMNS], weight) for first in range(0, len(x), COLUMNS)]
    out = blocks[0] if len(blocks) == 1 else torch.cat(blocks)
    return out if bias is None else out + bias


def gains(x: Tensor, weight: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32 and x.dim() == 2 and weight.numel() >= SMALL


def _four_columns(x: Tensor, weight: Tensor) -> Tensor:
    padded = F.pad(x, (0, 0, 0, COLUMNS - len(x)))
    return torch.mm(weight, padded.T)[:, : len(x)].T
