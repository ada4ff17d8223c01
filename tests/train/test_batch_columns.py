"""What a loss reads of a batch beside the tokens."""

import torch

from lathe.train.batch import Sample, pack


def test_old_logprobs_are_the_engines_where_a_sample_brings_none():
    plain = Sample((1, 2, 3), (False, True, True), (0.0, -1.0, -2.0))
    renewed = Sample((1, 2), (False, True), (0.0, -3.0), old_logprobs=(0.0, -3.5))
    batch = pack([plain, renewed])
    assert batch.logprobs_N.tolist() == [-1.0, -2.0, -3.0]
    assert batch.old_N.tolist() == [-1.0, -2.0, -3.5]


def test_a_reference_counts_only_when_every_sample_brings_one():
    one = Sample((1, 2), (False, True), reference_logprobs=(0.0, -1.5))
    other = Sample((1, 2), (False, True))
    assert pack([one, other]).reference_N is None
    assert torch.equal(pack([one, one]).reference_N, torch.tensor([-1.5, -1.5]))
