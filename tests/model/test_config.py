import json

import pytest
from reference import FAMILIES, SIZES

from lathe.errors import CheckpointError
from lathe.model.config import ModelConfig, YarnConfig
from lathe.model.presets import PRESETS, preset

# Qwen/Qwen3-Coder-30B-A3B-Instruct's config.json
CODER = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "decoder_sparse_step": 1,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 5472,
    "max_position_embeddings": 262144,
    "max_window_layers": 28,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "output_router_logits": False,
    "qkv_bias": False,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000000,
    "router_aux_loss_coef": 0.0,
    "shared_expert_intermediate_size": 0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.52.3",
    "use_cache": True,
    "use_qk_norm": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
# the model card of Qwen3's dense models, long contexts
DENSE_8B = {
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "max_position_embeddings": 40960,
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "rope_theta": 1000000,
    "vocab_size": 151936,
    "torch_dtype": "bfloat16",
}
# HuggingFaceTB/SmolLM2-135M-Instruct's
SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "hidden_act": "silu",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 49152,
}


def test_the_published_coder_is_its_preset():
    assert ModelConfig.from_hf(CODER) == preset("Qwen/Qwen3-Coder-30B-A3B-Instruct")


def test_transformers_5_spells_it_differently():
    config = dict(CODER)
    config["num_local_experts"] = config.pop("num_experts")
    config["rope_parameters"] = {"rope_theta": config.pop("rope_theta"), "rope_type": "default"}
    config["dtype"] = config.pop("torch_dtype")
    del config["rope_scaling"]
    assert ModelConfig.from_hf(config) == ModelConfig.from_hf(CODER)


@pytest.mark.parametrize("name", FAMILIES)
def test_transformers_5s_own_config_file_gives_the_same_as_the_objects_attributes(name, references):
    reference = references(name)
    written = ModelConfig.from_hf(json.loads((reference.folder / "config.json").read_text()))
    theirs = reference.model.config
    assert written.num_layers == theirs.num_hidden_layers
    assert written.rope_theta == theirs.rope_parameters["rope_theta"]
    assert written.rms_norm_eps == theirs.rms_norm_eps
    assert written.tie_word_embeddings == theirs.tie_word_embeddings
    assert written.dtype == "float32"
    assert (written.num_experts, written.num_heads, written.num_kv_heads) == (
        getattr(theirs, "num_experts", 0),
        theirs.num_attention_heads,
        theirs.num_key_value_heads,
    )


@pytest.mark.parametrize("config", [CODER, DENSE_8B, SMOLLM2], ids=["coder", "dense", "smollm2"])
def test_a_config_survives_being_written(config):
    read = ModelConfig.from_hf(config)
    assert ModelConfig.from_hf(json.loads(json.dumps(read.to_hf()))) == read


@pytest.mark.parametrize("name", PRESETS)
def test_transformers_reads_what_is_written(name):
    from transformers import AutoConfig

    config = preset(name)
    if config.max_position_embeddings == 262_144:
        config = config.with_yarn(4)
    theirs = AutoConfig.for_model(**config.to_hf())
    assert ModelConfig.from_hf(theirs.to_dict()) == config


def test_head_dim_left_out():
    assert ModelConfig.from_hf(DENSE_8B).head_dim == 128
    assert (
        ModelConfig.from_hf(DENSE_8B | {"hidden_size": 2048}).head_dim == 128
    )  # Qwen3's default, not 2048 / 32
    assert ModelConfig.from_hf(SMOLLM2).head_dim == 64


def test_qwen2_has_biases_and_qwen3_has_norms():
    qwen2 = ModelConfig.from_hf(DENSE_8B | {"architectures": ["Qwen2ForCausalLM"]})
    assert qwen2.attention_bias and not qwen2.qk_norm
    qwen3 = ModelConfig.from_hf(DENSE_8B)
    assert qwen3.qk_norm and not qwen3.attention_bias


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25}}, "partial_rotary_factor"),
        ({"rope_interleaved": True}, "rope_interleaved"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"attention_bias": True}, "attention_bias"),
        ({"shared_expert_intermediate_size": 512}, "shared_expert_intermediate_size"),
        ({"use_qk_norm": False}, "use_qk_norm"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "llama3"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "mscale": 0.7}}, "mscale"),
        ({"rope_scaling": {"type": "yarn", "factor": "4"}}, "factor is '4'"),
        ({"dtype": "int4"}, "int4"),
        ({"hidden_size": "2048"}, "hidden_size is '2048'"),
        ({"num_key_value_heads": "4"}, "num_key_value_heads is '4'"),
        ({"head_dim": 64.0}, "head_dim is 64.0"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step is 0"),
        ({"num_attention_heads": 0}, "num_heads is 0"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps is '1e-6'"),
        ({"rope_theta": 0}, "rope_theta is 0"),
        ({"num_key_value_heads": 5}, "32 query heads do not share 5"),
        ({"head_dim": 127}, "head_dim is 127"),
        ({"num_experts_per_tok": 129}, "num_experts_per_tok is 129 of 128"),
        ({"num_hidden_layers": 0}, "num_layers is 0"),
    ],
    ids=str,
)
def test_what_would_change_the_maths_is_refused_by_name(change, named):
    with pytest.raises(CheckpointError, match=named):
        ModelConfig.from_hf(CODER | change)


@pytest.mark.parametrize(
    "name", ["vocab_size", "hidden_size", "num_hidden_layers", "num_experts", "intermediate_size"]
)
def test_a_missing_size_is_named(name):
    with pytest.raises(CheckpointError, match=name):
        ModelConfig.from_hf({key: value for key, value in CODER.items() if key != name})


def test_an_unknown_architecture_gets_the_list():
    with pytest.raises(CheckpointError, match=r"Qwen3MoeForCausalLM.*LlamaForCausalLM"):
        ModelConfig.from_hf(CODER | {"architectures": ["GemmaForCausalLM"]})
    with pytest.raises(CheckpointError, match="Did you mean Qwen3ForCausalLM"):
        ModelConfig.from_hf(CODER | {"architectures": ["Qwen3ForCausaLM"]})
    with pytest.raises(CheckpointError, match="neither architectures nor model_type"):
        ModelConfig.from_hf(SIZES)


def yarn(original, factor=4.0):
    return {
        "rope_scaling": {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    }


def test_yarn_for_a_million_tokens():
    wanted = preset("qwen3-coder-30b-a3b-instruct").with_yarn(4.0)
    assert wanted.max_position_embeddings == 1_048_576
    assert wanted.yarn == YarnConfig(4.0, 262_144)
    assert wanted.yarn.scale == pytest.approx(1.1386, abs=1e-4)
    as_users_write_it = CODER | yarn(262_144)
    stretched_already = as_users_write_it | {"max_position_embeddings": 1_048_576}
    assert ModelConfig.from_hf(as_users_write_it) == wanted
    assert ModelConfig.from_hf(stretched_already) == wanted
    assert ModelConfig.from_hf(wanted.to_hf()) == wanted


def test_a_copied_original_length_is_refused_with_the_numbers():
    with pytest.raises(
        CheckpointError, match=r"131072.*262144.*write original_max_position_embeddings 262144"
    ):
        ModelConfig.from_hf(CODER | yarn(32_768))
    with pytest.raises(CheckpointError, match=r"write factor 8\."):
        ModelConfig.from_hf(CODER | yarn(32_768))


def test_the_dense_models_card_is_followed():
    # it tells to write 32768 beside the shipped 40960
    read = ModelConfig.from_hf(DENSE_8B | yarn(32_768))
    assert read.max_position_embeddings == 131_072
    assert ModelConfig.from_hf(DENSE_8B).with_yarn(4.0) == read


def test_yarn_twice_or_backwards_is_refused():
    config = preset("qwen3-8b")
    with pytest.raises(CheckpointError, match="already stretches 32768"):
        config.with_yarn(2).with_yarn(2)
    with pytest.raises(CheckpointError, match="must be above 1"):
        config.with_yarn(1)


def test_which_layers_have_experts():
    config = ModelConfig.from_hf(
        CODER | {"decoder_sparse_step": 2, "mlp_only_layers": [3], "num_hidden_layers": 6}
    )
    assert [config.is_sparse(layer) for layer in range(6)] == [False, True, False, False, False, True]
    assert not any(ModelConfig.from_hf(SMOLLM2).is_sparse(layer) for layer in range(30))
