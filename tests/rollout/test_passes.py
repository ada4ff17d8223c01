"""pass@k against its definition, and what is counted."""

from itertools import combinations

import pytest

from lathe.rollout.passes import Score, pass_at_k
from lathe.types import Verdict


@pytest.mark.parametrize("n", range(1, 8))
def test_the_estimator_is_the_mean_over_all_choices_of_k_attempts(n):
    for solved in range(n + 1):
        attempts = [place < solved for place in range(n)]
        for k in range(1, n + 1):
            chosen = [any(each) for each in combinations(attempts, k)]
            assert pass_at_k(n, solved, k) == pytest.approx(sum(chosen) / len(chosen))


@pytest.mark.parametrize(("n", "solved", "k"), [(3, 1, 4), (3, 4, 1), (3, -1, 1), (3, 1, 0), (0, 0, 1)])
def test_what_can_not_be_estimated(n, solved, k):
    with pytest.raises(ValueError, match="no pass@"):
        pass_at_k(n, solved, k)


def test_invalid_attempts_are_counted_apart():
    score = Score()
    for reward in (1.0, 0.0, None, None):
        score.add("a", Verdict(reward) if reward is not None else Verdict(reason="disk full"))
    score.add("b", Verdict(reason="disk full"))
    score.add("c", Verdict(0.0, suspect="it read the tests"))
    assert (score.num_solved, score.num_failed, score.num_invalid, score.num_suspect) == (1, 2, 3, 1)
    assert score.pass_at(1) == (0.25, 2)
    assert score.pass_at(2) == (1.0, 1)
    assert score.pass_at(3) == (None, 0)
    assert score.reasons == {"disk full": 3}
