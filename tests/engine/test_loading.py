from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import random_model, tiny_config

from lathe.engine import loading
from lathe.engine.loading import FALLBACK_SAMPLING, check_memory, default_sampling
from lathe.errors import UserError
from lathe.model.checkpoint import Checkpoint, load_model, open_checkpoint, save_model
from lathe.model.packed_checkpoint import packed_memory
from lathe.model.presets import preset
from lathe.types import SamplingParams

BIG = Checkpoint(
    Path("/models/Qwen3-Coder-480B"), "safetensors", preset("qwen3-coder-480b-a35b-instruct"), {}, None
)
CPU = torch.device("cpu")


def test_a_model_larger_than_the_memory_is_refused_with_the_numbers():
    with pytest.raises(UserError, match=r"480\.2B parameters, in float32 1921 GB, and \d+ GB are free"):
        check_memory(BIG, torch.float32, CPU, keep_fp8=False)
    with pytest.raises(UserError, match="in bfloat16 480 GB"):
        check_memory(replace(BIG, quantization="fp8"), torch.bfloat16, CPU, keep_fp8=True)


def test_a_quantized_model_is_measured_as_it_will_be_packed(tmp_path, monkeypatch):
    model = random_model(tiny_config(hidden_size=64, intermediate_size=96, vocab_size=4000))
    save_model(model, tmp_path / "model")
    checkpoint = open_checkpoint(tmp_path / "model")
    q4, q8 = (packed_memory(checkpoint.path, checkpoint.config, mode) for mode in ("q4", "q8"))
    assert q4 < q8 - 30_000
    monkeypatch.setattr(loading, "available_memory", lambda device: q8 - 1)
    check_memory(checkpoint, torch.float32, CPU, False, "keep")  # mapped as it lies
    check_memory(checkpoint, torch.float32, CPU, False, "q4", None)
    with pytest.raises(UserError, match=r"parameters, in q8 .* Choose fewer bits \(--quantize q4\)"):
        check_memory(checkpoint, torch.float32, CPU, False, "q8")
    load_model(checkpoint, quantize="q8", cache=tmp_path / "cache")
    check_memory(checkpoint, torch.float32, CPU, False, "q8", tmp_path / "cache")


def test_weights_that_stay_mapped_need_no_memory():
    check_memory(BIG, torch.bfloat16, CPU, keep_fp8=False)


@pytest.mark.parametrize(
    ("config", "sampling"),
    [
        ({}, FALLBACK_SAMPLING),
        ({"eos_token_id": [1, 2]}, FALLBACK_SAMPLING),
        ({"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}, FALLBACK_SAMPLING),
        ({"temperature": 0.6, "do_sample": True}, SamplingParams(temperature=0.6)),
        ({"do_sample": False}, SamplingParams(temperature=0.0)),
    ],
)
def test_sampling_defaults_are_the_checkpoints(config, sampling):
    assert default_sampling(config) == sampling
