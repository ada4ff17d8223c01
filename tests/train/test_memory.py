"""What saves memory and time changes nothing, or little: recomputed activations, and bf16."""

import math
import weakref

import pytest
import torch
from tiny_models import random_model, tiny_config

from lathe.errors import UserError
from lathe.kernels.cpu.library import load
from lathe.model.transformer import Transformer
from lathe.train.batch import Batch, Sample, pack
from lathe.train.lora import Lora, LoraConfig
from lathe.train.trainer import TrainConfig, Trainer

MOE = dict(architecture="qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
SAMPLES = [
    Sample(
        tuple((7 * n + 5 * k) % 50 for k in range(20 + n)),
        (False, *[True] * (19 + n)),
        weights=(1 / 80,) * (20 + n),
    )
    for n in range(4)
]


def nll(logprobs_N, batch: Batch):
    return -(batch.weights_N * logprobs_N).sum(), {}


def kept_bytes(trainer: Trainer) -> int:
    """What the forward pass of a step keeps for the backward pass, without the weights."""
    known = {weight.untyped_storage().data_ptr() for weight in trainer.model.parameters()}
    kept = weakref.WeakValueDictionary()

    def pack_tensor(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack_tensor, lambda tensor: tensor):
        scores = trainer.score(pack(SAMPLES))
    assert scores.logprobs_N.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("shape", [{}, MOE], ids=["dense", "moe"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_recomputed_activations_give_the_same_gradients_bit_for_bit(shape, deterministic):
    if deterministic and load() is None:
        pytest.skip("no compiled kernels here")
    found = []
    for recomputed in (False, True):
        model = random_model(tiny_config(num_layers=4, **shape))
        trainer = Trainer(model, TrainConfig(deterministic=deterministic, checkpoint_activations=recomputed))
        num_bytes = kept_bytes(trainer)
        nll(trainer.score(pack(SAMPLES)).logprobs_N, pack(SAMPLES))[0].backward()
        found.append((num_bytes, {name: weight.grad for name, weight in model.named_parameters()}))
    (all_bytes, grads), (few_bytes, again) = found
    assert few_bytes < all_bytes / 2
    for name, grad in grads.items():
        assert torch.equal(grad, again[name]), name


def curve(dtype: str, lora: bool) -> tuple[list[float], Transformer]:
    model = random_model(tiny_config(**MOE))
    adapters = Lora(model, LoraConfig(rank=4, alpha=16)) if lora else None
    trainer = Trainer(model, TrainConfig(lr=6e-3, dtype=dtype, max_tokens=50), lora=adapters)
    return [trainer.step(SAMPLES, nll)["loss"] for _ in range(12)], model


@pytest.mark.parametrize("lora", [False, True])
def test_a_bf16_run_learns_as_an_fp32_run_does(lora):
    (wide, _), (narrow, model) = curve("float32", lora), curve("bfloat16", lora)
    assert all(weight.dtype == torch.bfloat16 for weight in model.parameters())
    assert wide[-1] < 0.7 * wide[0]
    assert max(abs(a - b) for a, b in zip(wide, narrow, strict=True)) < 0.05 * wide[0]


def test_updates_below_bf16s_steps_add_up():
    model = random_model(tiny_config())
    trainer = Trainer(model, TrainConfig(lr=1e-5, dtype="bfloat16"))
    before = model.norm.weight.detach().clone()  # ones, which bf16 changes in steps of 1/256 or 1/128
    for _ in range(3):
        trainer.step(SAMPLES, nll)
    assert torch.equal(model.norm.weight, before)
    masters = dict(trainer.moved.named_parameters())
    assert math.isclose(float((masters["norm.weight"].detach() - 1).abs().mean()), 3e-5, rel_tol=0.4)


def test_exact_bf16_is_refused():
    with pytest.raises(UserError, match="deterministic training computes in float32"):
        TrainConfig(dtype="bfloat16", deterministic=True)
