"""How text is cut into pieces before BPE, by the names that GGUF files use (`tokenizer.ggml.pre`).

The expressions are the models' own, from their tokenizer.json; those of "default" are llama.cpp's.
"""

from __future__ import annotations

from dataclasses import dataclass

from lathe.errors import CheckpointError
from lathe.text.byte_level import Json


@dataclass(frozen=True)
class PreTokenizer:
    """`normalizer` and `pre_tokenizer` in the words of tokenizer.json; `ignore_merges` as in `Vocabulary`."""

    pre_tokenizer: Json
    normalizer: Json | None = None
    ignore_merges: bool = False


def _byte_level(*, use_regex: bool) -> Json:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": use_regex}


def _split(*expressions: str) -> Json:
    """Cut at every match of each expression in turn; both the matches and what is between them are pieces."""
    cuts = [
        {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
        for expression in expressions
    ]
    return {"type": "Sequence", "pretokenizers": [*cuts, _byte_level(use_regex=False)]}


QWEN2 = PreTokenizer(
    _split(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    normalizer={"type": "NFC"},
)
LLAMA3 = PreTokenizer(
    _split(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    ignore_merges=True,
)
SMOLLM = PreTokenizer(
    {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, _byte_level(use_regex=True)],
    }
)
GPT2 = PreTokenizer(_byte_level(use_regex=True))
DEFAULT = PreTokenizer(
    _split(
        r"[\p{P}\$\+<=>\^~\|]+",
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
        r"\p{N}+",
        r"[0-9][0-9][0-9]",
    )
)

BY_NAME = {"qwen2": QWEN2, "llama-bpe": LLAMA3, "smollm": SMOLLM, "gpt-2": GPT2, "default": DEFAULT}


def by_name(name: str) -> PreTokenizer:
    """The pre-tokenizer that a GGUF file calls so. Raises CheckpointError for a name that is not known."""
    if name not in BY_NAME:
        raise CheckpointError(
            f"The GGUF's tokenizer.ggml.pre is {name!r}, which is not known; known are {', '.join(BY_NAME)}."
        )
    return BY_NAME[name]


def name_of(pre_tokenizer: Json, normalizer: Json | None, *, ignore_merges: bool) -> str:
    """The name by which a GGUF file would call a pre-tokenizer. Raises CheckpointError when it has none."""
    wanted = (_essence(pre_tokenizer), normalizer, ignore_merges)
    for name, known in BY_NAME.items():
        if wanted == (_essence(known.pre_tokenizer), known.normalizer, known.ignore_merges):
            return name
    raise CheckpointError(
        "A GGUF file stores a pre-tokenizer by its name, and this tokenizer's has none that is known "
        f"({', '.join(BY_NAME)}): {pre_tokenizer}"
    )


def _essence(part: Json) -> Json:
    """Without what changes offsets only, and without nesting that says nothing."""
    if part.get("type") == "Sequence":
        inner = [_essence(one) for one in part["pretokenizers"]]
        return inner[0] if len(inner) == 1 else {"type": "Sequence", "pretokenizers": inner}
    return {key: value for key, value in part.items() if key != "trim_offsets"}
