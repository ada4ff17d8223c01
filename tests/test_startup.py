"""What a start imports, and when its first token comes."""

import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_models import random_model, tiny_config

from lathe.model.checkpoint import save_model
from lathe.terminal.start import no_collections
from lathe.testing import tiny_tokenizer

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}

# For other verbs, or for what only some replies need.
UNNEEDED = {
    "fastapi",
    "gguf",
    "httpx",
    "huggingface_hub",
    "llguidance",
    "mcp",
    "openai",
    "prometheus_client",
    "prompt_toolkit",
    "ray",
    "rich.markdown",
    "safetensors",
    "transformers",
    "uvicorn",
}
# PyTorch's own, which it imports behind one's back: see `memory_for` in model/weights.py.
COMPILER = {"sympy", "torch._dynamo", "torch._inductor"}
HEAVY = {"jinja2", "numpy", "psutil", "tokenizers", "torch"}


def imported_by(*words: object) -> set[str]:
    """The modules that a command has loaded when it ends."""
    code = (
        "import json, sys, lathe.cli\n"
        f"try: lathe.cli.app({[str(word) for word in words]}, prog_name='lathe')\n"
        "except SystemExit as end: assert not end.code\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, timeout=110
    )
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint of another dtype than it will run in, so that its weights are copied."""
    folder = tmp_path_factory.mktemp("startup") / "model"
    tokenizer = tiny_tokenizer()
    save_model(random_model(tiny_config(vocab_size=tokenizer.vocab_size)).to(torch.bfloat16), folder)
    tokenizer.save(folder)
    return folder


def test_help_imports_nothing_heavy():
    typers_own = {"rich.markdown"}
    assert not imported_by("--help") & (UNNEEDED | COMPILER | HEAVY) - typers_own


@pytest.mark.parametrize("format", [pytest.param("safetensors", marks=pytest.mark.slow), "gguf"])
def test_generate_imports_only_what_it_needs(folder, format):
    model = folder if format == "safetensors" else "smollm2"
    modules = imported_by("generate", model, "Once", "--max-tokens", "2")
    assert "torch" in modules
    assert not modules & (UNNEEDED | COMPILER)


@pytest.mark.skipif(sys.platform != "linux", reason="only there are libraries linked ahead")
def test_pytorch_is_linked_ahead_on_a_thread_and_imported_as_ever():
    code = (
        "import sys, threading\n"
        "from pathlib import Path\n"
        "from lathe.terminal.start import preload_torch\n"
        "preload_torch()\n"
        "for thread in threading.enumerate():\n"
        "    if thread.name == 'lathe-preload': thread.join()\n"
        "assert 'torch' not in sys.modules\n"
        "assert 'libtorch_cpu.so' in Path('/proc/self/maps').read_text()\n"
        "import torch\n"
        "assert (torch.ones(3, 3) @ torch.ones(3)).tolist() == [3, 3, 3]"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, timeout=110
    )
    assert result.returncode == 0, result.stderr


def test_the_collector_works_again_after_a_start_that_failed():
    with pytest.raises(KeyError), no_collections():
        assert not gc.isenabled()
        raise KeyError
    assert gc.isenabled()


@pytest.mark.slow
def test_the_first_token_comes_soon():
    """Two seconds is the aim on a quiet machine (bench/startup.py); this fails where seconds are wasted."""
    command = [sys.executable, "-m", "lathe.cli", "generate", "smollm2", "Once upon a time"]
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            assert process.stdout.read(1)
            seconds.append(time.monotonic() - started)
            process.terminate()
    assert min(seconds) < 10
