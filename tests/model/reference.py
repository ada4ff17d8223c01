"""Tiny models of transformers, and what it takes to run and check Lathe's beside them."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lathe.kernels.experts import grouped_experts
from lathe.model.transformer import Transformer

SIZES = dict(
    vocab_size=320,
    hidden_size=64,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=96,
    max_position_embeddings=256,
    initializer_range=0.15,
    eos_token_id=None,
    pad_token_id=0,
)
EXPERTS = dict(num_experts=8, num_experts_per_tok=3, moe_intermediate_size=48, norm_topk_prob=True)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64, rope_theta=10_000.0)

# name -> (model_type, settings): the families that Lathe runs, with every flag that matters both ways
FAMILIES = {
    "Qwen3": ("qwen3", dict(head_dim=32)),
    "Qwen3, tied": ("qwen3", dict(head_dim=16, tie_word_embeddings=True)),
    "Qwen3-MoE": ("qwen3_moe", dict(head_dim=32, **EXPERTS)),
    "Qwen3-MoE, dense layers between, top-k not normalised": (
        "qwen3_moe",
        dict(head_dim=32, decoder_sparse_step=2, mlp_only_layers=[3], **EXPERTS | dict(norm_topk_prob=False)),
    ),
    "Qwen3-MoE, YaRN past its original length": (
        "qwen3_moe",
        dict(head_dim=32, rope_parameters=YARN, **EXPERTS),
    ),
    "Qwen2": ("qwen2", {}),
    "Llama, tied": ("llama", dict(tie_word_embeddings=True, rms_norm_eps=1e-5)),
}


@dataclass(frozen=True)
class Reference:
    """A model of transformers in fp32, and the folder that its save_pretrained wrote."""

    name: str
    model: torch.nn.Module
    folder: Path


def build_reference(model_type: str, **settings) -> torch.nn.Module:
    """A random model whose norms and biases are random, too: ones and zeros would hide mistakes."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **SIZES | settings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
            elif name.endswith(".bias"):
                parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model


def dequantized_by_hand(values: Tensor, scales: Tensor) -> Tensor:
    """Block FP8 back to numbers, one block at a time."""
    out = values.float()
    for row in range(0, out.shape[0], 128):
        for column in range(0, out.shape[1], 128):
            out[row : row + 128, column : column + 128] *= scales[row // 128, column // 128].float()
    return out


class Cache:
    """Keys and values of one sequence, and attention over them, written out plainly."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def attend(self, layer: int, q_THd: Tensor, k_TKd: Tensor, v_TKd: Tensor) -> Tensor:
        if layer in self.layers:
            k_old, v_old = self.layers[layer]
            k_TKd, v_TKd = torch.cat((k_old, k_TKd)), torch.cat((v_old, v_TKd))
        self.layers[layer] = (k_TKd, v_TKd)
        group = q_THd.shape[1] // k_TKd.shape[1]
        k_HLd = k_TKd.repeat_interleave(group, 1).transpose(0, 1)
        v_HLd = v_TKd.repeat_interleave(group, 1).transpose(0, 1)
        scores_HTL = q_THd.transpose(0, 1) @ k_HLd.mT / q_THd.shape[-1] ** 0.5
        future = torch.ones(scores_HTL.shape[-2:], dtype=torch.bool).triu(len(k_TKd) - len(q_THd) + 1)
        return (scores_HTL.masked_fill(future, -torch.inf).softmax(-1) @ v_HLd).transpose(0, 1)


def logits_of(model: Transformer, token_ids: Tensor, cache: Cache | None = None, start: int = 0) -> Tensor:
    """[T, V] for one sequence of T tokens that begins at position `start`."""
    positions = torch.arange(start, start + len(token_ids))
    return model.logits(model(token_ids, positions, (cache or Cache()).attend, grouped_experts))


@torch.inference_mode()
def greedy(model: Transformer, token_ids: list[int], count: int) -> list[int]:
    """The next `count` tokens, one by one over a cache."""
    cache, new, pending = Cache(), [], list(token_ids)
    for _ in range(count):
        start = len(token_ids) + len(new) - len(pending)
        new.append(int(logits_of(model, torch.tensor(pending), cache, start)[-1].argmax()))
        pending = new[-1:]
    return new


@dataclass(frozen=True)
class Parity:
    largest_difference: float
    agreeing_tokens: int
    logit_std: float


def compare(model: Transformer, reference: torch.nn.Module, token_ids: list[int], count: int = 64) -> Parity:
    """Logits of every position of the prompt, and greedy tokens after it, against transformers."""
    prompt = torch.tensor(token_ids)
    with torch.inference_mode():
        ours, theirs = logits_of(model, prompt), reference(prompt[None]).logits[0]
        after = reference.generate(prompt[None], max_new_tokens=count, min_new_tokens=count, do_sample=False)
    after = after[0, len(token_ids) :].tolist()
    agreeing = [a == b for a, b in zip(greedy(model, token_ids, count), after, strict=True)]
    return Parity(float((ours - theirs).abs().max()), sum(agreeing), float(theirs.std()))
