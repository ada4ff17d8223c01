"""A model without weights: it says anything that a grammar lets through."""

import random

from lathe.engine.grammar import Matcher
from lathe.testing import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
CLOSING = frozenset(b'"}]<>/\n')


def babble(matcher: Matcher, choice: random.Random, *, limit: int) -> str | None:
    """A whole reply, drawn at random with a liking for what ends things; None if it is not done in time."""
    ids: list[int] = []
    while not matcher.is_complete:
        if len(ids) == limit:
            return None
        allowed = matcher.allowed(300).nonzero().flatten().tolist()
        closing = [id for id in allowed if id in CLOSING]
        if TOKENIZER.special_tokens["<|im_end|>"] in allowed and choice.random() < 0.3:
            break
        token_id = choice.choice(closing if closing and choice.random() < 0.4 else allowed)
        matcher.accept(token_id)
        ids.append(token_id)
    return TOKENIZER.decode(ids, skip_special=True)
