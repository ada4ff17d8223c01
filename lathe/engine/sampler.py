"""From logits to the next token: penalties, temperature, truncation, one uniform number a token.

Order: repetition, presence and frequency penalties, the grammar's mask, temperature, top_k, top_p, min_p (the
order of transformers' warpers). A sequence is drawn by itself from its own generator, so its tokens never
depend on the batch.

Shapes: V vocabulary; C candidates that truncation left, best first.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lathe.engine.sequence import History, Sequence
from lathe.errors import InvalidRequest
from lathe.kernels.cpu.library import Library
from lathe.kernels.cpu.sampling import draw, normalizer, wish
from lathe.kernels.cpu.table import Draw
from lathe.types import SamplingParams, TokenLogprob

# top_p needs the tokens in order, but hardly ever many: sorting these first is exact and saves the rest.
FIRST_CANDIDATES = 512


def sample(logits_V: Tensor, sequence: Sequence, library: Library | None = None) -> TokenLogprob:
    """The next token, which the sequence's grammar has accepted. Its log-probability is that of the raw
    logits (see types.TokenLogprob). Raises GrammarError when the grammar allows no token.

    With a `library` the compiled kernels draw, where they can.
    """
    logits_V = logits_V.float()
    if sequence.matcher is None and library is not None:
        return sample_rows(logits_V[None], [(0, sequence)], library)[0]
    if sequence.matcher is None:
        token_id = _choose(_penalized(logits_V, sequence), sequence.sampling, _uniform(sequence))
    else:
        allowed_V = sequence.matcher.allowed(len(logits_V), logits_V.device)
        scores_V = _penalized(logits_V, sequence).masked_fill(~allowed_V, -math.inf)
        token_id = _choose(scores_V, sequence.sampling, _uniform(sequence))
        sequence.matcher.accept(token_id)
    return report_token(token_id, logits_V, sequence.sampling.logprobs or 0, library)


def sample_rows(logits_RV: Tensor, rows: list[tuple[int, Sequence]], library: Library) -> list[TokenLogprob]:
    """The next tokens of some sequences without grammars, each from the row of its number, by one call of the
    compiled kernels. What they can't tell apart is drawn here. The logits are contiguous float32."""
    wishes = [_wish(row, sequence, logits_RV) for row, sequence in rows]
    tokens: list[TokenLogprob] = []
    for (row, sequence), made, drawn in zip(rows, wishes, draw(library, logits_RV, wishes), strict=True):
        sampling, token_id = sequence.sampling, drawn.token_id
        if token_id is not None and not sampling.logprobs:
            tokens.append(TokenLogprob(token_id, drawn.logprob))
            continue
        logits_V = logits_RV[row]
        if token_id is None:
            token_id = _choose(_penalized(logits_V, sequence), sampling, made.uniform)
        tokens.append(_reported(token_id, logits_V, sampling.logprobs or 0, drawn.normalizer))
    return tokens


def check_sampling(sampling: SamplingParams) -> None:
    """Raises InvalidRequest for numbers that have no meaning, naming the first one."""
    s = sampling
    rules = {
        "temperature": (0.0 <= s.temperature < math.inf, "at least 0"),
        "top_p": (0.0 < s.top_p <= 1.0, "more than 0 and at most 1"),
        "top_k": (s.top_k >= 0, "at least 0 (0 is off)"),
        "min_p": (0.0 <= s.min_p <= 1.0, "from 0 to 1"),
        "repetition_penalty": (0 < s.repetition_penalty < math.inf, "above 0"),
        "presence_penalty": (math.isfinite(s.presence_penalty), "a number"),
        "frequency_penalty": (math.isfinite(s.frequency_penalty), "a number"),
        "max_tokens": (s.max_tokens is None or s.max_tokens >= 0, "at least 0"),
        "logprobs": (s.logprobs is None or s.logprobs >= 0, "at least 0"),
        "prompt_logprobs": (s.prompt_logprobs is None or s.prompt_logprobs >= 0, "at least 0"),
        "n": (s.n >= 1, "at least 1"),
    }
    for name, (is_valid, meaning) in rules.items():
        if not is_valid:
            raise InvalidRequest(f"{name} is {getattr(sampling, name)}, but it must be {meaning}.")


def _has_penalties(sampling: SamplingParams) -> bool:
    return (
        sampling.repetition_penalty != 1.0
        or sampling.presence_penalty != 0.0
        or sampling.frequency_penalty != 0.0
    )


def _history(logits_V: Tensor, sequence: Sequence) -> History:
    if sequence.history is None:
        sequence.history = History(logits_V.shape[-1], logits_V.device)
    sequence.history.note(sequence)
    return sequence.history


def _penalized(logits_V: Tensor, sequence: Sequence) -> Tensor:
    sampling = sequence.sampling
    if not _has_penalties(sampling):
        return logits_V
    history = _history(logits_V, sequence)
    factor = sampling.repetition_penalty
    repeated_V = torch.where(logits_V > 0, logits_V / factor, logits_V * factor)
    logits_V = torch.where(history.seen_V, repeated_V, logits_V)
    return (
        logits_V
        - sampling.presence_penalty * (history.counts_V > 0)
        - sampling.frequency_penalty * history.counts_V
    )


def _uniform(sequence: Sequence) -> float:
    """One random number a token, and none for a greedy one."""
    return 0.0 if sequence.sampling.temperature == 0 else sequence.random.random()


def _wish(row: int, sequence: Sequence, logits_RV: Tensor) -> Draw:
    s = sequence.sampling
    history = _history(logits_RV, sequence) if _has_penalties(s) else None
    return wish(
        row,
        temperature=s.temperature,
        top_k=s.top_k,
        top_p=s.top_p,
        min_p=s.min_p,
        uniform=_uniform(sequence),
        penalties=(s.repetition_penalty, s.presence_penalty, s.frequency_penalty) if history else None,
        seen_V=history.seen_V if history else None,
        counts_V=history.counts_V if history else None,
    )


def _choose(logits_V: Tensor, sampling: SamplingParams, uniform: float) -> int:
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    # float64: a cumulative sum over 150,000 probabilities must end at 1.
    # The best goes to 0 before the division: a tiny temperature must make the others -inf, not the best inf.
    scores_V = logits_V.double()
    probs_V = torch.softmax((scores_V - scores_V.max()) / sampling.temperature, dim=-1)
    probs_C, ids_C = _truncated(probs_V, sampling.top_k, sampling.top_p, sampling.min_p)
    cumulative_C = probs_C.cumsum(dim=-1)
    point = uniform * float(cumulative_C[-1])
    index = int(torch.searchsorted(cumulative_C, point, right=True))
    if index == len(ids_C):  # rounding has put the point at the end, where an impossible token may stand
        index = int(probs_C.argmax())
    return int(ids_C[index])


def _truncated(probs_V: Tensor, top_k: int, top_p: float, min_p: float) -> tuple[Tensor, Tensor]:
    """The candidates that stay, best first, and their probabilities (not normalized again)."""
    vocab_size = probs_V.shape[-1]
    if top_k <= 0 and top_p >= 1.0 and min_p <= 0.0:
        return probs_V, torch.arange(vocab_size, device=probs_V.device)
    limit = min(top_k, vocab_size) if top_k > 0 else vocab_size
    count = limit if top_k > 0 else min(FIRST_CANDIDATES, vocab_size)
    while True:
        probs_C, ids_C = probs_V.topk(count)
        total = float(probs_C.sum()) if top_k > 0 else 1.0
        before_C = probs_C.cumsum(dim=-1) - probs_C
        keep_C = (before_C < top_p * total) & (probs_C >= min_p * probs_C[0])
        keep_C[0] = True  # however small top_p is, one token stays
        if not bool(keep_C[-1]) or count == limit:
            return probs_C[keep_C], ids_C[keep_C]
        count = min(count * 8, limit)


def report_token(
    token_id: int, logits_V: Tensor, num_top: int, library: Library | None = None
) -> TokenLogprob:
    """A token and the `num_top` best, with their log-probabilities.

    One row at a time: how a sum over several rows is split depends on how many there are.
    """
    logits_V = logits_V.float()
    total = float(logits_V.logsumexp(dim=-1)) if library is None else normalizer(library, logits_V)
    return _reported(token_id, logits_V, num_top, total)


def _reported(token_id: int, logits_V: Tensor, num_top: int, total: float) -> TokenLogprob:
    logprob = float(logits_V[token_id] - total)
    if num_top == 0:
        return TokenLogprob(token_id, logprob)
    values, ids = logits_V.topk(min(num_top, logits_V.shape[-1]))
    return TokenLogprob(token_id, logprob, tuple(zip(ids.tolist(), (values - total).tolist(), strict=True)))
