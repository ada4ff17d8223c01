"""Conversions there and back, what they copy, what they refuse."""

import json
from pathlib import Path

import pytest
import torch
from llamacpp_reference import plain_vocabulary
from reference import EXPERTS, build_reference, logits_of
from safetensors.torch import load_file, save_file

from lathe.errors import CheckpointError
from lathe.model.checkpoint import Checkpoint, load_model, open_checkpoint, save_model
from lathe.model.convert import convert
from lathe.model.gguf import open_gguf
from lathe.text.tokenizer import Tokenizer

FAMILIES = {
    "Qwen3, tied": ("qwen3", dict(head_dim=16, tie_word_embeddings=True)),
    "Qwen3-MoE": ("qwen3_moe", dict(head_dim=32, **EXPERTS)),
    "Qwen2": ("qwen2", {}),
    "Llama": ("llama", {}),
}


def save_nothing(checkpoint: Checkpoint, folder: Path) -> None:
    """For models whose words do not matter."""


def to(kind, source, target, **options):
    functions = dict(tokenizer_metadata=plain_vocabulary, save_tokenizer=save_nothing)
    return convert(source, target, kind=kind, **functions | options)


def model_folder(tmp_path, family="Qwen3-MoE", dtype=torch.float32) -> Path:
    model_type, settings = FAMILIES[family]
    folder = tmp_path / "source"
    build_reference(model_type, **settings).to(dtype).save_pretrained(folder)
    return folder


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back_is_bit_for_bit_the_same(family, dtype, tmp_path):
    folder = model_folder(tmp_path, family, dtype)
    to("gguf", folder, tmp_path / "model.gguf", type="f32")
    summary = to("safetensors", tmp_path / "model.gguf", tmp_path / "back", shard_bytes=100_000)
    before, after = tensors_in(folder), tensors_in(tmp_path / "back")
    assert before.keys() == after.keys()
    for name in before:
        assert before[name].dtype == after[name].dtype
        assert torch.equal(before[name], after[name]), name
    assert len(list((tmp_path / "back").glob("*.safetensors"))) > 1
    assert open_checkpoint(tmp_path / "back").config == open_checkpoint(folder).config
    assert list(summary.relative_error.values()) == [0]


def test_the_summary_says_what_rounding_cost(tmp_path):
    folder = model_folder(tmp_path)
    summary = to("gguf", folder, tmp_path / "model.gguf", type="q4_0")
    file = open_gguf(tmp_path / "model.gguf")
    assert summary.source_bytes == sum(tensor.nbytes for tensor in tensors_in(folder).values())
    assert summary.target_bytes == (tmp_path / "model.gguf").stat().st_size
    assert sum(summary.num_tensors.values()) == len(file.containers)
    exact, rounded = (load_model(open_checkpoint(path)) for path in (folder, tmp_path / "model.gguf"))
    error = total = 0.0
    for name, weight in exact.state_dict().items():
        if weight.ndim > 1 and not name.endswith(("mlp.gate.weight", "lm_head.weight")):
            if name.endswith("down_proj"):  # rows of 48 are no whole blocks: float16
                continue
            error += (rounded.state_dict()[name] - weight).square().sum().item()
            total += weight.square().sum().item()
    assert summary.relative_error["q4_0"] == pytest.approx((error / total) ** 0.5, rel=1e-4)
    assert 0.05 < summary.relative_error["q4_0"] < 0.1
    assert summary.num_tensors["f16"] == 4  # the experts' down projections


def test_fp8_and_back(tmp_path):
    model_type, settings = FAMILIES["Qwen3-MoE"]
    sizes = dict(hidden_size=256, moe_intermediate_size=128, initializer_range=0.05)
    model = build_reference(model_type, **settings | sizes).bfloat16()
    model.save_pretrained(tmp_path / "source")
    summary = to("fp8", tmp_path / "source", tmp_path / "fp8")
    save_model(
        load_model(open_checkpoint(tmp_path / "source"), dtype=torch.bfloat16), tmp_path / "saved", fp8=True
    )
    streamed, saved = tensors_in(tmp_path / "fp8"), tensors_in(tmp_path / "saved")
    assert streamed.keys() == saved.keys()
    for name in saved:
        assert torch.equal(streamed[name].float(), saved[name].float()), name
    assert open_checkpoint(tmp_path / "fp8").quantization == "fp8"
    assert 0.01 < summary.relative_error["fp8"] < 0.04
    assert summary.target_bytes < 0.7 * summary.source_bytes
    plain = to("safetensors", tmp_path / "fp8", tmp_path / "plain")
    assert set(plain.num_tensors) == {"bfloat16"}
    to("gguf", tmp_path / "fp8", tmp_path / "model.gguf", type="bf16")
    tokens = torch.arange(30)
    with torch.inference_mode():
        a, b = (
            logits_of(load_model(open_checkpoint(tmp_path / name)), tokens)
            for name in ("plain", "model.gguf")
        )
        assert torch.allclose(a, b, atol=1e-5)


def test_experts_that_a_file_holds_stacked(tmp_path):
    """As transformers 5 holds them in memory."""
    folder = model_folder(tmp_path)
    single = tensors_in(folder)
    stacked = {name: tensor for name, tensor in single.items() if ".experts." not in name}
    for layer in range(4):
        prefix = f"model.layers.{layer}.mlp.experts."
        parts = {
            kind: torch.stack([single[f"{prefix}{expert}.{kind}_proj.weight"] for expert in range(8)])
            for kind in ("gate", "up", "down")
        }
        stacked[prefix + "gate_up_proj"] = torch.cat((parts["gate"], parts["up"]), 1)
        stacked[prefix + "down_proj"] = parts["down"]
    save_file(stacked, folder / "model.safetensors", metadata={"format": "pt"})
    to("safetensors", folder, tmp_path / "again")
    again = tensors_in(tmp_path / "again")
    assert again.keys() == single.keys()
    assert all(torch.equal(again[name], single[name]) for name in single)


def test_progress_ends_at_the_total(tmp_path):
    folder = model_folder(tmp_path)
    for kind, target in (("gguf", "model.gguf"), ("safetensors", "folder"), ("fp8", "fp8")):
        calls = []
        to(
            kind,
            folder,
            tmp_path / target,
            progress=lambda done, total, calls=calls: calls.append((done, total)),
        )
        assert len(calls) > 10
        assert [done for done, _ in calls] == sorted(done for done, _ in calls)
        assert calls[-1][0] == calls[-1][1] > 0


def test_words_travel_with_the_weights(tmp_path):
    """SmolLM2's vocabulary, template and sampling: GGUF to Hugging Face's layout and back to GGUF."""
    from transformers import AutoTokenizer

    from lathe.model.hub import resolve

    words = open_gguf(resolve("smollm2"))

    def its_vocabulary(checkpoint, rows):
        return {key: value for key, value in words.metadata.items() if key.startswith("tokenizer.ggml.")}

    def saved(checkpoint, folder):
        Tokenizer.from_gguf(checkpoint.gguf_metadata).save(folder)

    def from_folder(checkpoint, rows):
        return Tokenizer.from_folder(checkpoint.path).gguf_metadata(rows)

    sizes = dict(vocab_size=words.config.vocab_size, hidden_size=32, num_hidden_layers=1)
    build_reference("llama", **sizes).save_pretrained(tmp_path / "source")
    generation = {"temperature": 0.7, "top_k": 20, "eos_token_id": [2, 0]}
    (tmp_path / "source" / "generation_config.json").write_text(json.dumps(generation))
    (tmp_path / "source" / "chat_template.jinja").write_text(words.chat_template)
    to("gguf", tmp_path / "source", tmp_path / "a.gguf", tokenizer_metadata=its_vocabulary)
    to("safetensors", tmp_path / "a.gguf", tmp_path / "folder", save_tokenizer=saved)
    to("fp8", tmp_path / "folder", tmp_path / "fp8")
    to("gguf", tmp_path / "fp8", tmp_path / "b.gguf", tokenizer_metadata=from_folder)
    first, last = open_gguf(tmp_path / "a.gguf"), open_gguf(tmp_path / "b.gguf")
    assert first.chat_template == last.chat_template == words.chat_template
    for key in ("tokens", "token_type", "merges", "pre", "eos_token_id"):
        assert last.metadata[f"tokenizer.ggml.{key}"] == words.metadata[f"tokenizer.ggml.{key}"]
    for path in ("a.gguf", "folder", "fp8", "b.gguf"):
        assert open_checkpoint(tmp_path / path).generation_config.items() >= generation.items()
    theirs = AutoTokenizer.from_pretrained(tmp_path / "fp8")
    assert theirs.encode("def f(x):\n    return x") == Tokenizer.from_gguf(words.metadata).encode(
        "def f(x):\n    return x"
    )


def test_a_template_for_tools_travels_from_folder_to_folder(tmp_path):
    folder = model_folder(tmp_path, "Llama")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    to("fp8", folder, tmp_path / "fp8")
    assert (tmp_path / "fp8" / "additional_chat_templates" / "tool_use.jinja").read_text() == "{{ tools }}"


class TestTargets:
    @pytest.fixture
    def source(self, tmp_path):
        return model_folder(tmp_path, "Llama")

    def test_nothing_is_overwritten_unasked(self, source, tmp_path):
        file, folder = tmp_path / "model.gguf", tmp_path / "folder"
        file.write_text("precious")
        folder.mkdir()
        (folder / "notes.txt").write_text("precious")
        with pytest.raises(CheckpointError, match="exists"):
            to("gguf", source, file)
        with pytest.raises(CheckpointError, match="exists"):
            to("safetensors", source, folder)
        assert file.read_text() == (folder / "notes.txt").read_text() == "precious"
        to("gguf", source, file, overwrite=True)
        to("safetensors", source, folder, overwrite=True)
        assert open_checkpoint(file).config == open_checkpoint(folder).config

    def test_the_source_is_never_the_target(self, source, tmp_path):
        with pytest.raises(CheckpointError, match="source itself"):
            to("fp8", source, source, overwrite=True)

    @pytest.mark.parametrize(
        ("kind", "name"), [("gguf", "folder"), ("fp8", "model.gguf"), ("safetensors", "a.gguf")]
    )
    def test_names_that_do_not_suit_the_kind(self, kind, name, source, tmp_path):
        with pytest.raises(CheckpointError, match=r"\.gguf|GGUF"):
            to(kind, source, tmp_path / name)

    def test_a_failure_leaves_no_half_file(self, source, tmp_path):
        weights = tensors_in(source)
        weights["model.norm.weight"][0] = torch.nan
        save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
        for kind, target in (("gguf", "out/model.gguf"), ("safetensors", "out/folder")):
            with pytest.raises(CheckpointError, match=r"norm\.weight.*NaN"):
                to(kind, source, tmp_path / target)
        assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]

    def test_a_missing_tensor_is_named_before_anything_is_written(self, source, tmp_path):
        weights = tensors_in(source)
        del weights["model.layers.1.mlp.up_proj.weight"]
        save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
            to("gguf", source, tmp_path / "out" / "model.gguf")
        assert not list((tmp_path / "out").iterdir())
