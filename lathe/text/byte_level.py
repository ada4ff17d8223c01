"""Byte-level BPE: the parts of a vocabulary, whatever file they came from.

Every format that Lathe reads (tokenizer.json, GGUF metadata, a tiktoken rank file) becomes a `Vocabulary`,
and every format that it writes is made from one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lathe.errors import CheckpointError

Json = dict[str, Any]


@dataclass(frozen=True)
class SpecialToken:
    """A token that is matched as a whole, before BPE: a control token, or a word that someone added.

    `special` is Hugging Face's flag: such tokens vanish from text decoded with `skip_special`. `<tool_call>`
    and `<think>` don't have it. The other flags are Hugging Face's too: `lstrip` and `rstrip` swallow white
    space beside the token, `single_word` matches only between characters that are no letters, digits or `_`.
    """

    id: int
    text: str
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False

    def __post_init__(self) -> None:
        if not self.text.strip().strip("\"'\\"):
            raise CheckpointError(
                f"The tokenizer's special token {self.text!r} is empty, or white space or quotes only: "
                "in a rendered conversation it could not be told from ordinary text."
            )


@dataclass(frozen=True)
class Vocabulary:
    """Byte-level BPE as data. `tokens` and `merges` write each byte as one printable character
    (`BYTE_TO_CHAR`).

    `normalizer`, `pre_tokenizer` and `post_processor` are in the words of tokenizer.json. `ignore_merges`
    takes a piece of text that is a token as it stands, without merging (Llama 3). `add_bos` says what the
    file wants of others; Lathe leaves the first token to the chat template.
    """

    tokens: dict[str, int]
    merges: list[tuple[str, str]]
    special: tuple[SpecialToken, ...]
    pre_tokenizer: Json
    normalizer: Json | None = None
    post_processor: Json | None = None
    ignore_merges: bool = False
    add_bos: bool = False
    bos_token: str = ""
    eos_token: str = ""


def _byte_to_char() -> dict[int, str]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, the other 68 bytes for the characters from
    U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


BYTE_TO_CHAR = _byte_to_char()
CHAR_TO_BYTE = {char: byte for byte, char in BYTE_TO_CHAR.items()}


def to_bytes(token: str) -> bytes:
    """What a token stands for. One with a character outside of the alphabet stands for its own UTF-8, as in
    Hugging Face's decoder: that is how added tokens are written."""
    try:
        return bytes([CHAR_TO_BYTE[char] for char in token])
    except KeyError:
        return token.encode("utf-8", "surrogatepass")
