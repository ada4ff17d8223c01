"""The objectives against cases worked out by hand, plain float64 formulas, and finite differences."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lathe.errors import UserError
from lathe.train.batch import Sample, pack
from lathe.train.loss import LossConfig, balance_loss, expert_shares, kl, policy_loss, sft_loss

ALGORITHMS = ["grpo", "dr_grpo", "dapo", "cispo", "gspo", "gspo_token"]


def batch_of(*sizes, advantages, weights=None, engine=None):
    """Samples of so many trained tokens each, one prompt token before them."""
    numbers = iter(range(sum(sizes)))
    weights, samples = weights or [1.0] * sum(sizes), []
    for size in sizes:
        places = [next(numbers) for _ in range(size)]

        def column(values, places=places):
            return (0.0, *(values[place] for place in places))

        samples.append(
            Sample(
                tuple(range(size + 1)),
                (False, *[True] * size),
                column(engine) if engine else (),
                column(advantages),
                column(weights),
            )
        )
    batch = pack(samples)
    wide = {name: getattr(batch, name).double() for name in ("logprobs_N", "advantages_N", "weights_N")}
    return batch._replace(**wide)


def logs(*ratios):
    return torch.tensor([math.log(each) for each in ratios], dtype=torch.float64)


def loss_and_grad(ratios, batch, config, **more):
    """The loss of tokens whose old log-probability is 0, and its gradient by each log-probability."""
    logprobs = logs(*ratios).requires_grad_()
    loss, stats = policy_loss(logprobs, torch.zeros_like(logprobs), batch, config, **more)
    loss.backward()
    return loss.item(), logprobs.grad.tolist(), stats


# By hand. d rho / d log pi = rho, so a free token's gradient is -weight x rho x A, a clipped one's is 0.


def test_grpo():
    #          rho  A   min(rho A, clip(rho, .8, 1.2) A)
    # token 0  1.1  1   1.1
    # token 1  1.5  1   1.2  clipped above
    # token 2  0.5 -1  -0.8  clipped below: min(-0.5, -0.8)
    # token 3  1.5 -1  -1.5  free: min(-1.5, -1.2)
    batch = batch_of(4, advantages=[1, 1, -1, -1], weights=[0.25] * 4)
    loss, grad, stats = loss_and_grad([1.1, 1.5, 0.5, 1.5], batch, LossConfig("grpo"))
    assert loss == pytest.approx(-0.25 * (1.1 + 1.2 - 0.8 - 1.5))
    assert grad == pytest.approx([-0.25 * 1.1, 0, 0, 0.25 * 1.5])
    assert stats["clipped"] == 2
    assert stats["ratio"] == pytest.approx(1.1 + 1.5 + 0.5 + 1.5)
    # k3 of trained against old: 1/rho - 1 + log rho
    k3 = [1 / rho - 1 + math.log(rho) for rho in (1.1, 1.5, 0.5, 1.5)]
    assert stats["kl_old"] == pytest.approx(sum(k3))


def test_dapo_lets_a_ratio_grow_further_than_it_may_shrink():
    batch = batch_of(3, advantages=[1, 1, -1])
    loss, grad, _ = loss_and_grad([1.25, 1.3, 0.75], batch, LossConfig("dapo"))
    assert loss == pytest.approx(-(1.25 + 1.28 - 0.8))
    assert grad == pytest.approx([-1.25, 0, 0])


def test_dr_grpo_differs_from_grpo_by_what_its_advantages_and_weights_are():
    batch = batch_of(2, advantages=[2, -0.5])
    ratios = [1.3, 1.3]
    assert (
        loss_and_grad(ratios, batch, LossConfig("dr_grpo"))[:2]
        == loss_and_grad(ratios, batch, LossConfig("grpo"))[:2]
    )


def test_cispo_keeps_every_tokens_gradient():
    # rho 8 counts as 5; rho 0.1 has no lower bound; the gradient of sg[clip(rho)] A log pi is clip(rho) A
    batch = batch_of(3, advantages=[1, 1, -2])
    loss, grad, stats = loss_and_grad([8.0, 0.1, 2.0], batch, LossConfig("cispo"))
    assert loss == pytest.approx(-(5 * math.log(8) + 0.1 * math.log(0.1) - 4 * math.log(2)))
    assert grad == pytest.approx([-5, -0.1, 4])
    assert stats["clipped"] == 1


def test_gspo_has_one_ratio_a_sample():
    # sample 0: rho 2 and 0.5: s = sqrt(2 x 0.5) = 1, free. ds/d log pi_t = s / |y| = 1/2
    # sample 1: rho 1.1 three times: s = 1.1, clipped to 1.0004 as A > 0
    # sample 2: rho 1.1: s = 1.1, free as A < 0
    batch = batch_of(2, 3, 1, advantages=[1] * 5 + [-1], weights=[1 / 6] * 2 + [1 / 9] * 3 + [1 / 3])
    loss, grad, stats = loss_and_grad([2, 0.5, 1.1, 1.1, 1.1, 1.1], batch, LossConfig("gspo"))
    assert loss == pytest.approx(-(1 + 1.0004 - 1.1) / 3)
    assert grad == pytest.approx([-1 / 6, -1 / 6, 0, 0, 0, 1.1 / 3])
    assert stats["clipped"] == 3 and stats["ratio"] == pytest.approx(2 * 1 + 4 * 1.1)


def test_gspo_token_weighs_each_token_by_its_own_advantage():
    # s = sqrt(1.21 x 1) = 1.1 for both tokens; d(sg[s] pi/sg[pi] A_t) = s A_t, clipped for A > 0
    batch = batch_of(2, advantages=[3, -2])
    loss, grad, _ = loss_and_grad([1.21, 1.0], batch, LossConfig("gspo_token"))
    assert loss == pytest.approx(-(3 * 1.0004 - 2 * 1.1))
    assert grad == pytest.approx([0, 2 * 1.1])


def test_both_forms_of_gspo_are_one_where_a_sample_has_one_advantage():
    batch = batch_of(3, 2, advantages=[0.7] * 3 + [-1.2] * 2, weights=[0.1] * 5)
    ratios = [1.001, 0.999, 1.0001, 0.9999, 1.0003]
    whole = loss_and_grad(ratios, batch, LossConfig("gspo"))
    token = loss_and_grad(ratios, batch, LossConfig("gspo_token"))
    assert whole[0] == pytest.approx(token[0], abs=1e-12)
    assert whole[1] == pytest.approx(token[1], abs=1e-12)


def test_gspo_counts_the_turns_of_a_trajectory_together_and_no_tool():
    # prompt, turn of 1, a tool's 2 tokens, turn of 2: |y| = 3. s = (8 x 1 x 1)^(1/3) = 2
    turns = Sample((1, 2, 3, 4, 5, 6), (False, True, False, False, True, True), (), (0.0, -1, 0, 0, -1, -1))
    batch = pack([turns])
    batch = batch._replace(advantages_N=batch.advantages_N.double(), weights_N=batch.weights_N.double())
    loss, grad, _ = loss_and_grad([8, 1, 1], batch, LossConfig("gspo"))
    assert loss == pytest.approx(3 * 2)
    assert grad == pytest.approx([2, 2, 2])


def test_truncated_importance_sampling():
    # the trainer's old log-probability is 0, the engine's -log w: w = 3 counts as 2, w = 0.5 as itself
    batch = batch_of(2, advantages=[1, 1], engine=[-math.log(3), -math.log(0.5)])
    loss, grad, stats = loss_and_grad([1, 1], batch, LossConfig("grpo", correction="tis"))
    assert loss == pytest.approx(-(2 + 0.5)) and grad == pytest.approx([-2, -0.5])
    assert stats["mismatch"] == pytest.approx(math.log(3) + math.log(2)) and stats["masked"] == 0


def test_icepop_takes_out_what_differs_too_much():
    ws = [6, 5, 1, 0.5, 0.4]
    batch = batch_of(
        5, advantages=[1] * 5, engine=[-math.log(w * 0.999999 if w > 1 else w * 1.000001) for w in ws]
    )
    _, grad, stats = loss_and_grad([1] * 5, batch, LossConfig("grpo", correction="icepop"))
    assert grad == pytest.approx([0, -5, -1, -0.5, 0], rel=1e-4)
    assert stats["masked"] == 2


def test_sequence_mask_drops_whole_samples_by_their_geometric_mean():
    # sample 0: w 1.02 and 1/1.02, mean 1; sample 1: w 1.02 twice
    engine = [-math.log(1.02), math.log(1.02), -math.log(1.02), -math.log(1.02)]
    batch = batch_of(2, 2, advantages=[1] * 4, engine=engine)
    config = LossConfig("grpo", sequence_mask=(0.99, 1.01))
    _, grad, stats = loss_and_grad([1] * 4, batch, config)
    assert grad == pytest.approx([-1, -1, 0, 0]) and stats["masked"] == 2
    _, grad, _ = loss_and_grad([1] * 4, batch, replace(config, correction="tis"))
    assert grad == pytest.approx([-1.02, -1 / 1.02, 0, 0])


def test_without_mismatch_a_correction_changes_no_bit():
    batch = batch_of(3, advantages=[1, -1, 0.5], engine=[0.0, 0.0, 0.0])
    plain = loss_and_grad([1.1, 0.9, 1.0], batch, LossConfig("grpo"))[:2]
    for correction in ("tis", "icepop"):
        config = LossConfig("grpo", correction=correction, sequence_mask=(0.99, 1.01))
        assert loss_and_grad([1.1, 0.9, 1.0], batch, config)[:2] == plain


@pytest.mark.parametrize(
    "estimator, value, slope",
    [
        # r = 2: log r = 0.6931; its derivative 1; (log r)^2/2, log r; 1/2 - 1 + log 2, 1 - 1/2
        ("k1", math.log(2), 1.0),
        ("k2", math.log(2) ** 2 / 2, math.log(2)),
        ("k3", 0.5 - 1 + math.log(2), 0.5),
    ],
)
def test_kl_terms(estimator, value, slope):
    batch = batch_of(1, advantages=[0.0], weights=[0.5])
    config = LossConfig("grpo", kl_weight=0.04, kl=estimator)
    loss, grad, stats = loss_and_grad([1.0], batch, config, reference_N=-logs(2.0))
    assert loss == pytest.approx(0.5 * 0.04 * value) and grad == pytest.approx([0.5 * 0.04 * slope])
    assert stats["kl_reference"] == pytest.approx(0.5 - 1 + math.log(2))


def test_kl_estimators_have_the_gradients_that_are_said_of_them():
    """Exact expectations over four tokens: k1 moves nothing, k2 follows KL(pi || ref), k3 KL(ref || pi)."""
    generator = torch.Generator().manual_seed(0)
    logits, other = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    logits.requires_grad_()
    reference = other.log_softmax(-1)

    def gradient(of):
        return torch.autograd.grad(of(logits.log_softmax(-1)), logits)[0]

    def expected(estimator):
        return gradient(lambda logprobs: (logprobs.detach().exp() * kl(logprobs, reference, estimator)).sum())

    forward = gradient(lambda logprobs: (logprobs.exp() * (logprobs - reference)).sum())
    backward = gradient(lambda logprobs: (reference.exp() * (reference - logprobs)).sum())
    torch.testing.assert_close(expected("k1"), torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(expected("k2"), forward)
    torch.testing.assert_close(expected("k3"), backward)


def test_sft():
    batch = batch_of(2, 1, advantages=[0] * 3, weights=[0.5, 0.25, 0.25])
    logprobs = torch.tensor([-1.0, -2.0, -4.0], dtype=torch.float64, requires_grad=True)
    loss, stats = sft_loss(logprobs, batch)
    loss.backward()
    assert loss.item() == 0.5 * 1 + 0.25 * 2 + 0.25 * 4
    assert logprobs.grad.tolist() == [-0.5, -0.25, -0.25]
    assert stats["nll"] == 7


# Against plain Python in float64, token by token


def reference_loss(algorithm, log_rhos, samples, advantages, weights, log_ws, config):
    total = 0.0
    for sample in set(samples):
        own = [n for n, each in enumerate(samples) if each == sample]
        s = math.exp(sum(log_rhos[n] for n in own) / len(own))
        mean_w = math.exp(sum(log_ws[n] for n in own) / len(own))
        for n in own:
            rho = s if algorithm.startswith("gspo") else math.exp(log_rhos[n])
            low, high = config.clip
            held = min(max(rho, low), high)
            objective = min(rho * advantages[n], held * advantages[n])
            if algorithm == "cispo":
                objective = held * advantages[n] * log_rhos[n]
            w = math.exp(log_ws[n])
            if config.correction == "tis":
                objective *= min(w, 2.0)
            if config.correction == "icepop":
                objective *= w if 0.5 <= w <= 5.0 else 0.0
            if config.sequence_mask and not config.sequence_mask[0] <= mean_w <= config.sequence_mask[1]:
                objective = 0.0
            total -= weights[n] * objective
    return total


numbers = st.floats(-1.5, 1.5, allow_subnormal=False).map(lambda x: round(x, 3))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(ALGORITHMS),
    st.sampled_from(["none", "tis", "icepop"]),
    st.sampled_from([None, (0.8, 1.3)]),
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.data(),
)
def test_every_combination_is_the_plain_formula(algorithm, correction, sequence_mask, sizes, data):
    num = sum(sizes)
    log_rhos, log_ws, advantages, weights = (
        data.draw(st.lists(numbers, min_size=num, max_size=num)) for _ in range(4)
    )
    if algorithm.startswith("gspo"):
        log_rhos = [each / 1000 for each in log_rhos]
    config = LossConfig(algorithm, correction=correction, sequence_mask=sequence_mask)
    batch = batch_of(*sizes, advantages=advantages, weights=weights, engine=[-each for each in log_ws])
    batch = batch._replace(logprobs_N=-torch.tensor(log_ws, dtype=torch.float64))
    logprobs = torch.tensor(log_rhos, dtype=torch.float64)
    loss, _ = policy_loss(logprobs, torch.zeros_like(logprobs), batch, config)
    samples = [sample for sample, size in enumerate(sizes) for _ in range(size)]
    # pack keeps float32
    columns = [batch.advantages_N.tolist(), batch.weights_N.tolist()]
    expected = reference_loss(algorithm, log_rhos, samples, *columns, log_ws, config)
    assert loss.item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("algorithm", [each for each in ALGORITHMS if each not in ("cispo", "gspo_token")])
@pytest.mark.parametrize("correction", ["none", "tis", "icepop"])
def test_gradients_are_those_of_finite_differences(algorithm, correction):
    """With stop-gradients (CISPO, GSPO-token) the value's slope is another number: those are done by hand."""
    generator = torch.Generator().manual_seed(1)
    step = 1e-3 if algorithm == "gspo" else 0.5
    logprobs = (torch.randn(9, generator=generator, dtype=torch.float64) * step).requires_grad_()
    advantages = torch.randn(9, generator=generator).tolist()
    batch = batch_of(2, 4, 3, advantages=advantages, engine=torch.randn(9, generator=generator).tolist())
    config = LossConfig(algorithm, correction=correction, kl_weight=0.1, kl="k3")
    reference, zeros = -torch.rand(9, dtype=torch.float64, generator=generator), torch.zeros(9).double()
    assert torch.autograd.gradcheck(
        lambda each: policy_loss(each, zeros, batch, config, reference)[0], (logprobs,), eps=1e-7, atol=1e-6
    )


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_micro_batches_add_up_to_the_step(algorithm):
    generator = torch.Generator().manual_seed(2)
    sizes = [3, 1, 4, 2, 5]
    samples, logprobs = [], []
    for size in sizes:
        columns = torch.randn(5, size + 1, generator=generator) * 0.01
        old, engine, advantages, weights, new = ((0.0, *each) for each in columns[:, 1:].tolist())
        mask = (False, *[True] * size)
        samples.append(Sample(tuple(range(size + 1)), mask, engine, advantages, weights, old_logprobs=old))
        logprobs.append(torch.tensor(new[1:]))
    config = LossConfig(algorithm, correction="icepop", sequence_mask=(0.999, 1.001))

    def run(part):
        leaves = torch.cat([logprobs[place] for place in part]).requires_grad_()
        batch = pack([samples[place] for place in part])
        loss, stats = policy_loss(leaves, batch.old_N, batch, config)
        loss.backward()
        return loss.detach(), leaves.grad, stats

    loss, grad, stats = run(range(5))
    parts = [run(part) for part in ([0, 1], [2], [3, 4])]
    torch.testing.assert_close(sum(part[0] for part in parts), loss)
    assert torch.equal(torch.cat([part[1] for part in parts]), grad)  # to the bit: samples know no neighbours
    for name, value in stats.items():
        torch.testing.assert_close(sum(part[2][name] for part in parts), value, msg=name)


def test_no_trained_token_gives_a_loss_of_nothing_that_can_be_differentiated():
    batch = pack([Sample((1, 2), (False, False))])
    for algorithm in ALGORITHMS:
        logprobs = torch.zeros(0, requires_grad=True)
        loss, stats = policy_loss(logprobs, batch.old_N, batch, LossConfig(algorithm))
        loss.backward()
        assert loss == 0 and not any(stats.values())


def test_absurd_ratios_stay_finite():
    batch = batch_of(2, advantages=[-1, 1], engine=[-300.0, 0.0])
    logprobs = torch.tensor([0.0, -300.0], requires_grad=True)
    for algorithm in ALGORITHMS:
        config = LossConfig(algorithm, kl_weight=0.1)
        loss, stats = policy_loss(logprobs, torch.tensor([-300.0, 0.0]), batch, config, torch.zeros(2))
        loss.backward()
        assert loss.isfinite() and logprobs.grad.isfinite().all()
        assert all(each.isfinite() for each in stats.values())


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(UserError, match=r"algorithm is 'ppo'; known are grpo"):
        LossConfig("ppo")
    with pytest.raises(UserError, match=r"clip_low is -0\.2"):
        LossConfig("grpo", clip_low=-0.2)
    with pytest.raises(UserError, match="correction_low and correction_high are 3 and 2"):
        LossConfig("grpo", correction="tis", correction_low=3)
    with pytest.raises(ValueError, match="no log-probabilities of a reference"):
        batch = batch_of(1, advantages=[1])
        policy_loss(logs(1.0), logs(1.0), batch, LossConfig(kl_weight=0.1))


# Balance of experts


def test_balance_loss():
    # Two experts, one of them for each token; two tokens, both to expert 0, with probabilities 3/4 and 1/2:
    # f = (1, 0), P = (5/8, 3/8): 2 x 5/8
    logits = torch.tensor([[[math.log(3), 0.0], [0.0, 0.0]]], requires_grad=True)
    ids = torch.tensor([[[0], [0]]])
    loss = balance_loss(logits, ids)
    assert loss.item() == pytest.approx(1.25)
    # d/dz_0 of 2 x (p_0)/2 tokens is p_0 p_1 = 3/16, 1/4
    loss.backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[[3 / 16, -3 / 16], [1 / 4, -1 / 4]]]))


def test_balance_loss_is_1_when_balanced_and_experts_by_k_when_not():
    even = torch.zeros(2, 4, 4)
    ids = torch.tensor([[0, 1], [2, 3], [0, 1], [2, 3]]).expand(2, 4, 2)
    assert balance_loss(even, ids).item() == pytest.approx(1.0)
    one_sided = torch.tensor([30.0, 30.0, 0.0, 0.0]).expand(2, 4, 4)
    assert balance_loss(one_sided, torch.tensor([0, 1]).expand(2, 4, 2)).item() == pytest.approx(2.0)


def test_with_the_steps_shares_micro_batches_of_the_balance_loss_add_up():
    logits = torch.randn(3, 10, 6, generator=torch.Generator().manual_seed(3))
    ids = logits.topk(2, -1).indices
    shares = expert_shares(ids, 6)
    parts = [
        balance_loss(logits[:, a:b], ids[:, a:b], shares) * (b - a) / 10 for a, b in ((0, 3), (3, 4), (4, 10))
    ]
    torch.testing.assert_close(sum(parts), balance_loss(logits, ids))
