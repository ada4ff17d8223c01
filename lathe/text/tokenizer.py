"""Text to token ids and back. Byte-level BPE: Qwen's, SmolLM2's, Llama 3's, GPT-2's."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lathe.errors import CheckpointError
from lathe.text.byte_level import SpecialToken, Vocabulary, to_bytes
from lathe.text.gguf_tokenizer import read_metadata, write_metadata
from lathe.text.known_texts import KnownTexts
from lathe.text.tiktoken_ranks import read_rank_file
from lathe.text.tokenizer_json import (
    read_json,
    read_tokenizer_json,
    text_encoder,
    write_config,
    write_tokenizer_json,
)

# Unicode's White_Space, which is what `\\s` means to the reference; str.strip() takes U+001C to U+001F as
# well.
WHITE_SPACE = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)


class Tokenizer:
    """A vocabulary at work. Thread-safe.

    `decode(encode(text)) == text` for well-formed text, with two exceptions that the models' own tokenizers
    make: Qwen's normalizes to NFC first ("e" and a combining acute accent become "é"), so there it is the NFC
    of the text; and a byte that the vocabulary has no token for is left out (SmolLM2 lacks six control
    characters, such as U+0004). Lone surrogates, which are no characters, are read as U+FFFD.
    """

    def __init__(self, vocabulary: Vocabulary):
        self.vocabulary = vocabulary
        self.special_tokens = {token.text: token.id for token in vocabulary.special}
        self.bos_token, self.eos_token = vocabulary.bos_token, vocabulary.eos_token
        self.bos_token_id, self.eos_token_id = self._id(self.bos_token), self._id(self.eos_token)
        self._text_of = {id: text for text, id in vocabulary.tokens.items()}
        self._text_of |= {token.id: token.text for token in vocabulary.special}
        self.vocab_size = max(self._text_of) + 1
        self._skipped = frozenset(token.id for token in vocabulary.special if token.special)
        self._special = {token.text: token for token in vocabulary.special}
        self._special_pattern = pattern_of(vocabulary.special)
        self._encoder = text_encoder(vocabulary)
        self._known = KnownTexts()

    def _id(self, token: str) -> int | None:
        return self.special_tokens.get(token, self.vocabulary.tokens.get(token))

    # Where it comes from

    @classmethod
    def from_folder(cls, folder: Path | str) -> Tokenizer:
        """From a checkpoint's folder: its tokenizer.json, or else the *.tiktoken rank file in it.

        Raises CheckpointError when there is neither.
        """
        folder = Path(folder)
        if (folder / "tokenizer.json").exists():
            return cls.from_file(folder / "tokenizer.json")
        ranks = sorted(folder.glob("*.tiktoken"))
        if len(ranks) == 1:
            return cls.from_tiktoken(ranks[0])
        raise CheckpointError(
            f"{folder} has {len(ranks)} *.tiktoken files and no tokenizer.json; one of them is needed. "
            "Copy tokenizer.json from the model's repository."
        )

    @classmethod
    def from_file(cls, path: Path | str) -> Tokenizer:
        """From a tokenizer.json; a tokenizer_config.json beside it names the first and the last token of a
        text.
        """
        path = Path(path)
        config = path.with_name("tokenizer_config.json")
        data, settings = read_json(path), read_json(config) if config.exists() else {}
        try:
            return cls(read_tokenizer_json(data, settings))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} is damaged, or {config.name} beside it: {error!r}") from error

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """From the `tokenizer.ggml.*` values of a GGUF file, as plain Python values."""
        return cls(read_metadata(metadata))

    @classmethod
    def from_tiktoken(cls, path: Path | str, special_tokens: Mapping[str, int] | None = None) -> Tokenizer:
        """From a rank file such as qwen.tiktoken, with Qwen3's control tokens unless others are given."""
        return cls(read_rank_file(Path(path), special_tokens))

    # Where it goes

    def save(self, folder: Path | str) -> None:
        """Writes tokenizer.json and tokenizer_config.json, as transformers' AutoTokenizer reads them."""
        folder = Path(folder)
        vocabulary = json.dumps(write_tokenizer_json(self.vocabulary), ensure_ascii=False)
        config = json.dumps(write_config(self.vocabulary), ensure_ascii=False, indent=2)
        (folder / "tokenizer.json").write_text(vocabulary, encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(config + "\n", encoding="utf-8")

    def gguf_metadata(self, num_rows: int | None = None) -> dict[str, Any]:
        """The `tokenizer.ggml.*` values for a GGUF file, filled up to the embedding's number of rows."""
        return write_metadata(self.vocabulary, num_rows)

    # What it does

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """The ids of a text. Never adds a token at the beginning or the end.

        With `allow_special`, special tokens written in the text become their ids, as in the reference
        tokenizer. Without, no text gives a special token's id.
        """
        if not allow_special:
            return self._encode_text(text)
        ids: list[int] = []
        for piece in self.split(text):
            if isinstance(piece, SpecialToken):
                ids.append(piece.id)
            else:
                ids += self._encode_text(piece)
        return ids

    def split(self, text: str) -> Iterator[str | SpecialToken]:
        """Special tokens in a text, the longest first where several begin, and the text between them."""
        start = 0
        for match in self._special_pattern.finditer(text):
            token = self._special[match.group()]
            if match.start() < start or not _stands_alone(token, text, match):
                continue
            before = text[start : match.start()]
            yield before.rstrip(WHITE_SPACE) if token.lstrip else before
            yield token
            start = match.end()
            if token.rstrip:
                start = len(text) - len(text[start:].lstrip(WHITE_SPACE))
        yield text[start:]

    def _encode_text(self, text: str) -> list[int]:
        ids = self._known.get(text)
        if ids is not None:
            return ids
        try:
            ids = self._encode_whole(text)
        except TypeError:  # how the Rust side takes lone surrogates
            ids = self._encode_whole(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
        self._known.put(text, ids)
        return ids

    def _encode_whole(self, text: str) -> list[int]:
        # A batch of one: `encode` would hold up all other threads, a whole server for a long prompt.
        return self._encoder.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD. `skip_special` leaves out tokens with the
        special flag, which `<tool_call>` and `<think>` don't have. Ids without a token are left out.
        """
        skipped = self._skipped if skip_special else frozenset()
        return b"".join(self.token_bytes(id) for id in ids if id not in skipped).decode("utf-8", "replace")

    def token_bytes(self, id: int) -> bytes:
        """What one token stands for; half of a character, perhaps. Nothing for an id without a token, as the
        last rows of Qwen's embedding are.
        """
        return to_bytes(self._text_of.get(id, ""))


class StreamDecoder:
    """Decodes tokens as they come, in whole characters. Joined, the pieces are the text of all ids."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = False):
        self._tokenizer = tokenizer
        self._skipped = tokenizer._skipped if skip_special else frozenset()
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The characters that this token completes. The beginning of one is held back until the rest comes,
        or until it is certain that it never will.
        """
        if token_id in self._skipped:
            return ""
        return self._utf8.decode(self._tokenizer.token_bytes(token_id))

    def finish(self) -> str:
        """What is left: U+FFFD for half a character, or nothing."""
        return self._utf8.decode(b"", final=True)


def pattern_of(special: Iterable[SpecialToken]) -> re.Pattern[str]:
    """Matches any of the tokens, the longest where several begin. Without tokens, it matches nothing."""
    texts = sorted((token.text for token in special if token.text), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, texts)) or r"(?!)")


def _stands_alone(token: SpecialToken, text: str, match: re.Match[str]) -> bool:
    if not token.single_word:
        return True
    beside = text[max(match.start() - 1, 0) : match.start()] + text[match.end() : match.end() + 1]
    return not any(char.isalnum() or char == "_" for char in beside)
