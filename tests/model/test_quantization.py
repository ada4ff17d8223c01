import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import dequantized_by_hand
from searching import times

from lathe.kernels.fp8 import (
    FP8,
    dequantize_blocks,
)
from lathe.model.config import ModelConfig
from lathe.model.quantization import (
    Fp8Linear,
    Fp8Stack,
    block_scales,
    keep_fp8_weights,
    quantization_config,
    quantize_blocks,
)
from lathe.model.transformer import Transformer


@given(
    rows=st.integers(1, 300),
    columns=st.integers(1, 300),
    magnitude=st.sampled_from([1e-6, 0.02, 1.0, 1e5]),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
)
@times(0.4)
def test_a_round_trip_is_off_by_at_most_a_sixteenth(rows, columns, magnitude, dtype):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows)) * magnitude
    values, scales = quantize_blocks(weight, block_scales(weight, dtype))
    assert values.dtype == FP8 and values.shape == weight.shape
    assert scales.dtype == dtype and scales.shape == (-(-rows // 128), -(-columns // 128))
    back = dequantize_blocks(values, scales)
    assert torch.equal(back, dequantized_by_hand(values, scales))
    # below 2^-6 of e4m3's own unit the spacing is fixed: half of 2^-9 times the scale
    smallest = scales.float().max() * 2.0**-10
    assert ((back - weight).abs() <= weight.abs() / 16 + smallest * 1.01).all()


def test_the_largest_value_of_a_block_survives():
    weight = torch.zeros(256, 128)
    weight[3, 5], weight[200, 7] = -3.7, 1e-4
    values, scales = quantize_blocks(weight)
    assert values[3, 5].float() == -448 and values[200, 7].float() == 448
    torch.testing.assert_close(dequantize_blocks(values, scales), weight, rtol=0.005, atol=0)


def test_zeros_stay_zeros():
    values, scales = quantize_blocks(torch.zeros(130, 130))
    assert not dequantize_blocks(values, scales).any()
    assert (scales == 1).all()


def test_a_scale_that_bf16_rounds_down_makes_no_nan():
    weight = torch.full(
        (128, 128), 448 * 1.00390624
    )  # its scale lies just below halfway between two bf16 values
    values, scales = quantize_blocks(weight)
    assert scales.float() < 1.00390624
    assert not values.float().isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_kept_linear_layer_is_the_dequantized_one(dtype):
    linear = torch.nn.Linear(200, 300, dtype=dtype)
    values, scales = quantize_blocks(linear.weight.detach())
    kept = Fp8Linear(linear)
    kept.weight.data, kept.weight_scale_inv.data = values, scales.float()
    linear.weight.data = dequantize_blocks(values, scales, dtype)
    x = torch.randn(4, 200, dtype=dtype)
    assert torch.equal(kept(x), linear(x))


def test_gate_and_up_have_blocks_of_their_own():
    """192 rows each: 2 + 2 blocks, not the 3 of 384 rows."""
    halves = torch.randn(5, 2, 192, 256) * torch.tensor([1.0, 100.0])[:, None, None]
    values, scales = quantize_blocks(halves)
    stack = Fp8Stack(values.flatten(1, 2), scales.flatten(1, 2), parts=2, dtype=torch.float32)
    assert stack.scale_inv.shape == (5, 4, 2)
    for expert in range(5):
        expected = torch.cat(
            [dequantized_by_hand(values[expert, half], scales[expert, half]) for half in (0, 1)]
        )
        assert torch.equal(stack[expert], expected)


CONFIG = ModelConfig(
    architecture="qwen3_moe",
    vocab_size=100,
    hidden_size=256,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    intermediate_size=48,
    max_position_embeddings=64,
    num_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=192,
    mlp_only_layers=(1,),
)


def test_kept_weights_take_one_byte_and_norms_router_and_head_stay():
    model = Transformer(CONFIG, device="meta", dtype=torch.bfloat16)
    before = dict(model.named_parameters())
    weights = {name for name in before if "_proj" in name}
    keep_fp8_weights(model, weights)
    after = model.state_dict()
    assert {name for name, tensor in after.items() if tensor.dtype == FP8} == weights
    assert all(after[name].shape == tensor.shape for name, tensor in before.items())
    assert {name for name in after if name not in before} == {name + "_scale_inv" for name in weights}
    assert not any(parameter.requires_grad for parameter in model.parameters() if parameter.dtype == FP8)


def test_the_config_names_what_is_not_converted():
    written = quantization_config(CONFIG)
    assert written["quant_method"] == "fp8" and written["weight_block_size"] == [128, 128]
    assert "model.layers.0.mlp.gate" in written["modules_to_not_convert"]
    assert "model.layers.1.mlp.gate" not in written["modules_to_not_convert"]  # dense: gate_proj is converted
    assert "lm_head" in written["modules_to_not_convert"]
