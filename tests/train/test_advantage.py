"""Who gets credit for what: properties that hold for any groups, and numbers worked out by hand."""

import math
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_rollouts import attempt, steps, trajectory

from lathe.agent import context
from lathe.errors import UserError
from lathe.testing import ScriptedModel
from lathe.train.advantage import (
    CreditConfig,
    assign_credit,
    group_advantages,
    minibatches,
    refill,
    weigh,
)
from lathe.train.reward import RewardConfig
from lathe.types import (
    Completion,
    Message,
    SamplingParams,
    Segment,
    TokenLogprob,
    Trajectory,
)

GSPO = CreditConfig().like("gspo")
MEAN = CreditConfig(scale_by_std=False).like("grpo")


configs = st.builds(
    CreditConfig,
    baseline=st.sampled_from(["mean", "leave_one_out"]),
    scale_by_std=st.booleans(),
    normalization=st.sampled_from(["sequence", "token", "constant"]),
    max_tokens=st.just(50),
    truncated=st.sampled_from(["train", "mask", "drop"]),
)
cut_off = ("length", "max_turns")


def useful(group, config):
    """The valid attempts of a group whose rewards differ, written down once more."""
    valid = [each for each in group if each.verdict.valid]
    if config.truncated == "drop":
        valid = [each for each in valid if each.stop_reason not in cut_off]
    return valid if len({each.verdict.reward for each in valid}) > 1 else []


def trained(samples):
    return Counter(
        token
        for sample in samples
        for token, mask in zip(sample.token_ids, sample.loss_mask, strict=True)
        if mask
    )


# Properties


@settings(deadline=None, max_examples=50)
@given(steps(), configs)
def test_every_sampled_token_of_a_valid_attempt_is_trained_exactly_once(groups, config):
    wanted = Counter()
    for group in groups:
        for rollout in useful(group, config):
            if not (config.truncated == "mask" and rollout.stop_reason in cut_off):
                for each in rollout.trajectories:
                    wanted.update(
                        token for token, mask in zip(each.token_ids, each.loss_mask, strict=True) if mask
                    )
    assert set(wanted.values()) <= {1}
    credit = assign_credit(groups, config)
    assert trained(sample for each in credit.attempts for sample in each) == wanted
    assert trained(weigh(credit.attempts, config)) == wanted
    assert credit.stats["reward"] >= 0 and credit.num_groups == len(groups)
    assert credit.num_useful + credit.num_equal + credit.num_too_small == len(groups)


@settings(deadline=None, max_examples=50)
@given(steps(), configs)
def test_an_invalid_attempt_is_as_if_it_had_never_been(groups, config):
    without = [[each for each in group if each.verdict.valid] for group in groups]
    assert assign_credit(groups, config).attempts == assign_credit(without, config).attempts
    faulty = [[each, attempt(None, task=each.task)] for group in groups for each in group[:1]]
    assert assign_credit(faulty, config).attempts == ()


@settings(deadline=None, max_examples=50)
@given(steps(), configs)
def test_an_attempt_has_one_advantage_whatever_tree_of_trajectories_it_grew(groups, config):
    """Every attempt shrunk to one trajectory of one turn: the same advantages."""
    flat = [[replace(each, trajectories=(trajectory(1, 1),)) for each in group] for group in groups]

    def advantages(groups):
        """The advantage of each attempt that has one, by what it attempted and in which place."""
        credit = assign_credit(groups, config)
        owners = {
            each.id: rollout.id for group in groups for rollout in group for each in rollout.trajectories
        }
        found = {}
        for samples in credit.attempts:
            for sample in samples:
                (value,) = {
                    value for value, mask in zip(sample.advantages, sample.loss_mask, strict=True) if mask
                }
                assert found.setdefault(owners[sample.trajectory], value) == value
        return found

    wanted, found = advantages(flat), advantages(groups)
    silent = {
        each.id for group in groups for each in group if not any(any(t.loss_mask) for t in each.trajectories)
    }
    assert found == {id: value for id, value in wanted.items() if id not in silent}


@settings(deadline=None, max_examples=50)
@given(steps(), configs, st.randoms(use_true_random=False))
def test_the_order_of_attempts_changes_no_advantage(groups, config, random):
    shuffled = [random.sample(group, len(group)) for group in random.sample(groups, len(groups))]

    def by_trajectory(groups):
        samples = (sample for each in assign_credit(groups, config).attempts for sample in each)
        return {sample.trajectory: sample.advantages for sample in samples}

    assert by_trajectory(shuffled) == by_trajectory(groups)


@settings(deadline=None, max_examples=50)
@given(steps(), configs)
def test_advantages_of_a_group_have_no_sum(groups, config):
    for group in groups:
        rewards = [each.verdict.reward for each in group if each.verdict.valid]
        advantages = group_advantages(rewards, config)
        assert sum(advantages) == pytest.approx(0, abs=1e-6)
        assert all(math.isfinite(each) and abs(each) <= len(rewards) for each in advantages)
        ranked = sorted(zip(rewards, advantages, strict=True))
        assert [each for _, each in ranked] == sorted(advantages)


@settings(deadline=None, max_examples=50)
@given(steps(), configs)
def test_weights_average_as_they_say(groups, config):
    credit = assign_credit(groups, config)
    samples = weigh(credit.attempts, config)
    total = math.fsum(weight for sample in samples for weight in sample.weights)
    num_tokens = sum(sample.num_trained for sample in samples)
    if not credit.attempts:
        assert total == 0
    elif config.normalization == "constant":
        assert total == pytest.approx(num_tokens / (50 * len(credit.attempts)))
    else:
        assert total == pytest.approx(1.0)
    places = iter(samples)
    for one in credit.attempts:
        own = [next(places) for _ in one]
        weight = math.fsum(each for sample in own for each in sample.weights)
        if config.normalization == "sequence":
            assert weight == pytest.approx(1 / len(credit.attempts))
        if config.normalization == "token":
            assert weight == pytest.approx(sum(each.num_trained for each in own) / num_tokens)


@given(st.integers(0, 9), st.integers(1, 5))
def test_minibatches_hold_every_attempt_once(num_attempts, num):
    whole = [(number,) for number in range(num_attempts)]
    parts = minibatches(whole, num)
    assert sorted(each for part in parts for each in part) == whole
    assert all(parts) and len(parts) == min(num, num_attempts)
    assert max(map(len, parts), default=0) - min(map(len, parts), default=0) <= 1


@given(st.integers(1, 20), st.integers(1, 60), st.lists(st.booleans(), max_size=100))
def test_refilling_ends(wanted, max_tried, is_useful):
    """Whatever becomes of the groups: all answers but the last make progress, none goes beyond the limit."""
    max_tried, fates = max(wanted, max_tried), iter(is_useful)
    num_tried = num_useful = 0
    while num_more := refill(num_useful, num_tried, wanted=wanted, max_tried=max_tried).num_more:
        assert num_more > 0
        num_tried += num_more
        num_useful += sum(next(fates, False) for _ in range(num_more))
    assert num_tried <= max_tried
    shortfall = refill(num_useful, num_tried, wanted=wanted, max_tried=max_tried).shortfall
    assert (shortfall is None) == (num_useful >= wanted)


def test_a_shortfall_is_said():
    assert refill(3, 24, wanted=8, max_tried=24).shortfall == (
        "3 of 8 groups are of use after 24 were sampled: the step goes on with 3"
    )
    assert "nothing to learn from" in refill(0, 24, wanted=8, max_tried=24).shortfall


# By hand


def test_advantages_by_hand():
    # rewards 1 0 0 1 0.5: mean 0.5, deviations .5 -.5 -.5 .5 0, variance (4 x .25)/4 = .25, std .5
    rewards = [1.0, 0.0, 0.0, 1.0, 0.5]
    assert group_advantages(rewards, CreditConfig().like("grpo")) == pytest.approx(
        [1, -1, -1, 1, 0], rel=1e-5
    )
    assert group_advantages(rewards, CreditConfig(max_tokens=9).like("dr_grpo")) == [0.5, -0.5, -0.5, 0.5, 0]
    # the others' mean: (1.5)/4 for a 1, (2.5)/4 for a 0, 2/4 for the half
    others = CreditConfig("leave_one_out", scale_by_std=False)
    assert group_advantages(rewards, others) == pytest.approx([0.625, -0.625, -0.625, 0.625, 0])
    assert group_advantages(rewards, CreditConfig("none", scale_by_std=False)) == rewards
    assert group_advantages([0.1] * 3, GSPO) == [0, 0, 0] and group_advantages([1.0], GSPO) == [0]


def test_a_group_of_uneven_attempts_by_hand():
    # rewards 1, 0, 0: mean 1/3. The first has a sub-agent: 2 + 3 tokens; the others 4 and 1.
    main = trajectory(2, 2, first_id=1)
    helper = trajectory(1, 3, first_id=10, parent=main.id)
    group = [
        attempt(1.0, main, helper),
        attempt(0.0, trajectory(2, 4, first_id=20)),
        attempt(None, trajectory(2, 9, first_id=30)),
        attempt(0.0, trajectory(2, 1, first_id=40)),
    ]
    credit = assign_credit([group], MEAN)
    assert [len(each) for each in credit.attempts] == [2, 1, 1]
    values = [sample.advantages[-1] for each in credit.attempts for sample in each]
    assert values == pytest.approx([2 / 3, 2 / 3, -1 / 3, -1 / 3])
    by_sequence = [sample.weights[-1] for sample in weigh(credit.attempts, MEAN)]
    assert by_sequence == pytest.approx([1 / 15, 1 / 15, 1 / 12, 1 / 3])
    by_token = weigh(credit.attempts, replace(MEAN, normalization="token"))
    assert [sample.weights[-1] for sample in by_token] == pytest.approx([0.1] * 4)
    constant = weigh(credit.attempts, replace(MEAN, normalization="constant", max_tokens=20))
    assert [sample.weights[-1] for sample in constant] == pytest.approx([1 / 60] * 4)
    assert credit.stats["invalid"] == 0.25 and credit.stats["reward"] == pytest.approx(1 / 3)


def test_groups_that_teach_nothing_are_counted():
    equal, alone = [attempt(1.0), attempt(1.0)], [attempt(1.0), attempt(None)]
    down, good = [attempt(None), attempt(None)], [attempt(1.0), attempt(0.0)]
    credit = assign_credit([equal, alone, down, good], GSPO)
    assert (credit.num_useful, credit.num_equal, credit.num_too_small) == (1, 1, 2)
    assert len(credit.attempts) == 2


def test_truncated_attempts():
    group = [attempt(1.0), attempt(0.0), attempt(0.0, stop_reason="length")]
    values = {}
    for rule in ("train", "mask", "drop"):
        credit = assign_credit([group], replace(MEAN, truncated=rule))
        values[rule] = [each[0].advantages[-1] for each in credit.attempts]
    assert values["train"] == pytest.approx([2 / 3, -1 / 3, -1 / 3])
    assert values["mask"] == pytest.approx([2 / 3, -1 / 3])
    assert values["drop"] == [0.5, -0.5]


def test_stale_tokens():
    # weights 3 began the first attempt's reply, 7 ended it; 8 are trained
    mixed = replace(trajectory(1, 4), segments=(Segment(1, 5, "stop", 3, ((3, 7),)),))
    group = [
        attempt(1.0, mixed),
        attempt(0.0, trajectory(1, 2, version=8)),
        attempt(0.5, trajectory(1, 1, version=7)),
    ]
    kept = assign_credit([group], MEAN, version=8)
    assert [each[0].num_trained for each in kept.attempts] == [4, 2, 1]
    assert kept.stats["largest_staleness"] == 5 and kept.stats["staleness"] == pytest.approx(
        (5 + 5 + 1 + 1 + 1) / 7
    )
    masked = assign_credit([group], replace(MEAN, stale="mask", max_staleness=4), version=8)
    assert masked.attempts[0][0].loss_mask == (False, False, False, True, True)
    assert masked.attempts[0][0].advantages[-1] == 0.5  # its reward stays in the baseline
    dropped = assign_credit([group], replace(MEAN, stale="drop", max_staleness=4), version=8)
    assert [each[0].advantages[-1] for each in dropped.attempts] == [-0.25, 0.25]
    with pytest.raises(ValueError, match="version that is trained is not said"):
        assign_credit([group], replace(MEAN, stale="drop", max_staleness=4))


def test_what_another_engine_did_not_tell_is_not_trained():
    """Replies with guessed ids stand in the trajectory as prompt, also in files of before."""
    told = Completion(Message("assistant", "a"), (1,), (2,), (TokenLogprob(2, -0.5),), "stop")
    guessed = Completion(
        Message("assistant", "b"), (1, 2, 3), (4,), (TokenLogprob(4, -math.inf),), "stop", is_exact=False
    )
    grown = Trajectory((Message("user", "hi"),)).extend(told).add(Message("user", "more")).extend(guessed)
    old = replace(grown, loss_mask=(False, True, False, True), logprobs=(0.0, -0.5, 0.0, -math.inf))
    for each in (grown, old):
        credit = assign_credit([[attempt(1.0, each), attempt(0.0)]], GSPO)
        assert credit.attempts[0][0].loss_mask == (False, True, False, False)


def test_tokens_drawn_from_another_distribution_are_counted():
    warm = Segment(1, 3, "stop", sampling=SamplingParams(temperature=0.7))
    plain = Segment(1, 3, "stop", sampling=SamplingParams(max_tokens=9, seed=1))
    group = [
        attempt(reward, replace(trajectory(1, 2), segments=(segment,)))
        for reward, segment in ((1.0, warm), (0.0, plain))
    ]
    assert assign_credit([group], GSPO).stats["drawn_otherwise"] == 0.5


def test_a_suspect_earns_nothing_even_with_shaped_parts():
    suspect = attempt(0.0, suspect="it read the hidden tests")
    credit = assign_credit([[attempt(1.0), suspect]], MEAN)
    assert credit.attempts[1][0].advantages[-1] == -0.5
    assert credit.stats["suspect"] == 0.5


def test_faults_of_the_caller_raise():
    unjudged = replace(attempt(1.0), verdict=None)
    with pytest.raises(ValueError, match="no verdict"):
        assign_credit([[unjudged]], GSPO)
    with pytest.raises(ValueError, match="more than one task"):
        assign_credit([[attempt(1.0, task="a"), attempt(0.0, task="b")]], GSPO)
    twice = trajectory(1, 1, id="same")
    with pytest.raises(ValueError, match="holds a trajectory twice"):
        assign_credit([[attempt(1.0, twice, twice), attempt(0.0)]], GSPO)
    with pytest.raises(ValueError, match=r"take CreditConfig\.like"):
        weigh(assign_credit([[attempt(1.0), attempt(0.0)]], GSPO).attempts, CreditConfig())


def test_settings_that_lack_something_are_refused():
    with pytest.raises(UserError, match=r"dr_grpo divides by a constant: set credit\.max_tokens"):
        CreditConfig().like("dr_grpo")
    with pytest.raises(UserError, match=r"needs credit\.max_staleness"):
        CreditConfig(stale="mask")
    with pytest.raises(UserError, match=r"credit\.max_tokens is 0"):
        CreditConfig(max_tokens=0)
    assert CreditConfig(normalization="token").like("dr_grpo").normalization == "token"


def test_shaped_parts_are_logged_apart_and_off_by_default():
    group = [attempt(1.0), attempt(0.0, stop_reason="max_turns")]
    assert "reward_unfinished" not in assign_credit([group], MEAN).stats
    shaped = assign_credit([group], MEAN, RewardConfig(unfinished=0.5))
    assert shaped.stats["reward_verdict"] == 0.5 and shaped.stats["reward_unfinished"] == -0.25
    assert shaped.stats["reward"] == 0.25 and shaped.stats["solved"] == 0.5
    assert [each[0].advantages[-1] for each in shaped.attempts] == [0.75, -0.75]


async def test_a_conversation_that_was_really_summed_up_is_trained_once():
    """Real replies, a real compaction: in their order, the trained tokens are those that were sampled."""
    sampled = []

    class Noting(ScriptedModel):
        async def complete(self, *arguments, **more):
            completion = await super().complete(*arguments, **more)
            sampled.extend(completion.token_ids)
            return completion

    def answer(prompt):
        return "Three questions were asked." if context.SUMMARIZE in prompt else f"My answer: {len(prompt)}."

    model = Noting(answer=answer)
    grown, ended = Trajectory((Message("system", "Be short."), Message("user", "Begin."))), []
    for turn in range(6):
        if turn == 3:
            done = await context.compact(model, grown, 32_768)
            assert done.completion is not None
            ended, grown = list(done.ended), done.after
        elif turn:
            grown = grown.add(Message("user", f"Question {turn}?"))
        grown = grown.extend(await model.complete(grown))
    trajectories = (*ended, grown)
    assert len(trajectories) == 2 and grown.parent == ended[0].id
    credit = assign_credit([[attempt(1.0, *trajectories), attempt(0.0)]], GSPO)
    samples = credit.attempts[0]
    found = [
        token
        for sample in samples
        for token, mask in zip(sample.token_ids, sample.loss_mask, strict=True)
        if mask
    ]
    assert len(samples) == 2 and found == sampled
