"""A vocabulary in a GGUF's metadata (`tokenizer.ggml.*`), both directions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lathe.errors import CheckpointError
from lathe.text import pre_tokenizers
from lathe.text.byte_level import SpecialToken, Vocabulary

PREFIX = "tokenizer.ggml."

# Token types, from llama.cpp's llama.h (enum llama_token_type).
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5


def read_metadata(metadata: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary of a byte-level BPE model. Raises CheckpointError for other kinds and for missing keys.

    Control tokens become `special`; user-defined ones are special tokens without that flag. Rows that only
    pad the embedding (type "unused") are no tokens.
    """
    model = _get(metadata, "model")
    if model != "gpt2":
        raise CheckpointError(
            f"The GGUF's tokenizer is of the kind {model!r}; only byte-level BPE ('gpt2' in GGUF) is read."
        )
    pre = pre_tokenizers.by_name(metadata.get(PREFIX + "pre", "default"))
    texts, types = _get(metadata, "tokens"), _get(metadata, "token_type")
    if len(texts) != len(types):
        raise CheckpointError(f"The GGUF has {len(texts)} tokens, but {len(types)} token types.")
    strange = set(types) - {NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED}
    if strange:
        raise CheckpointError(
            f"The GGUF has tokens of the types {sorted(strange)}, which byte-level BPE lacks."
        )
    return Vocabulary(
        tokens={text: id for id, (text, type) in enumerate(zip(texts, types, strict=True)) if type == NORMAL},
        merges=[_halves(merge) for merge in _get(metadata, "merges")],
        special=tuple(
            SpecialToken(id, text, special=type != USER_DEFINED)
            for id, (text, type) in enumerate(zip(texts, types, strict=True))
            if type in (UNKNOWN, CONTROL, USER_DEFINED)
        ),
        pre_tokenizer=pre.pre_tokenizer,
        normalizer=pre.normalizer,
        ignore_merges=pre.ignore_merges,
        add_bos=bool(metadata.get(PREFIX + "add_bos_token", False)),
        bos_token=_token(metadata, texts, "bos_token_id"),
        eos_token=_token(metadata, texts, "eos_token_id"),
    )


def write_metadata(vocabulary: Vocabulary, num_rows: int | None = None) -> dict[str, Any]:
    """The `tokenizer.ggml.*` values of a vocabulary. Raises CheckpointError when its pre-tokenizer has no
    name.

    `num_rows` is the embedding's number of rows; rows without a token are filled up with unused ones, as
    llama.cpp wants a token for each.
    """
    pre = pre_tokenizers.name_of(
        vocabulary.pre_tokenizer, vocabulary.normalizer, ignore_merges=vocabulary.ignore_merges
    )
    rows = {id: (text, NORMAL) for text, id in vocabulary.tokens.items()}
    rows |= {
        token.id: (token.text, CONTROL if token.special else USER_DEFINED) for token in vocabulary.special
    }
    size = max(rows) + 1
    if num_rows is not None and num_rows < size:
        raise CheckpointError(f"The tokenizer has {size} tokens, but the embedding only {num_rows} rows.")
    table = [rows.get(id, (f"[PAD{id}]", UNUSED)) for id in range(num_rows or size)]
    metadata = {
        PREFIX + "model": "gpt2",
        PREFIX + "pre": pre,
        PREFIX + "tokens": [text for text, _ in table],
        PREFIX + "token_type": [type for _, type in table],
        PREFIX + "merges": [f"{a} {b}" for a, b in vocabulary.merges],
        PREFIX + "add_bos_token": vocabulary.add_bos,
    }
    ids = {text: id for id, (text, _) in rows.items()}
    for name, token in (("bos_token_id", vocabulary.bos_token), ("eos_token_id", vocabulary.eos_token)):
        if token in ids:
            metadata[PREFIX + name] = ids[token]
    return metadata


def _get(metadata: Mapping[str, Any], name: str) -> Any:
    if PREFIX + name not in metadata:
        raise CheckpointError(
            f"The GGUF's metadata has no {PREFIX + name}, so its tokenizer can't be rebuilt."
        )
    return metadata[PREFIX + name]


def _halves(merge: str) -> tuple[str, str]:
    left, space, right = merge.partition(" ")
    if not space:
        raise CheckpointError(f"The GGUF has a merge that is no pair: {merge!r}")
    return left, right


def _token(metadata: Mapping[str, Any], texts: list[str], name: str) -> str:
    id = metadata.get(PREFIX + name)
    return texts[id] if id is not None and 0 <= id < len(texts) else ""
