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

import pytest

import lathe

ENVIRONMENT = {**os.environ, "COLUMNS": "100", "OMP_NUM_THREADS": "2", "NO_COLOR": "1"}


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "lathe.cli", *map(str, words)]


def call(*words: object, given: str = "", timeout_s: float = 60) -> subprocess.CompletedProcess:
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


def test_help_is_quick_because_nothing_heavy_is_imported():
    heavy = ["torch", "fastapi", "uvicorn", "tokenizers", "jinja2", "prompt_toolkit", "numpy", "openai"]
    code = (
        "import sys, lathe.cli\n"
        "try: lathe.cli.app(['--help'], prog_name='lathe')\n"
        f"except SystemExit: print(sorted(set({heavy}) & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
    assert result.stdout.splitlines()[-1] == "[]"
    for verb in ("serve", "chat", "generate", "convert", "info"):
        assert re.search(rf"^│ {verb} ", result.stdout, re.MULTILINE)


def test_slips_get_a_hint():
    verb = call("sevre")
    option = call("serve", "--prot", "80")
    assert (verb.returncode, option.returncode) == (2, 2)
    assert "Did you mean 'serve'?" in verb.stderr
    assert "--port" in option.stderr


def test_an_unknown_model_is_one_line(tmp_path):
    assert "no-such-model" in error_of(call("info", tmp_path / "no-such-model"))
    debug = call("--debug", "info", tmp_path / "no-such-model")
    assert debug.returncode == 1
    assert "Traceback" in debug.stderr


def test_an_unknown_dtype_is_one_line():
    assert "float32" in error_of(call("generate", "smollm2", "x", "--dtype", "int3"))


def test_a_port_in_use_is_known_before_the_model_loads():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = error_of(call("serve", "smollm2", "--port", port))
    assert str(port) in message
    assert "--port" in message


def test_generate_continues_text():
    greedy = ("--temperature", 0, "--max-tokens", 8)
    argument = call("generate", "smollm2", "The capital of France is", *greedy)
    piped = call("generate", "smollm2", "-", *greedy, given="The capital of France is")
    assert argument.returncode == 0, argument.stderr
    assert "Paris" in argument.stdout
    assert piped.stdout == argument.stdout
    assert "tokens of context" in argument.stderr


def test_generate_answers_with_the_template_and_stops_where_told():
    words = ("What is the capital of France?", "--chat", "--temperature", 0, "--max-tokens", 20)
    answer = call("generate", "smollm2", *words)
    stopped = call("generate", "smollm2", *words, "--stop", "Paris")
    assert "Paris" in answer.stdout
    assert stopped.stdout.rstrip("\n") == answer.stdout[: answer.stdout.index("Paris")].rstrip("\n")


def test_chat_reads_one_turn_a_line():
    turns = "My name is Ada.\n\n/help\nWhat is my name?\n/clear\nWhat is 1+1?\n/exit\nnever read\n"
    result = call("chat", "smollm2", "--temperature", 0, "--max-tokens", 12, given=turns)
    assert result.returncode == 0, result.stderr
    assert "Ada" in result.stdout
    assert "/clear" in result.stderr
    assert "forgotten" in result.stderr
    assert "\x1b" not in result.stdout


def test_info_of_a_file():
    result = call("info", "smollm2", "--context", 2048)
    assert result.returncode == 0, result.stderr
    assert "134.5M" in result.stdout
    assert "llama" in result.stdout
    assert re.search(r"KV cache at 2,048 +94\.4 MB", result.stdout), result.stdout
    assert re.search(r"together +\d+\.\d MB", result.stdout)


def test_info_of_a_preset_needs_no_weights():
    result = call("info", "qwen3-coder-30b")
    assert result.returncode == 0, result.stderr
    assert "30.53B in total, 3.0" in result.stdout
    assert re.search(r"KV cache per token +98\.3 KB", result.stdout), result.stdout
    assert re.search(r"KV cache at 262,144 +25\.77 GB", result.stdout), result.stdout


def wait_for_line(process: subprocess.Popen, start: str, timeout_s: float = 60) -> str:
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
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_the_printed_curl_line_works_and_signals_stop_the_server(stop):
    key = ("--api-key", "it's a key") if stop == signal.SIGINT else ()
    process = subprocess.Popen(
        command("serve", "--port", 0, "--max-context", 512, *key),
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
        started = time.monotonic()
        process.send_signal(stop)
        process.wait(10)
        assert time.monotonic() - started < 4
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.wait()
