"""From attempts to the gradient of a small model with experts: what must change it, and what must not."""

from dataclasses import replace
from itertools import count
from random import Random
from statistics import fmean, stdev

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_rollouts import attempt, steps, tree
from tiny_models import random_model, tiny_config

from lathe.kernels.attention import causal_attention
from lathe.kernels.cpu.library import load
from lathe.kernels.experts import grouped_experts
from lathe.train.advantage import CreditConfig, assign_credit, minibatches, weigh
from lathe.train.batch import cut, pack
from lathe.train.loss import LossConfig, policy_loss
from lathe.train.replay import with_old_policy
from lathe.train.trainer import TrainConfig, Trainer

VOCAB = 40
CONFIG = tiny_config(
    architecture="qwen3_moe",
    vocab_size=VOCAB,
    hidden_size=16,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    num_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=8,
)
MODEL = random_model(CONFIG)
QUICK = Trainer(MODEL, TrainConfig())
few = settings(deadline=None, max_examples=10)


def in_vocabulary(groups):
    """The same attempts with ids that the model knows. Their log-probabilities of before are made up."""

    def small(trajectory):
        ids = tuple(each % VOCAB for each in trajectory.token_ids)
        logprobs = tuple(
            -3.0 - each / VOCAB if sampled else 0.0
            for each, sampled in zip(ids, trajectory.loss_mask, strict=True)
        )
        return replace(trajectory, token_ids=ids, logprobs=logprobs)

    return [
        [replace(each, trajectories=tuple(map(small, each.trajectories))) for each in group]
        for group in groups
    ]


def gradient(groups, algorithm="grpo", *, max_tokens=100, on_policy=False, trainer=QUICK, **credit_changes):
    """The gradient of one update, micro-batch by micro-batch; None where there is nothing to learn."""
    credit_config = CreditConfig(**{"max_tokens": 50, **credit_changes}).like(algorithm)
    samples = weigh(assign_credit(groups, credit_config).attempts, credit_config)
    if on_policy:
        samples = with_old_policy(samples, trainer.model, trainer.mode, max_tokens)
    if not samples:
        return None
    loss_config = LossConfig(algorithm)
    trainer.model.zero_grad()
    for part in cut(samples, max_tokens):
        batch = pack(part)
        loss, _ = policy_loss(trainer.score(batch).logprobs_N, batch.old_N, batch, loss_config)
        loss.backward()
    return {name: weight.grad.clone() for name, weight in trainer.model.named_parameters()}


def same_bits(one, other):
    if one is None or other is None:
        return one is other
    return all(torch.equal(one[name], other[name]) for name in one)


def close(one, other):
    if one is None or other is None:
        assert one is other
        return
    for name, grad in one.items():
        largest = float(grad.abs().max())
        torch.testing.assert_close(other[name], grad, rtol=1e-4, atol=1e-5 * largest + 1e-8, msg=name)


FAILED = attempt(None)


def with_and_without_invalid(groups):
    """The same groups with more invalid attempts among them, and with none."""
    without = [[each for each in group if each.verdict.valid] for group in groups]
    more = [
        [replace(FAILED, task=group[0].task), *group, replace(FAILED, task=group[0].task)] for group in groups
    ]
    return [*more, [FAILED] * 4], without


@settings(deadline=None, max_examples=25)
@given(steps(), st.sampled_from(["grpo", "dr_grpo", "dapo", "cispo", "gspo", "gspo_token"]))
def test_an_invalid_attempt_changes_no_bit_of_the_gradient(groups, algorithm):
    groups = in_vocabulary(groups)
    wanted = gradient(groups, algorithm)
    for others in with_and_without_invalid(groups):
        assert same_bits(gradient(others, algorithm), wanted)


@pytest.mark.skipif(load() is None, reason="no compiled kernels here")
def test_nor_in_the_engines_kernels():
    trainer, random = Trainer(random_model(CONFIG), TrainConfig(deterministic=True)), Random(1)
    outcomes = [0.0, 1.0, None, 1.0]
    groups = in_vocabulary([[attempt(reward, trajectories=tree(random, count(1))) for reward in outcomes]])
    wanted = gradient(groups, "gspo", trainer=trainer)
    for others in with_and_without_invalid(groups):
        assert same_bits(gradient(others, "gspo", trainer=trainer), wanted)
    without_a_valid_one = gradient([groups[0][:-1]], "gspo", trainer=trainer)
    assert not same_bits(without_a_valid_one, wanted)


@few
@given(steps())
def test_order_and_cuts_are_irrelevant(groups):
    groups = in_vocabulary(groups)
    wanted = gradient(groups, "gspo", max_tokens=10_000)
    close(wanted, gradient([group[::-1] for group in groups[::-1]], "gspo", max_tokens=10_000))
    for max_tokens in (1, 60):
        close(wanted, gradient(groups, "gspo", max_tokens=max_tokens))


@few
@given(steps())
def test_the_first_updates_gradient_is_the_policy_gradient_written_out(groups):
    """On-policy, GRPO's is - mean over attempts of A / |y| x sum of grad log pi over what the model said:
    each trajectory by itself, from the rewards and masks alone."""
    groups = in_vocabulary(groups)
    terms = []
    for group in groups:
        valid = [each for each in group if each.verdict.valid]
        rewards = [each.verdict.reward for each in valid]
        if len(set(rewards)) < 2:
            continue
        for rollout, reward in zip(valid, rewards, strict=True):
            said = sum(sum(each.loss_mask) for each in rollout.trajectories)
            advantage = (reward - fmean(rewards)) / (stdev(rewards) + 1e-6)
            if said:
                terms.append((advantage / said, rollout.trajectories))
    MODEL.zero_grad()
    for factor, trajectories in terms:
        for each in trajectories:
            ids, length = torch.tensor(each.token_ids), len(each.token_ids)

            def attend(_, q_THd, k_TKd, v_TKd, length=length):
                return causal_attention(q_THd, k_TKd, v_TKd, [length])

            logits = MODEL.logits(MODEL(ids, torch.arange(length), attend, grouped_experts))
            logprobs = logits[:-1].log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
            sampled = torch.tensor(each.loss_mask)[1:]
            (-factor / len(terms) * logprobs[sampled].sum()).backward()
    wanted = {
        name: weight.grad.clone() for name, weight in MODEL.named_parameters() if weight.grad is not None
    }
    close(wanted or None, gradient(groups, "grpo", on_policy=True))


def test_two_updates_of_a_step_with_replayed_routing():
    """Minibatches, old log-probabilities and routing together: only the first has ratios of 1."""
    random = Random(3)
    groups = in_vocabulary(
        [[attempt(float(random.random() < 0.5), task=f"{task}") for _ in range(6)] for task in range(4)]
    )
    trainer = Trainer(random_model(CONFIG), TrainConfig(lr=1e-2))
    credit_config, loss_config = CreditConfig().like("grpo"), LossConfig("grpo")
    credit = assign_credit(groups, credit_config)
    parts = [
        with_old_policy(weigh(part, credit_config), trainer.model, trainer.mode, 64, routing=True)
        for part in minibatches(credit.attempts, 2)
    ]

    def loss(logprobs_N, batch):
        return policy_loss(logprobs_N, batch.old_N, batch, loss_config)

    first, second = (trainer.step(part, loss) for part in parts)
    assert first["ratio"] == pytest.approx(1.0, abs=1e-5) and first["clipped"] == 0
    assert first["kl_old"] == pytest.approx(0.0, abs=1e-9)
    assert second["kl_old"] > 1e-6


def test_a_step_without_a_useful_group_moves_nothing():
    groups = [[attempt(1.0), attempt(1.0)], [attempt(None)] * 3]
    assert gradient(groups) is None
    trainer = Trainer(random_model(CONFIG), TrainConfig(lr=1e-2, weight_decay=0.1))
    trainer.step([], lambda logprobs_N, batch: policy_loss(logprobs_N, batch.old_N, batch, LossConfig()))
    fresh = random_model(CONFIG)
    assert all(map(torch.equal, trainer.model.parameters(), fresh.parameters()))
