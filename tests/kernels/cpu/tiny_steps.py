"""Small models in every kind of weights, and steps that read prompts cut in any way."""

# L tokens of a prompt, V vocabulary

from __future__ import annotations

import random as python_random
from collections.abc import Sequence

import torch
from one_call import PACKED
from tiny_models import random_model, tiny_config
from torch import Tensor

from lathe.engine.compiled import cache_dtype, record
from lathe.engine.kv_cache import PAGE_SIZE, KVCache
from lathe.kernels.attention import Span, causal_attention
from lathe.kernels.cpu.library import Library
from lathe.kernels.cpu.program import Program
from lathe.kernels.experts import grouped_experts
from lathe.model.packed import pack_layers, packed_weights, weight_shapes
from lathe.model.quantization import Fp8Experts, Fp8Linear, keep_fp8_weights, quantize_blocks
from lathe.model.transformer import Transformer

SHAPES = {
    "qwen3": dict(hidden_size=64, intermediate_size=96),
    "moe": dict(
        architecture="qwen3_moe",
        hidden_size=64,
        num_experts=6,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
    ),
    "biased": dict(
        architecture="qwen2", qk_norm=False, attention_bias=True, hidden_size=64, tie_word_embeddings=True
    ),
}


def tiny(shape: str, kind: str, seed: int = 0) -> Transformer:
    """A model of this shape whose matrices are of this kind."""
    config = tiny_config(**SHAPES[shape])
    wide = random_model(config, seed)
    if kind == "f32":
        return wide
    if kind == "bf16":
        return wide.to(torch.bfloat16)
    names = [name for name, each in weight_shapes(wide).items() if len(each) > 1]
    made = Transformer(config, dtype=torch.float32)
    if kind in PACKED:
        pack_layers(made, dict.fromkeys(names, kind))
        made.load_state_dict(wide.state_dict())
        return made
    keep_fp8_weights(
        made, [name for name in names if "embed" not in name and not name.endswith("gate.weight")]
    )
    weights = wide.state_dict()
    for name in list(weights):
        if made.state_dict()[name].dtype == torch.float8_e4m3fn:
            parts = 2 if name.endswith("gate_up_proj") else 1
            halves = [quantize_blocks(half) for half in weights[name].chunk(parts, -2)]
            weights[name] = torch.cat([values for values, _ in halves], -2)
            weights[f"{name}_scale_inv"] = torch.cat([scales.float() for _, scales in halves], -2)
    made.load_state_dict(weights)
    return made


@torch.no_grad()
def in_float64(model: Transformer) -> Transformer:
    """The same numbers in PyTorch's float64."""
    exact = Transformer(model.config, dtype=torch.float64)
    numbers = {name: weight.double() for name, weight in model.state_dict().items()}
    numbers |= {name: packed.dequantize(torch.float64) for name, packed in packed_weights(model).items()}
    for prefix, module in model.named_modules():
        if isinstance(module, Fp8Linear):
            scales = module.weight_scale_inv.repeat_interleave(128, 0).repeat_interleave(128, 1)
            rows, columns = module.weight.shape
            numbers[f"{prefix}.weight"] = module.weight.double() * scales.double()[:rows, :columns]
        if isinstance(module, Fp8Experts):
            for name, stack in (("gate_up_proj", module.gate_up()), ("down_proj", module.down())):
                each = [stack[e].double() for e in range(len(stack.values))]
                numbers[f"{prefix}.{name}"] = torch.stack(each)
    wanted = exact.state_dict()
    exact.load_state_dict({name: weight for name, weight in numbers.items() if name in wanted})
    return exact


@torch.inference_mode()
def reference_logits(exact: Transformer, prompt: Sequence[int]) -> Tensor:
    """[L, V], by PyTorch without a cache."""
    hidden = exact(
        torch.tensor(prompt),
        torch.arange(len(prompt)),
        lambda _, q, k, v: causal_attention(q, k, v, [len(prompt)]),
        grouped_experts,
    )
    return exact.logits(hidden)


class Steps:
    """Reads prompts through a recorded program, and keeps the logits of every token."""

    def __init__(self, model: Transformer, library: Library, capacity: int = 256, num_pages: int = 64):
        self.cache = KVCache(model.config, num_pages, dtype=cache_dtype(model), device=torch.device("cpu"))
        self.num_pages, self.vocab_size = num_pages, model.config.vocab_size
        self.program: Program = record(model, self.cache, library, capacity)

    def read(
        self,
        prompts: Sequence[Sequence[int]],
        cuts: Sequence[Sequence[int]] | None = None,
        begins: Sequence[int] | None = None,
        seed: int = 0,
    ) -> list[Tensor]:
        """Logits [L, V] of each prompt. `cuts` are the lengths of each one's chunks (None: all at once), and
        `begins` the step in which each begins; `seed` scatters their pages and their order in a step."""
        cuts = cuts or [[len(prompt)] for prompt in prompts]
        begins = begins or [0] * len(prompts)
        rng = python_random.Random(seed)
        free = list(range(self.num_pages))
        rng.shuffle(free)
        pages = [[free.pop() for _ in range(-(-len(prompt) // PAGE_SIZE))] for prompt in prompts]
        self.cache.keys.fill_(torch.nan)  # what is not of a prompt must never matter
        self.cache.values.fill_(torch.nan)
        out: list[list[Tensor]] = [[] for _ in prompts]
        done = [0] * len(prompts)
        for step in range(max(b + len(c) for b, c in zip(begins, cuts, strict=True))):
            order = [s for s in range(len(prompts)) if 0 <= step - begins[s] < len(cuts[s])]
            rng.shuffle(order)
            ids, positions, slots, spans = [], [], [], []
            for s in order:
                first, last = done[s], done[s] + cuts[s][step - begins[s]]
                runs = [(p * PAGE_SIZE, (p + 1) * PAGE_SIZE) for p in pages[s]][: -(-last // PAGE_SIZE)]
                runs[-1] = (runs[-1][0], runs[-1][0] + (last - 1) % PAGE_SIZE + 1)
                spans.append(Span(len(ids), last - first, tuple(runs)))
                ids += prompts[s][first:last]
                positions += range(first, last)
                slots += [pages[s][p // PAGE_SIZE] * PAGE_SIZE + p % PAGE_SIZE for p in range(first, last)]
                done[s] = last
            logits = self.program.run(ids, positions, slots, spans, range(len(ids)), self.vocab_size)
            for s, rows in zip(order, logits.split([span.num_queries for span in spans]), strict=True):
                out[s].append(rows)
        return [torch.cat(rows) for rows in out]
