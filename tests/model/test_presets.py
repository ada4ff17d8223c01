import pytest
import torch

from lathe.errors import ModelNotFound
from lathe.model.presets import PRESETS, count_parameters, preset
from lathe.model.transformer import Transformer


@pytest.mark.parametrize(
    ("name", "total", "read"),
    [
        ("Qwen/Qwen3-Coder-480B-A35B-Instruct", 480.15e9, 34.54e9),
        ("Qwen/Qwen3-Coder-30B-A3B-Instruct", 30.53e9, 3.04e9),
    ],
)
def test_the_coders_weigh_what_they_should(name, total, read):
    counted_total, counted_read = count_parameters(preset(name))
    assert round(counted_total / 1e9, 2) == total / 1e9
    assert round(counted_read / 1e9, 2) == read / 1e9


@pytest.mark.parametrize(
    ("name", "without_embeddings"),  # billions, from the model cards
    [("0.6b", 0.44), ("1.7b", 1.4), ("4b", 3.6), ("8b", 6.95), ("14b", 13.2), ("32b", 31.2)],
)
def test_the_dense_models_agree_with_their_cards(name, without_embeddings):
    config = preset(f"qwen3-{name}")
    embeddings = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    counted = (count_parameters(config)[0] - embeddings) / 1e9
    assert counted == pytest.approx(without_embeddings, rel=0.02)


def test_building_the_largest_takes_no_memory():
    model = Transformer(preset("qwen3-coder-480b-a35b-instruct"), device="meta", dtype=torch.bfloat16)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    experts = model.layers[61].mlp.experts
    assert experts.gate_up_proj.shape == (160, 5120, 6144)
    assert experts.down_proj.shape == (160, 6144, 2560)
    assert model.layers[0].self_attn.q_proj.weight.shape == (12_288, 6144)


def test_an_unknown_name_gets_the_list():
    with pytest.raises(ModelNotFound, match=r"qwen3-0.6b.*Did you mean qwen3-14b"):
        preset("qwen3-15b")
    assert preset("QWEN3-14B") is PRESETS["qwen3-14b"]
