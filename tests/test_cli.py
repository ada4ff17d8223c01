"""The real command, as a subprocess, on the default model's real weights."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
import torch
from typer.testing import CliRunner

import lathe
from lathe import cli
from lathe.jsonl import read_rollouts
from lathe.model.checkpoint import save_model
from lathe.model.config import ModelConfig
from lathe.model.transformer import Transformer
from lathe.testing import tiny_tokenizer

ENVIRONMENT = {**os.environ, "COLUMNS": "100", "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "lathe.cli", *map(str, words)]


def call(*words: object, given: str = "", timeout_s: float = 110) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(*words), input=given, capture_output=True, text=True, timeout=timeout_s, env=ENVIRONMENT
    )


def error_of(result: subprocess.CompletedProcess) -> str:
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    return line


def test_version():
    assert call("--version").stdout == f"lathe {lathe.__version__}\n"


def test_help_lists_the_verbs():
    shown = call("--help").stdout
    for verb in ("serve", "chat", "code", "generate", "convert", "info", "show", "complete"):
        assert re.search(rf"^│ {verb} ", shown, re.MULTILINE)


def test_slips_get_a_hint():
    verb = call("sevre")
    option = call("serve", "--prot", "80")
    assert (verb.returncode, option.returncode) == (2, 2)
    assert "Did you mean 'serve'?" in verb.stderr
    assert "--port" in option.stderr


def test_an_unknown_dtype_is_one_line_but_under_debug():
    words = ("generate", "smollm2", "x", "--dtype", "int3")
    assert "float32" in error_of(call(*words))
    debug = call("--debug", *words)
    assert debug.returncode == 1
    assert "Traceback" in debug.stderr


def test_quantized_weights_answer_and_say_what_rounding_cost(tmp_path):
    folder = tmp_path / "model"
    config = ModelConfig(
        architecture="qwen3",
        vocab_size=tiny_tokenizer().vocab_size,
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        intermediate_size=96,
        max_position_embeddings=128,
    )
    save_model(Transformer(config), folder, generation_config={"eos_token_id": 0})
    tiny_tokenizer().save(folder)
    cache = tmp_path / "cache"
    words = ("generate", folder, "Hi", "--max-tokens", 4, "--temperature", 0)
    first = run_here(*words, "--quantize", "q4", "--pack-cache", cache)
    assert first.exit_code == 0, first.stderr
    assert re.search(
        r"Weights were rounded: f32 as q4_0 \(relative error [\d.e-]+\), f32 as q8_0", first.stderr
    )
    again = run_here(*words, "--quantize", "q4", "--pack-cache", cache)
    assert again.stdout == first.stdout and "rounded" not in again.stderr
    assert "rounded" not in run_here(*words, "--quantize", "keep").stderr
    for options, complaint in (
        (("--quantize", "q3"), "q3 is no way to quantize: choose one of auto, keep, none, q4, q8."),
        (("--quantize", "q4", "--dtype", "bfloat16"), "computes in float32, not in bfloat16"),
        (("--quantize", "q8", "--keep-fp8"), "exclude each other"),
        (("--pack-cache", cache, "--quantize", "none"), "none are quantized"),
    ):
        refused = run_here(*words, *options)
        assert refused.exit_code == 1 and complaint in refused.stderr, refused.stderr


def test_a_port_in_use_is_known_before_the_model_loads():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = error_of(call("serve", "smollm2", "--port", port))
    assert str(port) in message
    assert "--port" in message


def test_generate_continues_text_from_standard_input():
    words = ("generate", "smollm2", "-", "--temperature", 0, "--max-tokens", 3)
    result = call(*words, given="The capital of France is")
    assert result.stdout == " Paris.\n\n", result.stderr
    assert "8,192 tokens of context" in result.stderr


def test_chat_reads_one_turn_a_line_and_remembers_until_told():
    turns = ["What is the capital of Germany?", "", "/help", "And of France?", "/clear", "And of France?"]
    given = "\n".join([*turns, "/exit", "never read"])
    result = call("chat", "smollm2", "--temperature", 0, "--max-tokens", 10, given=given)
    assert result.returncode == 0, result.stderr
    germany, france, forgotten = result.stdout.splitlines()
    assert "Berlin" in germany
    assert "capital of France is Paris" in france
    assert "capital" not in forgotten
    assert "/clear" in result.stderr
    assert "tok/s" not in result.stderr, "the speed is for people"


def run_here(*words: object):
    """In this process, which has the heavy imports already. For verbs that do not care."""
    return CliRunner().invoke(cli.app, [*map(str, words)], env={"COLUMNS": "100"})


def test_generate_answers_with_the_template_and_stops_where_told():
    question = "What is the capital of Germany?"
    result = run_here("generate", "smollm2", question, "--chat", "--temperature", 0, "--stop", " Berlin")
    assert result.stdout == "The capital of Germany is\n", result.stderr


def test_info_of_a_file():
    result = run_here("info", "smollm2", "--context", 2048)
    assert result.exit_code == 0, result.stderr
    assert "134.5M" in result.stdout
    assert "llama" in result.stdout
    assert re.search(r"q4_1 +66\.4 MB", result.stdout), result.stdout
    assert re.search(r"together +96\.6 MB", result.stdout), result.stdout
    assert re.search(r"KV cache at 2,048 +47\.2 MB +94\.4 MB", result.stdout), result.stdout
    assert re.search(r"keep +96\.6 MB: q4_1 66\.4 MB, q8_0 30\.1 MB, f32 140\.5 KB", result.stdout), (
        result.stdout
    )


def test_info_of_a_preset_needs_no_weights():
    result = run_here("info", "qwen3-coder-30b")
    assert result.exit_code == 0, result.stderr
    assert "30.53B in total, 3.04B read per token" in result.stdout
    assert re.search(r"KV cache per token +98\.3 KB", result.stdout), result.stdout
    assert re.search(r"KV cache at 262,144 +25\.77 GB", result.stdout), result.stdout
    assert re.search(r"q4 +17\.\d+ GB: q4_0 16\.\d+ GB, q8_0 \d+\.\d MB, f32 \d+\.\d MB", result.stdout)
    assert (
        "1,048,576 tokens (YaRN, 4 times 262,144)" in run_here("info", "qwen3-coder-30b", "--yarn", 4).stdout
    )


def test_an_unknown_model_is_one_line(tmp_path):
    result = run_here("info", tmp_path / "no-such-model")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: There is no model")
    assert result.stderr.count("\n") == 1


def save_tiny(folder: Path) -> None:
    """A checkpoint that loads at once."""
    tokenizer = tiny_tokenizer()
    config = ModelConfig(
        architecture="qwen3",
        vocab_size=tokenizer.vocab_size,
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        intermediate_size=128,
        max_position_embeddings=512,
    )
    save_model(Transformer(config, dtype=torch.bfloat16), folder)
    tokenizer.save(folder)


def test_convert_to_gguf_and_back(tmp_path):
    save_tiny(tmp_path / "model")
    there = run_here("convert", tmp_path / "model", tmp_path / "model.gguf", "--type", "q8_0")
    assert there.exit_code == 0, there.stderr
    assert re.search(r"q8_0 +\d+ tensors, relative error [3-9]\.\d+e-03", there.stdout), there.stdout
    again = run_here("convert", tmp_path / "model", tmp_path / "model.gguf")
    assert again.exit_code == 1
    assert "overwrite" in again.stderr
    back = run_here("convert", tmp_path / "model.gguf", tmp_path / "back")
    assert back.exit_code == 0, back.stderr
    assert {path.name for path in (tmp_path / "back").iterdir()} >= {"config.json", "tokenizer.json"}
    nonsense = run_here("convert", tmp_path / "model", tmp_path / "other", "--type", "q8_0")
    assert nonsense.exit_code == 1
    assert ".gguf" in nonsense.stderr


def wait_for_line(process: subprocess.Popen, start: str, timeout_s: float = 110) -> str:
    timer = threading.Timer(timeout_s, process.kill)
    timer.start()
    try:
        for line in process.stdout:
            if line.startswith(start):
                return line
        raise AssertionError(f"no line {start!r}: {process.stderr.read()}")
    finally:
        timer.cancel()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("stop", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_the_printed_curl_line_works_and_signals_stop_the_server(stop):
    key = ("--api-key", "it's a key") if stop == signal.SIGINT else ()
    process = subprocess.Popen(
        command("serve", "--port", 0, "--max-context", 512, "--alias", "small", "--alias", "big", *key),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    try:
        line = wait_for_line(process, "curl ")
        answer = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
        reply = json.loads(answer.stdout)
        assert reply["choices"][0]["message"]["content"]
        assert reply["model"] == "smollm2"
        if key:
            without_key = re.sub(r" -H 'Authorization.*?' -d", " -d", line)
            refused = subprocess.run(["bash", "-c", without_key], capture_output=True, text=True, timeout=60)
            assert json.loads(refused.stdout)["error"]["code"] == "invalid_api_key"
            url = re.search(r"http://[^/]+", line)[0]
            models = httpx.get(f"{url}/v1/models", headers={"x-api-key": key[1]}).json()["data"]
            assert [model["id"] for model in models] == ["smollm2", "small", "big"]
        started = time.monotonic()
        process.send_signal(stop)
        process.wait(60)
        assert time.monotonic() - started < 20, "it waits for replies, and none is being made"
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.wait()


def test_what_was_answered_is_on_the_record_whatever_kills_the_server(tmp_path):
    save_tiny(tmp_path / "model")
    records = tmp_path / "records"
    process = subprocess.Popen(
        command("serve", tmp_path / "model", "--port", 0, "--record", records),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=ENVIRONMENT,
    )
    try:
        url = re.search(r"http://[^/]+", wait_for_line(process, "curl "))[0]
        body = {"messages": [{"role": "user", "content": "Hi."}], "max_tokens": 20, "stream": True}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as reply:
            for line in reply.iter_lines():
                if '"finish_reason":"' in line:
                    process.kill()
                    break
    finally:
        process.kill()
        process.wait()
    (rollout,) = read_rollouts(records)
    (trajectory,) = rollout.trajectories
    assert rollout.model == str(tmp_path / "model")
    assert sum(trajectory.loss_mask) == 20 or trajectory.segments[0].finish_reason == "stop"
    shown = run_here("show", records)
    assert "<|im_start|>user\nHi.<|im_end|>" in shown.stdout, "by the tokenizer that the record names"
    assert "── sampled" in shown.stdout


def test_a_folder_that_cannot_hold_records_is_known_before_the_model_loads(tmp_path):
    (tmp_path / "file").touch()
    assert "--record" in error_of(call("serve", "no-such-model", "--port", 0, "--record", tmp_path / "file"))
