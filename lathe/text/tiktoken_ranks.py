"""A vocabulary from a tiktoken rank file such as `qwen.tiktoken`, and Qwen3's control tokens.

Each line of the file is a token in base64 and its rank. The merges are not written down: they follow from the
ranks.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path

from lathe.errors import CheckpointError
from lathe.text.byte_level import BYTE_TO_CHAR, SpecialToken, Vocabulary
from lathe.text.pre_tokenizers import QWEN2

# The control tokens of Qwen3 and Qwen3-Coder, ids 151643 to 151668, from their tokenizer_config.json. Those
# of the second group are added tokens without the special flag: they stay when text is decoded with
# `skip_special`.
QWEN3_FIRST_ID = 151643
QWEN3_SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>"),
    *("<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
QWEN3_ADDED = (
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
    *("<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>"),
)


def qwen3_special_tokens() -> tuple[SpecialToken, ...]:
    texts = (*QWEN3_SPECIAL, *QWEN3_ADDED)
    return tuple(
        SpecialToken(id, text, special=text in QWEN3_SPECIAL)
        for id, text in enumerate(texts, start=QWEN3_FIRST_ID)
    )


def read_rank_file(path: Path, special_tokens: Mapping[str, int] | None = None) -> Vocabulary:
    """The vocabulary with Qwen's normalizer and pre-tokenizer, and Qwen3's control tokens unless others are
    given.

    Rebuilding Qwen's 151387 merges takes about a second. Raises CheckpointError when the file is damaged or
    the control tokens' ids are taken.
    """
    ranks = _read_ranks(path)
    special = (
        qwen3_special_tokens()
        if special_tokens is None
        else tuple(SpecialToken(id, text) for text, id in special_tokens.items())
    )
    taken = {token.id for token in special} & set(ranks.values())
    if taken:
        raise CheckpointError(
            f"{path} has {len(ranks)} tokens, and its ranks take the ids of control tokens ({min(taken)} …). "
            "Pass special_tokens with the ids that belong to this file."
        )
    ends = [text for text in ("<|im_end|>", "<|endoftext|>") if text in {token.text for token in special}]
    return Vocabulary(
        tokens={_printable(token): rank for token, rank in ranks.items()},
        merges=[(_printable(left), _printable(right)) for left, right in merges_of(ranks)],
        special=special,
        pre_tokenizer=QWEN2.pre_tokenizer,
        normalizer=QWEN2.normalizer,
        eos_token=ends[0] if ends else "",
    )


def merges_of(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The merges that BPE learned, in its order: for each token the two parts that it was first made of.

    Those are found by doing BPE on the token's own bytes with earlier tokens only. One merge a token is
    enough for tiktoken's ids: inside a token's bytes, merging takes the same steps alone as in any text where
    it comes out.
    """
    tokens = sorted((token for token in ranks if len(token) > 1), key=ranks.__getitem__)
    return [_two_parts(token, ranks) for token in tokens]


def _two_parts(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    limit = ranks[token]
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(parts[i] + parts[i + 1], limit) for i in range(len(parts) - 1)]
        rank = min(pairs)
        if rank == limit:
            raise CheckpointError(
                f"The rank file's token {token!r} (rank {limit}) is made of no earlier tokens."
            )
        i = pairs.index(rank)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts[0], parts[1]


def _read_ranks(path: Path) -> dict[bytes, int]:
    ranks = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            if line:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise CheckpointError(
                f"{path}, line {number}: not a token in base64 and its rank: {line[:80]!r}"
            ) from None
    if not ranks:
        raise CheckpointError(f"{path} holds no tokens.")
    return ranks


def _printable(token: bytes) -> str:
    return token.decode("latin-1").translate(BYTE_TO_CHAR)  # latin-1: a byte's number is its character's
