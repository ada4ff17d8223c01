"""The compiled kernels draw for many sequences in one call what PyTorch draws for each."""

import pytest
import torch

from lathe.engine.sampler import sample, sample_rows
from lathe.engine.sequence import Sequence
from lathe.kernels.cpu.library import load
from lathe.types import SamplingParams

VOCAB = 9_001  # three blocks of the sum, the last of them short

SETTINGS = [
    dict(temperature=0.0),
    dict(temperature=0.0, logprobs=3),
    dict(temperature=1.0),
    dict(temperature=0.7, top_p=0.8, top_k=20),
    dict(temperature=1.3, min_p=0.05),
    dict(temperature=1.0, top_p=0.5),
    dict(temperature=0.8, top_p=0.9, repetition_penalty=1.2, presence_penalty=0.5, frequency_penalty=0.1),
    dict(temperature=0.0, repetition_penalty=1.5),
    dict(temperature=5.0, top_p=0.999),  # more candidates than the kernels look for
    dict(temperature=1.0, top_k=1_000),
]


@pytest.fixture
def library():
    return load() or pytest.skip("no compiled kernels here")


def sequences() -> list[Sequence]:
    made = [Sequence((1, 2), SamplingParams(seed=7, **each), 9, lambda _: None) for each in SETTINGS]
    for sequence in made:
        sequence.token_ids += [5, 6, 5]
    return made


def logits_of(seed: int) -> torch.Tensor:
    return torch.randn(2 * len(SETTINGS), VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("seed", range(5))
def test_one_call_for_many_draws_what_pytorch_draws_for_each(library, seed):
    logits_RV = logits_of(seed)
    rows = list(zip(range(1, 2 * len(SETTINGS), 2), sequences(), strict=True))
    for (row, twin), token in zip(
        zip(range(1, 2 * len(SETTINGS), 2), sequences(), strict=True),
        sample_rows(logits_RV, rows, library),
        strict=True,
    ):
        wanted = sample(logits_RV[row], twin)
        assert token.token_id == wanted.token_id, twin.sampling
        assert token.logprob == pytest.approx(wanted.logprob, abs=1e-5)
        assert [i for i, _ in token.top] == [i for i, _ in wanted.top]


def test_a_row_has_the_same_bits_alone(library):
    logits_RV = logits_of(0)
    together = sample_rows(logits_RV, list(enumerate(sequences())), library)
    alone = [sample(logits_RV[row], sequence, library) for row, sequence in enumerate(sequences())]
    assert together == alone
