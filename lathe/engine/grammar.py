"""Grammars at work: which tokens a reply may go on with.

`Grammars` knows one vocabulary and compiles grammars for it; a `Matcher` is one reply's place in one of them.
The sampler asks it for a mask before it draws, and tells it what was drawn. llguidance does the work: an
Earley parser over a lexer of derivatives, walked along a trie of the vocabulary (docs/log.md says why not
another).

**Forced text is encoded as the tokenizer would.** Where only one text can follow, its tokens are those that
the model has seen for it, and not any that spell it. What the text decoder drops (control tokens such as
<|im_end|>) is no text and never allowed, but for the end of the turn, and that exactly where the grammar may
end.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lathe.errors import GrammarError
from lathe.text.byte_level import SpecialToken
from lathe.text.schema_grammar import parser_limits, readable, to_lark
from lathe.text.tokenizer import Tokenizer
from lathe.types import Grammar

MAX_COMPILED = 64  # grammars that are kept
MAX_SOURCE = 1_000_000  # characters

# A trie for each kind of token that most states of most grammars allow as a whole: then it is not walked. The
# first three are those of JSON's strings, without "<", at which a string in Qwen3-Coder's XML may end.
SLICES = [
    r"[\x20\x0A\x0D\x09]+",
    r'[^"<\\\x00-\x1F\x7F]{1,10}',
    r'[^"<\\\x00-\x1F\x7F]{1,30}',
    r'[^"<\\\x00-\x1F\x7F]+',
    r"[^<]+",
]


class Matcher:
    """One reply's place in its grammar. Belongs to one thread at a time."""

    def __init__(self, state: Any, num_tokens: int):
        self._state = state
        self._num_tokens = num_tokens

    @property
    def is_complete(self) -> bool:
        """Nothing can follow, or the end of the turn has been accepted."""
        return self._state.is_stopped() and not self._state.is_error()

    @property
    def may_end(self) -> bool:
        """What was said so far is a whole reply, whether or not more may follow."""
        return self._state.is_accepting()

    def allowed(self, vocab_size: int, device: torch.device | str = "cpu") -> Tensor:
        """A mask [vocab_size], True for what may come next. Rows that have no token are never allowed.

        Raises GrammarError when nothing can follow, or when finding out would take too long.
        """
        words = self._state.compute_bitmask()
        if self._state.is_error():
            raise GrammarError(f"The reply can't go on in its grammar: {readable(self._state.get_error())}.")
        bits = np.frombuffer(words, dtype=np.uint8)
        allowed_V = np.zeros(vocab_size, dtype=np.uint8)
        count = min(vocab_size, self._num_tokens)
        allowed_V[:count] = np.unpackbits(bits, count=count, bitorder="little")
        if not allowed_V.any():
            raise GrammarError(
                "The reply can't go on in its grammar: the model has no token for what must follow."
            )
        return torch.from_numpy(allowed_V.view(np.bool_)).to(device)

    def accept(self, token_id: int) -> None:
        """The reply goes on with this token. Raises GrammarError, and changes nothing, when it may not."""
        if self._state.try_consume_tokens([token_id]) != 1:
            raise GrammarError(f"The reply's grammar does not allow token {token_id} here.")

    def rollback(self, num_tokens: int) -> None:
        """Take back the last tokens that were accepted."""
        if not self._state.rollback(num_tokens):
            raise GrammarError(
                f"{num_tokens} tokens can't be taken back: {readable(self._state.get_error())}."
            )


class Grammars:
    """Compiles grammars for a tokenizer's vocabulary. Thread-safe.

    The vocabulary is prepared when the first grammar comes (about 2 s for Qwen's), a grammar once for all
    replies that ask for it: the last 64 are kept.
    """

    def __init__(self, tokenizer: Tokenizer, eos_token_ids: Collection[int]):
        self._tokenizer = tokenizer
        self._eos_token_ids = sorted(id for id in eos_token_ids if id < tokenizer.vocab_size)
        self._vocabulary: Any = None
        self._compiled: OrderedDict[Grammar, Any] = OrderedDict()
        self._lock = threading.Lock()
        self._preparing = threading.Lock()

    def matcher(self, grammar: Grammar) -> Matcher:
        """A matcher at the beginning of a reply. Raises GrammarError when the grammar can't be compiled, is
        too large, or allows no reply at all."""
        with self._lock:
            state = self._compiled.get(grammar)
        if state is None:
            state = self._compile(grammar)  # seconds, perhaps; others go on meanwhile
        with self._lock:
            self._compiled[grammar] = state
            self._compiled.move_to_end(grammar)
            if len(self._compiled) > MAX_COMPILED:
                self._compiled.popitem(last=False)
            return Matcher(state.deep_copy(), self._tokenizer.vocab_size)

    def _compile(self, grammar: Grammar) -> Any:
        from llguidance import LLMatcher  # megabytes that most replies don't need

        lark = to_lark(grammar)
        if len(lark) > MAX_SOURCE:
            raise GrammarError(f"The grammar has {len(lark):,} characters, and {MAX_SOURCE:,} are the most.")
        source = LLMatcher.grammar_from_lark(lark)
        state = LLMatcher(self._words(), source, log_level=0, limits=parser_limits())
        # Some grammars, such as {"$ref": "#"}, compile and allow nothing. That shows at the first mask.
        trial = state.deep_copy()
        if not trial.is_error():
            trial.compute_bitmask()
        if trial.is_error():
            raise GrammarError(f"The grammar can't be imposed on a reply: {readable(trial.get_error())}.")
        return state

    def _words(self) -> Any:
        from llguidance import LLTokenizer

        with self._preparing:
            if self._vocabulary is None:
                words: Any = _Words(self._tokenizer, self._eos_token_ids)
                eos_token = self._eos_token_ids or None
                self._vocabulary = LLTokenizer(words, eos_token=eos_token, slices=SLICES)
            return self._vocabulary


class _Words:
    """A tokenizer as llguidance asks for it (its `TokenizerWrapper`)."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, eos_token_ids: list[int]):
        hidden = {token.id for token in tokenizer.vocabulary.special if token.special}
        self.tokens = [tokenizer.token_bytes(id) for id in range(tokenizer.vocab_size)]
        self.special_token_ids = sorted(hidden | {*eos_token_ids})
        self.eos_token_id = eos_token_ids[0] if eos_token_ids else None
        self._tokenizer = tokenizer
        self._byte_tokens = {word[0]: id for id, word in enumerate(self.tokens) if len(word) == 1}

    def __call__(self, forced: str) -> list[int]:
        """The ids for a text that must follow."""
        ids: list[int] = []
        for piece in self._tokenizer.split(forced):
            if isinstance(piece, SpecialToken) and not piece.special:
                ids.append(piece.id)
            else:
                ids += self._tokenizer.encode(piece.text if isinstance(piece, SpecialToken) else piece)
        wanted = forced.encode()
        if b"".join(self.tokens[id] for id in ids) == wanted:
            return ids
        # A tokenizer may normalize (to Qwen's, "e" and an accent are one character) or drop what it doesn't
        # know. The grammar means these very bytes.
        return [self._byte_tokens[byte] for byte in wanted if byte in self._byte_tokens]
