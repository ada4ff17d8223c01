import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from reference import logits_of
from safetensors.torch import load_file, save_file
from tiny_models import random_model, tiny_config

from lathe.errors import CheckpointError
from lathe.kernels.cpu.blocks import q5_0_as_q8_0
from lathe.kernels.cpu.packed import quantize
from lathe.model.checkpoint import load_model, open_checkpoint, save_model
from lathe.model.gguf import write_gguf
from lathe.model.gguf_kquants import dequantize_q4_k, q4_k_as_q4_1, quantize_q4_k
from lathe.model.gguf_types import Q4_1, Q5_0, Q8_0
from lathe.model.hub import resolve
from lathe.model.packed import packed_weights
from lathe.model.packed_checkpoint import packed_memory
from lathe.model.packing import Loss, choose_storage
from lathe.model.quantization import quantize_blocks
from lathe.model.transformer import Transformer

DENSE = tiny_config(hidden_size=256, intermediate_size=256, vocab_size=80, tie_word_embeddings=True)
LLAMA = replace(DENSE, architecture="llama", qk_norm=False)
SPARSE = tiny_config(
    architecture="qwen3_moe",
    hidden_size=256,
    vocab_size=80,
    num_experts=3,
    num_experts_per_tok=2,
    moe_intermediate_size=40,  # down's columns are no whole groups; gate and up meet inside a tile
    norm_topk_prob=True,
)
TOKENS = torch.tensor([3, 50, 79, 7])


def as_gguf(model, path: Path, type: str) -> Path:
    state = model.state_dict()

    def read(slot, expert):
        weight = state[slot.ours] if expert is None else state[slot.ours][expert]
        return weight if slot.half is None else weight.chunk(2)[slot.half]

    write_gguf(path, model.config, read, type=type, metadata={})
    return path


def rewrite(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def load(path: Path, **options):
    return load_model(open_checkpoint(path), **options)


def kinds_of(model) -> dict[str, str]:
    return {name: packed.kind for name, packed in packed_weights(model).items()}


SHAPES = {
    "embed_tokens.weight": (80, 64),
    "norm.weight": (64,),
    "layers.0.self_attn.q_proj.weight": (64, 64),
    "layers.0.self_attn.q_proj.bias": (64,),
    "layers.0.mlp.gate.weight": (8, 64),
    "layers.0.mlp.experts.gate_up_proj": (8, 96, 64),
    "layers.0.mlp.experts.down_proj": (8, 64, 48),
}


@pytest.mark.parametrize(
    ("mode", "type", "embedding", "matrix", "odd"),
    [
        ("keep", "f32", "f32", "f32", "f32"),
        ("keep", "bf16", "bf16", "bf16", "bf16"),
        ("keep", "f16", "f32", "f32", "f32"),
        ("keep", "fp8", "fp8", "fp8", "fp8"),
        ("keep", "q4_0", "q4_0", "q4_0", "q4_0"),
        ("keep", "q4_k", "q4_1", "q4_1", "q4_1"),
        ("keep", "q6_k", "q8_0", "q8_0", "q8_0"),
        ("keep", "iq3_s", "q8_0", "q8_0", "q8_0"),
        ("q4", "bf16", "q8_0", "q4_0", "f32"),
        ("q4", "fp8", "q8_0", "q4_0", "f32"),
        ("q4", "q4_1", "q4_1", "q4_1", "q4_1"),
        ("q4", "q6_k", "q8_0", "q4_0", "f32"),
        ("q8", "f32", "q8_0", "q8_0", "f32"),
        ("q8", "q4_0", "q4_0", "q4_0", "q4_0"),
    ],
)
def test_how_each_weight_is_stored(mode, type, embedding, matrix, odd):
    chosen = choose_storage(mode, SHAPES, {name: [type] for name in SHAPES})
    assert chosen == {
        "embed_tokens.weight": embedding,
        "norm.weight": "f32",
        "layers.0.self_attn.q_proj.weight": matrix,
        "layers.0.self_attn.q_proj.bias": "f32",
        "layers.0.mlp.gate.weight": "f32",
        "layers.0.mlp.experts.gate_up_proj": matrix,
        "layers.0.mlp.experts.down_proj": odd,
    }


def test_gate_and_up_of_two_types_get_the_wider_one():
    name = "layers.0.mlp.experts.gate_up_proj"
    assert choose_storage("keep", {name: (8, 64, 64)}, {name: ["q4_k", "q6_k"]})[name] == "q8_0"


# GGUF


@torch.inference_mode()
def test_smollm2_is_packed_without_loss():
    """Q4_1 with a Q8_0 embedding, and rows of q and k in another order: the numbers are the same bits."""
    loss, calls = Loss(), []
    checkpoint = open_checkpoint(resolve("smollm2"))
    wide = load_model(checkpoint)
    packed = load_model(
        checkpoint, quantize="keep", loss=loss, progress=lambda done, total: calls.append((done, total))
    )
    kinds = kinds_of(packed)
    assert (
        kinds.pop("embed_tokens.weight") == "q8_0" and set(kinds.values()) == {"q4_1"} and len(kinds) == 210
    )
    for name, weight in packed_weights(packed).items():
        assert torch.equal(weight.dequantize(), wide.get_parameter(name)), name
    assert not loss.relative_error
    assert calls[-1][0] == calls[-1][1] > 9e7 and len(calls) == 272
    assert torch.equal(logits_of(packed, TOKENS), logits_of(wide, TOKENS))
    assert packed_memory(checkpoint.path, checkpoint.config, "keep") == sum(
        weight.nbytes for weight in packed.parameters() if weight.dtype == torch.uint8
    )


@pytest.mark.parametrize("config", [DENSE, LLAMA, SPARSE], ids=["dense", "llama", "sparse"])
@pytest.mark.parametrize(
    "type", ["f32", "f16", "bf16", "q8_0", "q4_1", "q4_0", "q4_k", "q6_k", "q5_1", "q5_0"]
)
@torch.inference_mode()
def test_every_type_of_gguf_keeps_its_numbers(config, type, tmp_path):
    path, loss = as_gguf(random_model(config), tmp_path / "model.gguf", type), Loss()
    wide, packed = load(path), load(path, quantize="keep", loss=loss)
    matrices = packed_weights(packed)
    for name, weight in wide.state_dict().items():
        read = matrices[name].dequantize() if name in matrices else packed.state_dict()[name].float()
        tolerance = 0.0 if type in ("f32", "f16", "bf16") else 0.01
        assert (read - weight).norm() <= tolerance * weight.norm(), name
    expected = {"q4_k": "q4_1", "q6_k": "q8_0", "q5_1": "q8_0", "q5_0": "q8_0"}.get(type, type)
    name = "layers.0.self_attn.q_proj.weight"
    if type in ("f32", "f16", "bf16"):
        stored = packed.get_parameter(name).dtype
        assert not matrices and stored == (torch.bfloat16 if type == "bf16" else torch.float32)
    else:
        assert matrices[name].kind == expected
        assert packed.layers[0].input_layernorm.weight.dtype == torch.float32
    error = loss.relative_error.get(f"{type} as {expected}", 0.0)
    assert 0 <= error < {"q4_k": 1e-3, "q6_k": 0.01, "q5_1": 0.01}.get(type, 1e-12)
    if type in ("q8_0", "q4_1", "q4_0", "q5_0"):
        assert torch.equal(matrices[name].dequantize(), wide.get_parameter(name))
    assert logits_of(packed, TOKENS).isfinite().all()


@pytest.mark.parametrize("mode", ["q4", "q8"])
def test_wide_types_of_gguf_are_quantized(mode, tmp_path):
    model = random_model(LLAMA)
    loss = Loss()
    packed = load(as_gguf(model, tmp_path / "model.gguf", "f32"), quantize=mode, loss=loss)
    for name, weight in packed_weights(packed).items():
        kind = "q4_0" if mode == "q4" and name != "embed_tokens.weight" else "q8_0"
        assert torch.equal(weight.data, quantize(kind, model.get_parameter(name)).data), name
    assert len(packed_weights(packed)) == 2 * 7 + 1
    assert loss.relative_error["f32 as q8_0"] == pytest.approx(0.0055, rel=0.3)
    if mode == "q4":
        assert loss.relative_error["f32 as q4_0"] == pytest.approx(0.09, rel=0.2)
        assert str(loss).startswith("f32 as q4_0 (relative error ")


def test_q4_k_is_q4_1_with_rounded_scales():
    raw = quantize_q4_k(torch.randn(64, 256, generator=torch.Generator().manual_seed(0)) * 0.02)
    expected, found = dequantize_q4_k(raw), Q4_1.dequantize(q4_k_as_q4_1(raw)).view(64, 256)
    assert (found - expected).norm() < 1e-3 * expected.norm()
    zeros = quantize_q4_k(torch.zeros(1, 256))
    assert not Q4_1.dequantize(q4_k_as_q4_1(zeros)).any()


def test_q5_0_is_q8_0_without_loss():
    raw = torch.randint(0, 256, (500, 22), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    raw[:, :2] = torch.randn(500, 1).half().view(torch.uint8)
    assert torch.equal(Q8_0.dequantize(q5_0_as_q8_0(raw)), Q5_0.dequantize(raw))


# Safetensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shard_bytes", [5e9, 50_000])
@pytest.mark.parametrize("mode", ["q4", "q8"])
def test_folders_are_quantized(mode, dtype, shard_bytes, tmp_path):
    model = random_model(SPARSE).to(dtype)
    save_model(model, tmp_path, shard_bytes=shard_bytes)
    packed = load(tmp_path, quantize=mode)
    kinds = kinds_of(packed)
    projection = "q4_0" if mode == "q4" else "q8_0"
    assert kinds.pop("embed_tokens.weight") == kinds.pop("lm_head.weight") == "q8_0"
    assert set(kinds.values()) == {projection} and len(kinds) == 2 * 5
    for name, weight in packed_weights(packed).items():
        expected = quantize(weight.kind, model.get_parameter(name))
        assert torch.equal(weight.data, expected.data), name
    for name, weight in packed.named_parameters():
        assert weight.dtype in (torch.uint8, torch.float32)
        if weight.dtype == torch.float32:
            assert torch.equal(weight, model.get_parameter(name).float())


def test_experts_that_a_file_holds_stacked_are_quantized(tmp_path):
    model = random_model(SPARSE)
    save_model(model, tmp_path)

    def stack(tensors):
        for name in [name for name in tensors if ".mlp.experts." in name]:
            del tensors[name]
        for layer in range(2):
            for name, weight in model.layers[layer].mlp.experts.named_parameters():
                tensors[f"model.layers.{layer}.mlp.experts.{name}"] = weight.detach()

    rewrite(tmp_path, stack)
    name = "layers.1.mlp.experts.gate_up_proj"
    packed = packed_weights(load(tmp_path, quantize="q4"))[name]
    assert torch.equal(packed.data, quantize("q4_0", model.get_parameter(name)).data)


@pytest.mark.parametrize("stacked", [False, True])
@torch.inference_mode()
def test_fp8_is_kept_or_quantized(stacked, tmp_path):
    """An inner width of 40: gate's and up's blocks are cut short, and stacked they share some."""
    model = random_model(SPARSE)
    save_model(model, tmp_path, fp8=True)

    def stack(tensors):
        for name in [name for name in tensors if ".mlp.experts." in name]:
            del tensors[name]
        for layer in range(2):
            for name, weight in model.layers[layer].mlp.experts.named_parameters():
                place = f"model.layers.{layer}.mlp.experts.{name}"
                tensors[place], tensors[place + "_scale_inv"] = quantize_blocks(weight.detach())

    if stacked:
        rewrite(tmp_path, stack)
    wide = load(tmp_path)
    packed = load(tmp_path, quantize="q8")
    for name, weight in packed_weights(packed).items():
        assert torch.equal(weight.data, quantize("q8_0", wide.get_parameter(name)).data), name
    kept = load(tmp_path, quantize="keep")
    assert kept.layers[0].self_attn.q_proj.weight.dtype == torch.float8_e4m3fn
    experts = kept.layers[0].mlp.experts.gate_up_proj
    assert experts.dtype == (torch.float32 if stacked else torch.float8_e4m3fn)
    assert torch.equal(logits_of(kept, TOKENS), logits_of(wide, TOKENS))


@torch.inference_mode()
def test_bf16_stays_in_the_file_and_norms_are_widened(tmp_path):
    save_model(random_model(SPARSE).bfloat16(), tmp_path)
    kept, wide = load(tmp_path, quantize="keep"), load(tmp_path)
    assert kept.layers[0].self_attn.q_proj.weight.dtype == kept.embed_tokens.weight.dtype == torch.bfloat16
    assert kept.layers[0].mlp.experts.down_proj.dtype == torch.bfloat16
    assert kept.norm.weight.dtype == kept.layers[0].mlp.gate.weight.dtype == torch.float32
    assert torch.equal(logits_of(kept, TOKENS), logits_of(wide, TOKENS))
    experts = sum(weight.nbytes for name, weight in kept.named_parameters() if "experts" in name)
    needed = packed_memory(tmp_path, SPARSE, "keep")
    assert experts < needed < experts + 30_000  # norms and routers


# What can go wrong, and the cache


@pytest.mark.parametrize("number", [torch.inf, -torch.inf, torch.nan, 1e30])
def test_a_number_that_does_not_fit_is_named(number, tmp_path):
    model = random_model(DENSE)
    with torch.no_grad():
        model.layers[1].mlp.down_proj.weight[200, 7] = number
    save_model(model, tmp_path)
    with pytest.raises(
        CheckpointError, match=r"layers\.1\.mlp\.down_proj\.weight holds a number that q4_0 can't"
    ):
        load(tmp_path, quantize="q4")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"quantize": "q5"}, "'q5' is no way to quantize; known are keep, q4, q8"),
        ({"quantize": "q4", "device": "meta"}, "are for a CPU, not for meta"),
        ({"quantize": "q4", "dtype": torch.bfloat16}, "computes in float32, not in bfloat16"),
        (
            {"quantize": "q8", "keep_fp8": True},
            "to keep FP8 weights and to quantize to q8 exclude each other",
        ),
    ],
)
def test_settings_that_exclude_each_other(options, complaint, tmp_path):
    save_model(random_model(DENSE), tmp_path)
    with pytest.raises(CheckpointError, match=complaint):
        load(tmp_path, **options)


def test_packed_weights_are_kept_on_the_disk(tmp_path):
    folder, cache = tmp_path / "model", tmp_path / "cache"
    save_model(random_model(SPARSE), folder)
    first = load(folder, quantize="q4", cache=cache)
    (kept,) = cache.iterdir()
    written = kept.stat().st_mtime_ns
    loss = Loss()
    second = load(folder, quantize="q4", cache=cache, loss=loss)
    assert not loss.relative_error and kept.stat().st_mtime_ns == written
    assert kinds_of(first) == kinds_of(second)
    for name, weight in second.state_dict().items():
        assert torch.equal(weight, first.state_dict()[name])
    assert all(packed.data.data_ptr() % 64 == 0 for packed in packed_weights(second).values())

    load(folder, quantize="q8", cache=cache)
    assert len(list(cache.iterdir())) == 2
    save_model(random_model(SPARSE, seed=1), folder)  # another model by that name
    third = load(folder, quantize="q4", cache=cache)
    expected = packed_weights(load(folder, quantize="q4"))
    assert all(
        torch.equal(packed.data, expected[name].data) for name, packed in packed_weights(third).items()
    )
    assert len(list(cache.iterdir())) == 3


def test_a_cached_file_that_lacks_a_weight_is_written_anew(tmp_path):
    save_model(random_model(DENSE), tmp_path / "model")
    load(tmp_path / "model", quantize="q4", cache=tmp_path / "cache")
    (kept,) = (tmp_path / "cache").iterdir()
    tensors = load_file(kept)
    del tensors["layers.0.mlp.up_proj.weight"]
    save_file(tensors, kept)
    model = load(tmp_path / "model", quantize="q4", cache=tmp_path / "cache")
    assert "layers.0.mlp.up_proj.weight" in load_file(kept)
    assert logits_of(model, TOKENS).isfinite().all()


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    save_model(random_model(DENSE), tmp_path / "model")
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(CheckpointError, match=r"file/model-.*\.safetensors can't be written"):
        load(tmp_path / "model", quantize="q4", cache=tmp_path / "file")


MEASURE = """
import sys, torch
from pathlib import Path
from lathe.model.checkpoint import load_model, open_checkpoint

def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

checkpoint = open_checkpoint(Path(sys.argv[1]))
load_model(checkpoint, quantize=sys.argv[2])  # what PyTorch and malloc keep from the first time on
before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # forget the peak
model = load_model(checkpoint, quantize=sys.argv[2])
print(memory("VmHWM") - before, sum(parameter.nbytes for parameter in model.parameters()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("type", [pytest.param("q8_0", marks=pytest.mark.slow), "bf16"])
def test_memory_holds_the_packed_model_once(type, tmp_path):
    """Some 160 MB in bf16: the file's pages are given back, and little is ever in float32."""
    config = replace(SPARSE, vocab_size=30_000, hidden_size=512, moe_intermediate_size=512, num_experts=30)
    path = tmp_path / "model"
    model = Transformer(config, device="meta", dtype=torch.bfloat16).to_empty(device="cpu")
    for weight in model.parameters():
        torch.nn.init.uniform_(weight)
    if type == "bf16":
        save_model(model, path)
    else:
        as_gguf(model, path := tmp_path / "model.gguf", type)
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, path, "q8"],
        capture_output=True,
        text=True,
        check=True,
        env=dict(os.environ),
    )
    peak, size = map(int, run.stdout.split())
    assert 5e7 < size < 9e7
    assert 0.8 * size < peak < 1.4 * size
