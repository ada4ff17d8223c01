"""Documents as token ids in a folder that is read without loading it, both directions.

    index.json             {"vocab_size": …, "num_tokens": …, "num_documents": …, "shards": [name, …]}
    shard-00000.npy        the ids of its documents, one after another: uint16 where they fit, else uint32
    shard-00000.ends.npy   where each document ends, int64

The index is written last: a folder without one is not whole.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from lathe.errors import UserError

INDEX = "index.json"
SHARD_TOKENS = 1 << 27  # 256 or 512 MB a file


def write_token_shards(
    folder: Path | str,
    documents: Iterable[Sequence[int]],
    *,
    vocab_size: int,
    shard_tokens: int = SHARD_TOKENS,
) -> TokenShards:
    """Writes documents, of which one shard is in memory at a time. Empty ones are left out.

    Raises UserError for a folder that holds some already, ValueError for an id outside the vocabulary.
    """
    folder = Path(folder)
    if (folder / INDEX).exists():
        raise UserError(f"{folder} holds tokens already: name another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    dtype = np.uint16 if vocab_size <= 1 << 16 else np.uint32
    names: list[str] = []
    num_tokens = num_documents = held = 0
    parts: list[np.ndarray] = []

    def write() -> None:
        names.append(f"shard-{len(names):05d}")
        np.save(folder / f"{names[-1]}.npy", np.concatenate(parts))
        ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        np.save(folder / f"{names[-1]}.ends.npy", ends)
        parts.clear()

    for document in documents:
        if not len(document):
            continue
        if not 0 <= min(document) <= max(document) < vocab_size:
            raise ValueError(f"a document holds an id outside of the {vocab_size} of the vocabulary")
        parts.append(np.array(document, dtype=dtype))
        num_tokens, num_documents = num_tokens + len(document), num_documents + 1
        held += len(document)
        if held >= shard_tokens:
            write()
            held = 0
    if parts:
        write()
    index = {
        "vocab_size": vocab_size,
        "num_tokens": num_tokens,
        "num_documents": num_documents,
        "shards": names,
    }
    unfinished = folder / f"{INDEX}.unfinished"
    unfinished.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(folder / INDEX)
    return TokenShards(folder)


class TokenShards:
    """A folder's documents by their numbers. Raises UserError for what is no such folder, or is damaged."""

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        try:
            index = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))
            self.vocab_size, self.num_tokens = int(index["vocab_size"]), int(index["num_tokens"])
            paths = [self.folder / f"{name}.npy" for name in index["shards"]]
            self._ids = [np.load(path, mmap_mode="r") for path in paths]
            self._ends = [np.load(path.with_suffix(".ends.npy"), mmap_mode="r") for path in paths]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.folder} holds no whole shards of tokens: {error}") from error
        counts = [len(ends) for ends in self._ends]
        self._firsts = np.concatenate(([0], np.cumsum(counts, dtype=np.int64))).tolist()
        whole = all(
            len(ends) and ends[-1] == len(ids) for ids, ends in zip(self._ids, self._ends, strict=True)
        )
        if self.num_tokens != sum(map(len, self._ids)) or not whole:
            raise UserError(f"{self.folder} is damaged: its files hold other numbers of tokens than it says.")

    def __len__(self) -> int:
        return self._firsts[-1]

    def lengths(self) -> np.ndarray:
        """The number of tokens of each document."""
        return np.concatenate([np.diff(ends, prepend=0) for ends in self._ends] or [np.empty(0, np.int64)])

    def read(self, document: int, start: int = 0, stop: int | None = None) -> list[int]:
        """A document's ids, or those from `start` up to `stop`."""
        shard = bisect.bisect_right(self._firsts, document) - 1
        place = document - self._firsts[shard]
        begin = int(self._ends[shard][place - 1]) if place else 0
        end = int(self._ends[shard][place])
        last = end if stop is None else min(begin + stop, end)
        return self._ids[shard][begin + start : last].tolist()
