"""Small container images in tars, as `docker save` and OCI tools write them, and as attackers would."""

import gzip
import hashlib
import io
import json
import platform
import tarfile
from pathlib import Path
from typing import Any

ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), "other")


def entry(name: str, data: bytes | None = None, **attributes: Any) -> tuple[tarfile.TarInfo, bytes | None]:
    """A file with `data`, else a folder, unless `type` says otherwise."""
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE if data is None else tarfile.REGTYPE
    info.mode = 0o755
    for key, value in attributes.items():
        setattr(info, key, value)
    info.size = len(data) if data is not None and info.isreg() else 0
    return info, data


def tar(*entries: tuple[tarfile.TarInfo, bytes | None]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as out:
        for info, data in entries:
            out.addfile(info, io.BytesIO(data) if data is not None and info.isreg() else None)
    return file.getvalue()


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def config_of(layers: list[bytes], env: list[str]) -> bytes:
    ids = [f"sha256:{sha(layer)}" for layer in layers]
    return json.dumps({"config": {"Env": env}, "rootfs": {"type": "layers", "diff_ids": ids}}).encode()


def docker_save(path: Path, *layers: bytes, env: tuple[str, ...] = (), config: bytes | None = None) -> Path:
    config = config or config_of(list(layers), list(env))
    name = f"{sha(config)}.json"
    names = [f"{place}/layer.tar" for place in range(len(layers))]
    manifest = json.dumps([{"Config": name, "RepoTags": ["a:b"], "Layers": names}]).encode()
    files = [("manifest.json", manifest), (name, config), *zip(names, layers, strict=True)]
    path.write_bytes(tar(*(entry(each, data) for each, data in files)))
    return path


def oci_layout(path: Path, *layers: bytes, damage: bool = False, other: str = ARCHITECTURE) -> Path:
    packed = [gzip.compress(layer) for layer in layers]
    config = config_of(list(layers), ["GREETING=hello", "PATH=/bin"])
    blobs = {sha(data): data for data in [config, *packed]}
    manifest = json.dumps(
        {
            "config": {"digest": f"sha256:{sha(config)}"},
            "layers": [{"digest": f"sha256:{sha(data)}"} for data in packed],
        }
    ).encode()
    blobs[sha(manifest)] = manifest
    row = {"digest": f"sha256:{sha(manifest)}", "platform": {"os": "linux", "architecture": other}}
    if damage:
        blobs[sha(packed[0])] = gzip.compress(layers[0] + bytes(512))
    files = {"index.json": json.dumps({"manifests": [row]}).encode()}
    files |= {f"blobs/sha256/{name}": data for name, data in blobs.items()}
    path.write_bytes(tar(*(entry(f"./{name}", data) for name, data in files.items())))
    return path
