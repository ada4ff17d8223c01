"""What a loss reads of a batch beside the tokens."""

import pytest
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


def test_columns_belong_to_the_token_that_is_predicted():
    one = Sample((7, 8, 9), (False, False, True), (0, 0, -1), (0, 0, 2), (0, 0, 0.5))
    other = Sample((5, 6, 4), (False, True, True), (0, -2, -3), (0, 3, 4), (0, 0.25, 0.25))
    batch = pack([one, other])
    assert batch.token_ids_T.tolist() == [7, 8, 9, 5, 6, 4]
    assert batch.positions_T.tolist() == [0, 1, 2, 0, 1, 2] and batch.lengths == (3, 3)
    assert batch.rows_N.tolist() == [1, 3, 4]  # 9 is read from the logits of 8
    assert batch.targets_N.tolist() == [9, 6, 4] and batch.sample_N.tolist() == [0, 1, 1]
    assert batch.logprobs_N.tolist() == [-1, -2, -3] and batch.advantages_N.tolist() == [2, 3, 4]
    assert batch.weights_N.tolist() == [0.5, 0.25, 0.25]
    for floats in (batch.logprobs_N, batch.advantages_N, batch.weights_N, batch.old_N):
        assert floats.dtype == torch.float32
    for whole in (batch.rows_N, batch.targets_N, batch.sample_N, batch.token_ids_T):
        assert whole.dtype == torch.int64


def test_a_batch_of_nothing_trained():
    batch = pack([Sample((7,), (False,))])
    assert len(batch.rows_N) == len(batch.weights_N) == 0


def test_samples_that_cant_be_trained_are_refused():
    for sample in (Sample((), ()), Sample((1, 2), (True, False))):
        with pytest.raises(ValueError, match="begins with a token that is not trained"):
            pack([sample])
    with pytest.raises(ValueError, match="begins with"):
        pack([])
    with pytest.raises(ValueError, match="differ in length"):
        pack([Sample((1, 2), (False, True), (0.0,))])
