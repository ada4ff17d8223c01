"""A vocabulary in Hugging Face's tokenizer.json and tokenizer_config.json, both directions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers.models import BPE

from lathe.errors import CheckpointError
from lathe.text.byte_level import Json, SpecialToken, Vocabulary

DECODER: Json = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}


def read_json(path: Path) -> Json:
    """The object in a JSON file. Raises CheckpointError when there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} can't be read: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return content


def read_tokenizer_json(data: Mapping[str, Any], config: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary in a tokenizer.json, with the names that tokenizer_config.json (or {}) adds.

    Raises CheckpointError for anything but byte-level BPE: what can't be read exactly is refused.
    """
    model = data.get("model") or {}
    _check(data, model)
    added = [dict(token) for token in data.get("added_tokens") or ()]
    known = {token["content"] for token in added}
    # transformers reads these as well; some checkpoints have tokens here that their tokenizer.json lacks.
    for id, token in (config.get("added_tokens_decoder") or {}).items():
        if token["content"] not in known:
            added.append({**token, "id": int(id)})
    return Vocabulary(
        tokens=model["vocab"],
        merges=[tuple(merge.split(" ", 1) if isinstance(merge, str) else merge) for merge in model["merges"]],
        special=tuple(
            SpecialToken(
                id=token["id"],
                text=token["content"],
                special=token.get("special", False),
                lstrip=token.get("lstrip", False),
                rstrip=token.get("rstrip", False),
                single_word=token.get("single_word", False),
            )
            for token in added
        ),
        pre_tokenizer=data["pre_tokenizer"],
        normalizer=data.get("normalizer"),
        post_processor=data.get("post_processor"),
        ignore_merges=model.get("ignore_merges", False),
        add_bos=bool(config.get("add_bos_token")),
        bos_token=_text(config.get("bos_token")),
        eos_token=_text(config.get("eos_token")),
    )


def _check(data: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    kind = model.get("type", "BPE")
    if kind != "BPE" or "vocab" not in model or "merges" not in model:
        raise CheckpointError(f"tokenizer.json holds a {kind} model; only byte-level BPE is read.")
    if not {"ByteLevel"} <= _types(data.get("pre_tokenizer")) & _types(data.get("decoder")):
        raise CheckpointError(
            "tokenizer.json holds a BPE over characters (SentencePiece); only byte-level BPE is read: "
            "Qwen's, Llama 3's, SmolLM2's, GPT-2's."
        )
    for option in ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(option):
            raise CheckpointError(f"tokenizer.json sets {option}, which byte-level BPE has no use for.")


def _types(part: Mapping[str, Any] | None) -> set[str]:
    if part is None:
        return set()
    inner = part.get("pretokenizers") or part.get("decoders") or ()
    return {part["type"]}.union(*(_types(one) for one in inner))


def _text(token: Any) -> str:
    return str(token["content"] if isinstance(token, Mapping) else token or "")


def text_encoder(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    """A tokenizer that knows ordinary tokens only: no text whatever can give a special token's id.

    Files often list the special tokens among the ordinary ones as well, and with `ignore_merges` that alone
    would be enough to forge one; so they are taken out, with every merge that leads to them.
    """
    special = {token.text for token in vocabulary.special}
    tokens, merges = vocabulary.tokens, vocabulary.merges
    if not special.isdisjoint(tokens):
        tokens = {text: id for text, id in tokens.items() if text not in special}
        merges = [(a, b) for a, b in merges if not {a, b, a + b} & special]
    shell = _whole(vocabulary, added=[], model={"type": "BPE", "vocab": {}, "merges": []})
    try:
        encoder = tokenizers.Tokenizer.from_str(json.dumps(shell))
        encoder.model = BPE(vocab=tokens, merges=merges, ignore_merges=vocabulary.ignore_merges)
    except Exception as error:  # the library's errors have no class of their own
        raise CheckpointError(f"The tokenizer's files make no tokenizer: {error}") from error
    return encoder


def write_tokenizer_json(vocabulary: Vocabulary) -> Json:
    """The vocabulary as the content of a tokenizer.json."""
    added = [
        {
            "id": token.id,
            "content": token.text,
            "single_word": token.single_word,
            "lstrip": token.lstrip,
            "rstrip": token.rstrip,
            "normalized": False,
            "special": token.special,
        }
        for token in sorted(vocabulary.special, key=lambda token: token.id)
    ]
    tokens = dict(vocabulary.tokens)
    # The `tokenizers` library numbers added tokens on from the end of the vocabulary and ignores the ids
    # written here, unless the vocabulary holds them.
    if [token["id"] for token in added] != [*range(len(tokens), len(tokens) + len(added))]:
        tokens |= {token.text: token.id for token in vocabulary.special}
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": vocabulary.ignore_merges,
        "vocab": dict(sorted(tokens.items(), key=lambda item: item[1])),
        "merges": [[a, b] for a, b in vocabulary.merges],
    }
    return _whole(vocabulary, added=added, model=model)


def _whole(vocabulary: Vocabulary, *, added: list[Json], model: Json) -> Json:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": vocabulary.normalizer,
        "pre_tokenizer": vocabulary.pre_tokenizer,
        "post_processor": vocabulary.post_processor,
        "decoder": DECODER,
        "model": model,
    }


def write_config(vocabulary: Vocabulary) -> Json:
    """The content of a tokenizer_config.json beside it, for transformers' AutoTokenizer."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": vocabulary.add_bos,
        "bos_token": vocabulary.bos_token or None,
        "eos_token": vocabulary.eos_token or None,
        "clean_up_tokenization_spaces": False,
    }
