"""Whole models in GGUF: llama.cpp and transformers run what is written; what others wrote is read exactly."""

import random
import re
from dataclasses import replace
from pathlib import Path

import gguf as package
import numpy as np
import pytest
import torch
from llamacpp_reference import Continuation, continue_greedily, plain_vocabulary
from reference import EXPERTS, YARN, build_reference, logits_of

from lathe.errors import CheckpointError
from lathe.model.checkpoint import load_model, open_checkpoint
from lathe.model.config import ModelConfig, YarnConfig
from lathe.model.convert import convert
from lathe.model.gguf import FILE_TYPES, load_into, open_gguf, type_for, write_gguf
from lathe.model.gguf_container import read_container
from lathe.model.gguf_names import (
    config_from_metadata,
    config_to_metadata,
    generation_from_metadata,
    generation_to_metadata,
    slots,
)
from lathe.model.hub import resolve
from lathe.model.transformer import Transformer

WIDE = dict(hidden_size=256, intermediate_size=512, num_hidden_layers=3)  # rows of whole K blocks
WIDE_EXPERTS = EXPERTS | dict(moe_intermediate_size=768, num_experts=4, num_experts_per_tok=2)
# transformers does not read a GGUF's head size and expert size, and takes Qwen's usual 128 and 768
FAMILIES = {
    "Qwen3": ("qwen3", dict(head_dim=128)),
    "Qwen3, tied": ("qwen3", dict(head_dim=64, tie_word_embeddings=True)),
    "Qwen3-MoE": ("qwen3_moe", dict(head_dim=32, **WIDE_EXPERTS)),
    "Qwen3-MoE, YaRN past its original length": (
        "qwen3_moe",
        dict(head_dim=32, rope_parameters=YARN, **WIDE_EXPERTS),
    ),
    "Qwen3, YaRN with a factor for attention": (
        "qwen3",
        dict(head_dim=64, rope_parameters=YARN | dict(attention_factor=1.25)),
    ),
    "Qwen2": ("qwen2", {}),
    "Llama, tied": ("llama", dict(tie_word_embeddings=True, rms_norm_eps=1e-5)),
}
TRANSFORMERS_READS = ("Qwen3", "Qwen3-MoE", "Qwen2", "Llama, tied")


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    """The folder that transformers wrote for a family, made once."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            model_type, settings = FAMILIES[name]
            made[name] = tmp_path_factory.mktemp("family")
            build_reference(model_type, **WIDE | settings).save_pretrained(made[name])
        return made[name]

    return folder


def refuse_to_save(*_) -> None:
    raise AssertionError("no folder is written here")


def to_gguf(folder: Path, target: Path, type: str = "f32"):
    return convert(
        folder,
        target,
        kind="gguf",
        type=type,
        tokenizer_metadata=plain_vocabulary,
        save_tokenizer=refuse_to_save,
    )


def prompt(count: int) -> list[int]:
    return torch.randint(320, (count,), generator=torch.Generator().manual_seed(1)).tolist()


def distance(path: Path, tokens: list[int], theirs: Continuation) -> tuple[float, int]:
    """Largest difference of the log-probabilities that llama.cpp reported; how many greedy tokens agree."""
    with torch.inference_mode():
        logits = logits_of(load_model(open_checkpoint(path)), torch.tensor(tokens + theirs.token_ids))
    ours = logits.log_softmax(-1)[len(tokens) - 1 : -1]
    agreeing = (ours.argmax(-1) == torch.tensor(theirs.token_ids)).sum()
    differences = [
        abs(row[id].item() - logprob)
        for row, top in zip(ours, theirs.top, strict=True)
        for id, logprob in top
    ]
    return max(differences), int(agreeing)


@pytest.mark.parametrize("name", FAMILIES)
def test_llama_cpp_computes_the_same_from_float32(name, folder_of, tmp_path):
    path = tmp_path / "model.gguf"
    to_gguf(folder_of(name), path)
    tokens = prompt(100 if "YaRN" in name else 30)  # YaRN's original length is 64
    difference, agreeing = distance(path, tokens, continue_greedily(path, tokens, 24))
    assert difference < 1e-3
    assert agreeing == 24


@pytest.mark.parametrize(
    "type", ["bf16", "f16", "q8_0", "q6_k", "q5_1", "q5_0", "q4_k_m", "q4_k", "q4_1", "q4_0"]
)
def test_llama_cpp_runs_every_type(type, folder_of, tmp_path):
    """llama.cpp also rounds what it multiplies the weights by, mostly to 8 bits: hence the distance.

    The logits' standard deviation is 2.4; weights in a wrong order give differences above 10.
    """
    path = tmp_path / "model.gguf"
    to_gguf(folder_of("Llama, tied"), path, type)
    difference, agreeing = distance(path, prompt(30), continue_greedily(path, prompt(30), 24))
    assert difference < 1.5
    assert agreeing >= 18


def test_llama_cpp_runs_quantized_experts(folder_of, tmp_path):
    path = tmp_path / "model.gguf"
    summary = to_gguf(folder_of("Qwen3-MoE"), path, "q4_k")
    assert summary.num_tensors["q4_k"] > 0
    difference, _ = distance(path, prompt(30), continue_greedily(path, prompt(30), 1))
    assert difference < 1.5  # one token: later, a rounded router may choose another expert


@pytest.mark.parametrize("name", TRANSFORMERS_READS)
def test_transformers_reads_the_same_weights(name, folder_of, tmp_path):
    from transformers import AutoModelForCausalLM

    to_gguf(folder_of(name), tmp_path / "model.gguf")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    original = AutoModelForCausalLM.from_pretrained(folder_of(name), dtype=torch.float32)
    tokens = torch.tensor([prompt(30)])
    with torch.inference_mode():
        assert torch.equal(theirs(tokens).logits, original(tokens).logits)


def same_config(a: ModelConfig, b: ModelConfig) -> bool:
    """But for the attention factor, which is stored as a float32 relative to the usual one."""
    if a.yarn and b.yarn and a.yarn.attention_factor and b.yarn.attention_factor:
        assert a.yarn.attention_factor == pytest.approx(b.yarn.attention_factor, rel=1e-6)
        b = replace(b, yarn=a.yarn)
    return a == b


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float32_brings_every_weight_back(name, dtype, folder_of, tmp_path):
    path = tmp_path / "model.gguf"
    to_gguf(folder_of(name), path)
    before, after = open_checkpoint(folder_of(name)), open_checkpoint(path)
    assert same_config(after.config, before.config)
    expected, read = (load_model(checkpoint, dtype=dtype).state_dict() for checkpoint in (before, after))
    assert expected.keys() == read.keys()
    for weight in expected:
        assert torch.equal(expected[weight], read[weight]), weight


# SmolLM2: a real file that llama.cpp's own tools wrote


def test_smollm2_is_read_as_the_gguf_package_reads_it():
    file = open_gguf(resolve("smollm2"))
    model = Transformer(file.config, device="meta")
    weights = {name: torch.full(meta.shape, torch.nan) for name, meta in model.state_dict().items()}
    calls = []
    load_into(weights, file, lambda done, total: calls.append((done, total)))
    assert calls[-1] == (file.num_bytes, file.num_bytes)
    for slot in slots(file.config):
        type = package.GGMLQuantizationType(file.type_of(slot.gguf).id)
        raw = file.containers[slot.gguf].raw(slot.gguf).numpy().reshape(slot.shape[0], -1)
        theirs = package.dequantize(raw, type).reshape(slot.shape)
        if slot.rotary_heads:  # as transformers undoes it
            theirs = (
                theirs.reshape(slot.rotary_heads, -1, 2, slot.shape[1]).swapaxes(1, 2).reshape(slot.shape)
            )
        assert np.array_equal(weights[slot.ours].numpy(), theirs), slot.gguf


def smollm2_again(target: Path, type: str) -> Path:
    convert(
        resolve("smollm2"),
        target,
        kind="gguf",
        type=type,
        tokenizer_metadata=refuse_to_save,  # its own metadata is copied
        save_tokenizer=refuse_to_save,
    )
    return target


def test_smollm2_in_its_own_types_again_is_bit_for_bit_the_same(tmp_path):
    """The second rounding finds every scale, minimum and quant that the first one made."""
    old, new = open_gguf(resolve("smollm2")), open_gguf(smollm2_again(tmp_path / "again.gguf", "q4_1"))
    assert new.config == old.config
    assert {name for name, value in old.metadata.items() if new.metadata[name] != value} == set()
    for name in old.containers:
        assert new.type_of(name) == old.type_of(name)
        assert torch.equal(new.containers[name].raw(name), old.containers[name].raw(name))


def test_smollm2_in_8_bits_says_the_same_in_llama_cpp(tmp_path):
    again = smollm2_again(tmp_path / "again.gguf", "q8_0")
    tokens = [
        1,
        4093,
        198,
        19161,
        253,
        5905,
        1517,
        338,
        6765,
        260,
        304,
        29,
        373,
        24681,
        46477,
        1230,
        30,
        2,
        198,
    ]
    before, after = (continue_greedily(path, tokens, 12) for path in (resolve("smollm2"), again))
    assert after.token_ids == before.token_ids
    difference, agreeing = distance(again, tokens, after)
    assert difference < 0.5
    assert agreeing == 12


# Which tensor gets which type


def test_heads_routers_and_norms_keep_their_bits():
    config = ModelConfig("qwen3_moe", 1024, 256, 16, 4, 2, 64, 0, 512, 8, 2, 256, tie_word_embeddings=False)
    chosen = {slot.gguf: type_for(slot, "q4_k_m", config).name for slot in slots(config)}
    assert chosen["output.weight"] == "q6_k"
    assert chosen["token_embd.weight"] == "q4_k"
    assert chosen["blk.3.ffn_gate_inp.weight"] == chosen["blk.3.attn_q_norm.weight"] == "f32"
    more = [layer for layer in range(16) if chosen[f"blk.{layer}.ffn_down_exps.weight"] == "q6_k"]
    assert more == [0, 1, 4, 7, 10, 13, 14, 15]  # llama.cpp's use_more_bits
    assert {type_for(slot, "q8_0", config).name for slot in slots(config)} == {"q8_0", "f32"}
    pure = {slot.gguf: type_for(slot, "q4_k_m", config, pure=True).name for slot in slots(config)}
    assert pure == {name: "f32" if type == "f32" else "q4_k" for name, type in chosen.items()}


@pytest.mark.parametrize(("hidden_size", "expected"), [(256, "q4_k"), (96, "q5_0"), (80, "f16")])
def test_rows_that_are_no_whole_blocks_fall_back(hidden_size, expected):
    config = ModelConfig("qwen3", 1024, hidden_size, 1, 4, 2, 64, 512, 512)
    (up,) = [slot for slot in slots(config) if "ffn_up" in slot.gguf]
    assert type_for(up, "q4_k", config).name == expected


def test_an_unknown_type_lists_the_known_ones(folder_of, tmp_path):
    with pytest.raises(CheckpointError, match="q4_k_m"):
        to_gguf(folder_of("Qwen3"), tmp_path / "model.gguf", "q3_k_xl")


# Config and sampling


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"yarn": YarnConfig(4.0, 128), "max_position_embeddings": 512},
        {"yarn": YarnConfig(4.0, 128, attention_factor=1.25), "max_position_embeddings": 512},
        {"tie_word_embeddings": True, "dtype": "float16", "rms_norm_eps": 3e-6, "rope_theta": 1e7},
        {"architecture": "llama", "qk_norm": False, "head_dim": 48},
        {"architecture": "qwen2", "qk_norm": False, "attention_bias": True},
        {
            "architecture": "qwen3_moe",
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
        },
    ],
)
def test_a_config_comes_back(changes):
    config = replace(ModelConfig("qwen3", 320, 128, 2, 4, 2, 32, 256, 512), **changes)
    shapes = {slot.gguf: slot.shape for slot in slots(config)}
    assert same_config(config_from_metadata(config_to_metadata(config), shapes), config)


@pytest.mark.parametrize(
    ("file_type", "dtype"), [(0, "float32"), (1, "float16"), (32, "bfloat16"), (2, "bfloat16")]
)
def test_the_dtype_of_files_by_others_follows_their_type(file_type, dtype):
    config = ModelConfig("qwen3", 320, 128, 2, 4, 2, 32, 256, 512)
    metadata = config_to_metadata(config) | {"general.file_type": file_type}
    del metadata["lathe.dtype"]
    shapes = {slot.gguf: slot.shape for slot in slots(config)}
    assert config_from_metadata(metadata, shapes) == replace(config, dtype=dtype)


def test_what_llama_cpp_has_no_word_for_is_refused():
    config = ModelConfig("qwen3_moe", 320, 128, 2, 4, 2, 32, 256, 512, 8, 2, 64)
    for change in (
        {"norm_topk_prob": False},
        {"mlp_only_layers": (1,)},
        {"decoder_sparse_step": 2},
        {"yarn": YarnConfig(4.0, 128, beta_slow=2.0), "max_position_embeddings": 512},
    ):
        with pytest.raises(CheckpointError, match="GGUF can't say"):
            config_to_metadata(replace(config, **change))


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("general.architecture", "falcon", "known are qwen3, qwen3moe"),
        ("qwen3.block_count", None, "no qwen3.block_count"),
        ("qwen3.block_count", 2**31 - 1, "block_count"),
        ("qwen3.attention.head_count", 0, "head_count"),
        ("qwen3.attention.head_count", [4, 2], "layer to layer"),
        ("qwen3.attention.key_length", "32", "not a number"),
        ("qwen3.attention.value_length", 64, "value_length"),
        ("qwen3.rope.dimension_count", 16, "dimension_count"),
        ("qwen3.rope.freq_base", float("nan"), "freq_base"),
        ("qwen3.rope.scaling.type", "linear", "linear"),
        ("qwen3.final_logit_softcapping", 30.0, "softcapping"),
        ("qwen3.expert_count", 8, "expert_count"),
    ],
)
def test_settings_that_make_no_sense_or_are_not_computed_are_named(key, value, complaint):
    config = ModelConfig("qwen3", 320, 128, 2, 4, 2, 32, 256, 512)
    metadata = config_to_metadata(config) | {"qwen3.rope.scaling.factor": 2.0, key: value}
    metadata = {name: entry for name, entry in metadata.items() if entry is not None}
    with pytest.raises(CheckpointError, match=complaint):
        config_from_metadata(metadata, {slot.gguf: slot.shape for slot in slots(config)})


def test_sampling_defaults_come_back_and_llama_cpp_sees_its_own():
    generation = {
        "temperature": 0.7,
        "top_p": 0.8,
        "top_k": 20,
        "repetition_penalty": 1.05,
        "eos_token_id": [151645, 151643],
        "do_sample": True,
    }
    metadata = generation_to_metadata(generation)
    assert metadata["general.sampling.temp"] == 0.7
    assert metadata["general.sampling.penalty_repeat"] == 1.05
    assert generation_from_metadata(metadata) == generation
    assert generation_from_metadata(metadata | {"general.sampling.top_k": 5})["top_k"] == 5
    ends = {"tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.eot_token_id": 7}
    assert generation_from_metadata(ends) == {"eos_token_id": [2, 7]}


# Tensors that do not fit, and damage


def tiny_gguf(path: Path, **metadata) -> Path:
    """A valid Llama file of one layer with weights of zero."""
    config = ModelConfig(
        "llama", 8, 32, 1, 2, 1, 16, 64, 128, qk_norm=False, tie_word_embeddings=True, rms_norm_eps=1e-5
    )
    write_gguf(
        path,
        config,
        lambda slot, expert: torch.zeros(slot.shape),
        type="f32",
        metadata={"tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.eot_token_id": 3} | metadata,
        chat_template="{{ messages }}",
        generation={"temperature": 0.7, "top_k": 20},
    )
    return path


def renamed(path: Path, old: str, new: str) -> Path:
    """The same file with a tensor of another name; the names have one length, so that nothing moves."""
    assert len(old) == len(new)
    content = path.read_bytes()
    assert content.count(old.encode()) == 1
    path.write_bytes(content.replace(old.encode(), new.encode()))
    return path


def test_missing_and_unknown_tensors_are_named(tmp_path):
    path = renamed(tiny_gguf(tmp_path / "a.gguf"), "blk.0.ffn_up.weight", "blk.0.ffn_qp.weight")
    with pytest.raises(CheckpointError, match=r"ffn_up.weight is missing; blk.0.ffn_qp.weight is not known"):
        open_gguf(path)


def test_misshapen_tensors_are_named(tmp_path):
    path = tiny_gguf(tmp_path / "a.gguf")
    swapped = b"blk.0.ffn_up.weight" + (2).to_bytes(4, "little") + (32).to_bytes(8, "little")
    content = path.read_bytes()
    at = content.index(swapped) + len(swapped) - 8
    path.write_bytes(content[:at] + (16).to_bytes(8, "little") + content[at + 8 :])
    with pytest.raises(
        CheckpointError, match=re.escape("blk.0.ffn_up.weight has the shape [64, 16], not [64, 32]")
    ):
        open_gguf(path)


def test_numbers_that_a_type_can_not_hold_are_named(tmp_path):
    config = ModelConfig("qwen3", 8, 32, 1, 2, 1, 16, 64, 128)

    def read(slot, expert):
        return torch.full(slot.shape, 1e6 if "ffn_up" in slot.gguf else 0.0)

    with pytest.raises(CheckpointError, match=r"up_proj.*f16"):
        write_gguf(tmp_path / "a.gguf", config, read, type="f16", metadata={})
    assert not list(tmp_path.iterdir())


def test_a_vocabulary_of_another_size_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"3 tokens.*8 rows"):
        tiny_gguf(tmp_path / "a.gguf", **{"tokenizer.ggml.tokens": ["a", "b", "c"]})


def test_random_damage_never_gives_anything_but_a_checkpoint_error(tmp_path):
    """2,000 files with a few bytes changed in the header or the table of tensors."""
    whole = tiny_gguf(tmp_path / "whole.gguf")
    assert open_gguf(whole).config.num_layers == 1
    content = whole.read_bytes()
    start_of_data = min(info.offset for info in read_container(whole).tensors.values())
    dice, path = random.Random(0), tmp_path / "damaged.gguf"
    num_refused = 0
    for _ in range(2000):
        damaged = bytearray(content)
        for _ in range(dice.choice((1, 1, 2, 8))):
            damaged[dice.randrange(start_of_data)] = dice.choice((0, 1, 0x7F, 0xFF, dice.randrange(256)))
        path.unlink(missing_ok=True)
        path.write_bytes(damaged)
        try:
            file = open_gguf(path)
            _ = file.generation_config, file.chat_template
        except CheckpointError:
            num_refused += 1
    assert 1000 < num_refused < 2000


def written_by_the_package(path: Path, metadata: dict, tensors: dict[str, np.ndarray]) -> Path:
    """A file by the gguf package's own writer, for what ours never writes."""
    writer = package.GGUFWriter(path, metadata.pop("general.architecture"))
    for key, value in metadata.items():
        writer.add_key_value(key, value, package.GGUFValueType.get_type(value))
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        step()
    writer.close()
    return path


def test_a_split_checkpoint_is_read_from_any_of_its_files(tmp_path):
    """As llama.cpp's gguf-split writes them: metadata and some tensors in the first file, then tensors."""
    whole = tiny_gguf(tmp_path / "whole.gguf")
    metadata = read_container(whole).metadata
    tensors = [(tensor.name, tensor.data) for tensor in package.GGUFReader(whole).tensors]
    split = {"general.architecture": "llama", "split.count": 2}
    first, second = (tmp_path / f"model-0000{number}-of-00002.gguf" for number in (1, 2))
    written_by_the_package(first, metadata | split, dict(tensors[:5]))
    written_by_the_package(second, split, dict(tensors[5:]))
    for path in (first, second):
        file = open_gguf(path)
        assert file.config == open_gguf(whole).config
        assert set(file.containers) == {name for name, _ in tensors}
    second.unlink()
    with pytest.raises(CheckpointError, match=r"lacks model-00002-of-00002\.gguf"):
        open_gguf(first)


@pytest.mark.parametrize(("factor", "is_read"), [(1.0, True), (8.0, False)])
def test_llama_3s_rotary_factors_are_refused_unless_they_change_nothing(factor, is_read, tmp_path):
    whole = tiny_gguf(tmp_path / "whole.gguf")
    tensors = {tensor.name: tensor.data for tensor in package.GGUFReader(whole).tensors}
    tensors["rope_freqs.weight"] = np.full(8, factor, np.float32)
    path = written_by_the_package(tmp_path / "llama3.gguf", read_container(whole).metadata, tensors)
    if is_read:
        assert open_gguf(path).config == open_gguf(whole).config
    else:
        with pytest.raises(CheckpointError, match="rope_freqs"):
            open_gguf(path)


def test_every_type_has_llama_cpps_number():
    for name, (number, _) in FILE_TYPES.items():
        known = {"f32": "ALL_F32", "q4_k": "MOSTLY_Q4_K_S"}.get(name, f"MOSTLY_{name.upper()}")
        assert package.LlamaFileType[known] == number
