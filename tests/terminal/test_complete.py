"""`lathe complete`: places in files, what a repository adds to them, and the middle on standard output."""

import re
import subprocess
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from lathe import LLM, cli
from lathe.errors import UserError
from lathe.model.checkpoint import save_model
from lathe.model.config import ModelConfig
from lathe.model.transformer import Transformer
from lathe.terminal.complete import MAX_NEARBY_CHARS, parse_place, prompt_at, split_at
from lathe.testing import tiny_tokenizer
from lathe.text import fim
from lathe.text.fim import FimPrompt, SourceFile

TEXT = "def f(x):\r\n    return é\n"


def place(text: str):
    return parse_place(f"some.py:{text}")


@pytest.mark.parametrize(
    ("where", "before"),
    [
        ("1:1", ""),
        ("1:5", "def "),
        ("1:10", "def f(x):"),
        ("2:12", "def f(x):\r\n    return "),
        ("2:13", "def f(x):\r\n    return é"),
        ("3:1", TEXT),
    ],
)
def test_a_place_splits_the_text(where, before):
    assert split_at(place(where), TEXT) == (before, TEXT.removeprefix(before))


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("4:1", "has 3 lines; there is no line 4"),
        ("1:11", "has 9 characters: its last column is 10, and 11"),
        ("3:2", "0"),
    ],
)
def test_a_place_outside_is_named(where, words):
    with pytest.raises(UserError, match=words):
        split_at(place(where), TEXT)


@pytest.mark.parametrize(
    "text", ["a.py", "a.py:1", "a.py:0:1", "a.py:1:0", "a.py:x:1", "a.py:-1:1", ":1:1", "a.py:1:1:"]
)
def test_what_is_no_place(text):
    with pytest.raises(UserError, match="FILE:LINE:COL"):
        parse_place(text)


def test_a_path_may_hold_colons():
    assert parse_place("C:\\a:b.py:12:5").path == Path("C:\\a:b.py")


# The repository


@pytest.fixture
def repository(tmp_path) -> Path:
    root = tmp_path / "shop"
    files = {
        "app/cart.py": "from lib.prices import price\n\ntotal = \n",
        "app/other.py": "other = 1\n",
        "lib/prices.py": "def price(): ...\n",
        "lib/unrelated.py": "x = 1\n",
        "lib/secret.py": "ignored = 1\n",
        "lib/large.py": "y" * (MAX_NEARBY_CHARS + 1),
        "lib/latin.py": "é",
        "README.md": "# shop\n",
        ".gitignore": "secret.py\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text.encode("latin-1" if "latin" in name else "utf-8"))
    subprocess.run(["git", "init", "-q", root], check=True)
    subprocess.run(["git", "-C", root, "add", "app/cart.py", "lib/prices.py"], check=True)
    return root


def test_a_repositorys_files_stand_by_how_near_they_are(repository):
    prompt = prompt_at(parse_place(f"{repository}/app/cart.py:3:9"))
    assert prompt == FimPrompt(
        prefix="from lib.prices import price\n\ntotal = ",
        suffix="\n",
        path="app/cart.py",
        repo_name="shop",
        files=(
            SourceFile("lib/unrelated.py", "x = 1\n"),
            SourceFile("app/other.py", "other = 1\n"),
            SourceFile("lib/prices.py", "def price(): ...\n"),
        ),
    ), "what the file names is nearest; ignored, large and unreadable files and other kinds are left out"


def test_files_that_are_named_are_the_only_ones(repository):
    where = parse_place(f"{repository}/app/cart.py:3:9")
    files = prompt_at(where, [repository / "README.md", repository / "lib/secret.py"]).files
    assert files == (SourceFile("README.md", "# shop\n"), SourceFile("lib/secret.py", "ignored = 1\n"))
    assert prompt_at(where, []).files == ()
    with pytest.raises(UserError, match=r"latin\.py is no text in UTF-8"):
        prompt_at(where, [repository / "lib/latin.py"])
    with pytest.raises(UserError, match=r"none\.py can't be read: No such file"):
        prompt_at(where, [repository / "none.py"])


def test_a_file_outside_of_any_repository(tmp_path):
    (tmp_path / "a.py").write_text("x = \n")
    (tmp_path / "b.py").write_text("y = 1\n")
    prompt = prompt_at(parse_place(f"{tmp_path}/a.py:1:5"))
    assert prompt == FimPrompt("x = ", "\n", path="a.py", repo_name=tmp_path.name)


# The command


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
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
    save_model(Transformer(config), folder)
    tokenizer.save(folder)
    return folder


def complete(*words: object):
    return CliRunner().invoke(cli.app, ["complete", *map(str, words)], env={"NO_COLOR": "1"})


def error_of(*words: object) -> str:
    result = complete(*words)
    assert (result.exit_code, result.stdout) == (1, "")
    return re.search(r"^Error: (.*)$", result.stderr, re.MULTILINE)[1]


def test_a_model_fills_in_and_only_that_is_printed(repository, model, monkeypatch):
    monkeypatch.chdir(repository)
    result = complete("app/cart.py:3:9", "--model", model, "--max-tokens", 12)
    assert result.exit_code == 0, result.stderr
    with LLM(model) as llm:
        prompt = prompt_at(parse_place(f"{repository}/app/cart.py:3:9"))
        sampling = fim.ending_middles(llm.tokenizer, fim.DEFAULT_SAMPLING)
        expected = llm.generate(fim.encode(llm.tokenizer, prompt), sampling, max_tokens=12)
    assert len(expected.token_ids) > 0
    assert result.stdout == expected.message.content


def test_what_is_wrong_is_one_line(repository, model, monkeypatch):
    monkeypatch.chdir(repository)
    assert "no line 9" in error_of("app/cart.py:9:1", "--model", model)
    assert "can't be read" in error_of("none.py:1:1", "--model", model)
    assert "--model" in error_of("app/cart.py:1:1")
    assert "<|fim_prefix|>" in error_of("app/cart.py:1:1", "--model", "smollm2")
    assert "did not answer" in error_of("app/cart.py:1:1", "--server", "http://127.0.0.1:1")
