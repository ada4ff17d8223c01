import copy

import pytest
import torch
from reference import logits_of
from tiny_models import random_model, tiny_config

from lathe.kernels.cpu.packed import KINDS, quantize
from lathe.model.checkpoint import load_model, open_checkpoint, save_model
from lathe.model.packed import (
    PackedEmbedding,
    PackedExperts,
    PackedLinear,
    pack_layers,
    packed_weights,
    put_weight,
    weight_shapes,
)
from lathe.model.transformer import Transformer

DENSE = tiny_config(hidden_size=64, intermediate_size=96, tie_word_embeddings=True)
SPARSE = tiny_config(
    architecture="qwen3_moe",
    hidden_size=64,
    num_experts=6,
    num_experts_per_tok=2,
    moe_intermediate_size=40,  # gate and up meet inside a tile, and down has no whole groups
)
TOKENS = torch.tensor([5, 17, 99, 0, 42, 299, 61])

both = pytest.mark.parametrize("config", [DENSE, SPARSE], ids=["dense", "sparse"])


def kinds_of(model: Transformer, kind: str) -> dict[str, str]:
    """Every matrix that can be packed, but for the routers."""
    shapes = weight_shapes(model)
    return {
        name: kind
        for name, shape in shapes.items()
        if len(shape) > 1 and shape[-1] % 32 == 0 and not name.endswith("mlp.gate.weight")
    }


def twins(config, kind: str) -> tuple[Transformer, Transformer]:
    """A packed model, and one that holds the same numbers in float32."""
    wide = random_model(config)
    packed = Transformer(config, device="meta", dtype=torch.float32)
    pack_layers(packed, kinds_of(wide, kind))
    packed.load_state_dict(wide.state_dict(), assign=True)
    with torch.no_grad():
        for name, weight in packed_weights(packed).items():
            wide.get_parameter(name).copy_(weight.dequantize())
    return packed, wide


@both
@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_a_packed_model_computes_what_its_numbers_say(config, kind):
    packed, wide = twins(config, kind)
    assert torch.equal(logits_of(packed, TOKENS), logits_of(wide, TOKENS))


def test_every_matrix_is_packed_and_the_rest_stays():
    packed, wide = twins(SPARSE, "q4_0")
    layer = packed.layers[0]
    assert isinstance(packed.embed_tokens, PackedEmbedding) and isinstance(packed.lm_head, PackedLinear)
    assert isinstance(layer.self_attn.q_proj, PackedLinear) and isinstance(layer.mlp.experts, PackedExperts)
    assert layer.mlp.experts.gate_up_proj.dtype == torch.uint8
    assert layer.mlp.experts.down_proj.dtype == layer.mlp.gate.weight.dtype == torch.float32
    assert packed.state_dict().keys() == wide.state_dict().keys()
    assert weight_shapes(packed) == weight_shapes(wide)


def test_an_experts_gate_stands_above_its_up():
    packed, _ = twins(SPARSE, "q8_0")
    stack = packed.layers[1].mlp.experts.gate_up()
    gate, up = random_model(SPARSE).layers[1].mlp.experts.gate_up_proj[3].detach().chunk(2)
    alone = torch.cat([quantize("q8_0", part).dequantize() for part in (gate, up)])
    assert torch.equal(stack[3], alone)


def test_a_tied_head_shares_the_embeddings_memory():
    packed, wide = twins(DENSE, "q4_1")
    assert packed.lm_head is None and "embed_tokens.weight" in packed_weights(packed)
    hidden = torch.randn(3, 64)
    assert torch.equal(packed.logits(hidden), wide.logits(hidden))


@both
def test_a_packed_models_state_is_loaded_as_it_is(config):
    packed, _ = twins(config, "q4_0")
    other = copy.deepcopy(packed)
    other.load_state_dict({name: torch.zeros_like(weight) for name, weight in packed.state_dict().items()})
    assert not other.state_dict()["layers.0.self_attn.q_proj.weight"].any()
    for assign in (False, True):
        other.load_state_dict(packed.state_dict(), assign=assign)
        assert torch.equal(logits_of(other, TOKENS), logits_of(packed, TOKENS))
    eight, _ = twins(config, "q8_0")
    with pytest.raises(RuntimeError, match=r"size mismatch for layers\.0\.self_attn\.q_proj\.weight"):
        eight.load_state_dict(packed.state_dict())
    with pytest.raises(RuntimeError, match=r"size mismatch for embed_tokens\.weight"):
        packed.load_state_dict({**packed.state_dict(), "embed_tokens.weight": torch.zeros(3, 64)})


@both
@pytest.mark.parametrize("assign", [False, True])
def test_float_weights_are_quantized_when_they_are_loaded(config, assign):
    packed, _ = twins(config, "q4_0")
    state = random_model(config, seed=1).state_dict()
    packed.load_state_dict(state, assign=assign)
    for name, weight in packed_weights(packed).items():
        assert torch.equal(weight.data, quantize("q4_0", state[name]).data)


def test_new_weights_are_put_in_packed_and_others():
    packed, _ = twins(DENSE, "q4_0")
    new = {name: weight.bfloat16() for name, weight in random_model(DENSE, seed=1).state_dict().items()}
    for name, weight in new.items():
        put_weight(packed, name, weight)
    name = "layers.1.mlp.down_proj.weight"
    assert torch.equal(packed_weights(packed)[name].data, quantize("q4_0", new[name]).data)
    assert torch.equal(packed.norm.weight, new["norm.weight"].float())
    given = torch.zeros_like(packed.get_parameter(name))
    put_weight(packed, name, given)
    given.fill_(1)
    assert not packed.get_parameter(name).any()


@both
@pytest.mark.parametrize("fp8", [False, True])
def test_a_saved_packed_model_is_one_of_plain_numbers(config, fp8, tmp_path):
    packed, wide = twins(config, "q8_0")
    save_model(packed, tmp_path / "packed", fp8=fp8)
    save_model(wide, tmp_path / "wide", fp8=fp8)
    loaded, expected = (
        load_model(open_checkpoint(tmp_path / name)).state_dict() for name in ("packed", "wide")
    )
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


def test_weights_in_bf16_are_computed_with_in_fp32():
    for config in (DENSE, SPARSE):
        wide = random_model(config)
        narrow = copy.deepcopy(wide)
        for name, weight in narrow.named_parameters():
            if weight.dim() > 1:
                weight.data = weight.data.bfloat16()
                wide.get_parameter(name).data = weight.data.float()
        out = logits_of(narrow, TOKENS)
        assert out.dtype == torch.float32 and torch.equal(out, logits_of(wide, TOKENS))
