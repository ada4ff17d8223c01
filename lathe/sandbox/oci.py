"""Container images from a tar: what `docker save` writes, or an OCI image layout, unpacked for overlays.

The tar is not trusted. Every blob is compared with its digest, nothing is written outside of the layer's
folder (each path is looked up as if that were `/`), devices, pipes and setuid bits are dropped, and the bytes
and entries of all layers together are bounded. Formats: github.com/opencontainers/image-spec (image-layout,
manifest, layer with its whiteouts) and docker/docker image/spec v1.2.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import platform
import stat
import tarfile
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from lathe.errors import UserError
from lathe.sandbox.namespace.layers import OPAQUE, remove
from lathe.sandbox.namespace.syscalls import open_inside

WHITEOUT = ".wh."
OPAQUE_MARK = ".wh..wh..opq"
MAX_JSON = 8 << 20
CHUNK = 1 << 20
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
FOLDER = os.O_RDONLY | os.O_DIRECTORY


@dataclass(frozen=True)
class OciLayer:
    """One layer: its file in the tar, its digest there (None: docker's older form has none), and unpacked."""

    member: str
    blob_digest: str | None
    diff_id: str


class OciImage:
    """An image in a tar, open for reading. `layers`, lowest first, and the variables that it sets."""

    def __init__(self, tarball: Path, max_bytes: int, max_files: int):
        self._name = tarball.name
        self._bytes_left = max_bytes
        self._files_left = max_files
        try:
            self._tar = tarfile.open(tarball)  # noqa: SIM115
        except FileNotFoundError:
            raise UserError(f"there is no file {tarball}") from None
        except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
            raise UserError(f"{tarball} is no tar of an image: {error}") from None
        try:
            self.layers, config = self._read()
            self.env = {
                name: value
                for name, _, value in (each.partition("=") for each in config.get("Env") or [])
                if name
            }
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            self._tar.close()
            raise UserError(f"{self._name} is not what an image's tar should be: {error!r}") from error
        except BaseException:
            self._tar.close()
            raise

    def __enter__(self) -> OciImage:
        return self

    def __exit__(self, *_: object) -> None:
        self._tar.close()

    def _read(self) -> tuple[list[OciLayer], dict[str, Any]]:
        names = {name.removeprefix("./") for name in self._tar.getnames()}
        if "index.json" in names:
            return self._read_layout()
        if "manifest.json" not in names:
            raise UserError(
                f"{self._name} has neither index.json (an OCI layout) nor manifest.json (docker save): "
                "`docker export` and other plain tars are no images; unpack them and use from_directory"
            )
        [manifest, *others] = json.loads(self._small("manifest.json"))
        if others:
            raise UserError(f"{self._name} holds {len(others) + 1} images: save one at a time")
        data = self._small(manifest["Config"])
        expected = Path(manifest["Config"]).stem
        if len(expected) == 64 and hashlib.sha256(data).hexdigest() != expected:
            raise UserError(f"{self._name} is damaged: {manifest['Config']} does not have its digest")
        config = json.loads(data)
        diff_ids = config["rootfs"]["diff_ids"]
        pairs = zip(manifest["Layers"], diff_ids, strict=True)
        return [OciLayer(name, None, diff_id) for name, diff_id in pairs], config.get("config") or {}

    def _read_layout(self) -> tuple[list[OciLayer], dict[str, Any]]:
        index = json.loads(self._small("index.json"))
        for _ in range(4):  # an index may name an index
            rows = [each for each in index["manifests"] if self._is_ours(each)]
            if len(rows) != 1:
                what = [each.get("platform", {}).get("architecture") for each in index["manifests"]]
                raise UserError(
                    f"{self._name} holds {len(rows)} images for {platform.machine()}, not one: it has {what}"
                )
            document = json.loads(self._blob(rows[0]["digest"]))
            if "layers" in document:
                break
            index = document
        config = json.loads(self._blob(document["config"]["digest"]))
        layers = [
            OciLayer(blob_path(row["digest"]), row["digest"], diff_id)
            for row, diff_id in zip(document["layers"], config["rootfs"]["diff_ids"], strict=True)
        ]
        return layers, config.get("config") or {}

    def _is_ours(self, row: dict[str, Any]) -> bool:
        where = row.get("platform") or {}
        wanted = ARCHITECTURES.get(platform.machine(), platform.machine())
        return where.get("architecture", wanted) == wanted and where.get("os", "linux") == "linux"

    def _open(self, name: str) -> IO[bytes]:
        found = None
        for each in (name, f"./{name}"):
            with suppress(KeyError):
                found = found or self._tar.extractfile(each)
        if found is None:
            raise UserError(f"{self._name} is damaged: it lacks {name}")
        return found

    def _small(self, name: str) -> bytes:
        with self._open(name) as file:
            data = file.read(MAX_JSON + 1)
        if len(data) > MAX_JSON:
            raise UserError(f"{self._name}: {name} has more than {MAX_JSON} bytes")
        return data

    def _blob(self, digest: str) -> bytes:
        data = self._small(blob_path(digest))
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
            raise UserError(f"{self._name} is damaged: {digest} is the digest of something else")
        return data

    def unpack(self, layer: OciLayer, folder: Path) -> None:
        """Fill an empty folder with a layer. Raises UserError when it is damaged, hostile or too big."""
        if not layer.diff_id.startswith("sha256:"):
            raise UserError(f"{self._name}: digests by {layer.diff_id.partition(':')[0]} can't be verified")
        root = os.open(folder, FOLDER | os.O_CLOEXEC)
        try:
            with self._open(layer.member) as raw:
                packed = Hashed(raw)
                data = self._unzipped(packed)
                plain = Hashed(data, self._bytes_left + self._files_left * 2048 + (1 << 20))
                with tarfile.open(fileobj=plain, mode="r|") as tar:
                    for entry in tar:
                        self._entry(tar, entry, root)
                plain.drain()
                packed.drain()
            for found, wanted in ((plain, layer.diff_id), (packed, layer.blob_digest)):
                if wanted is not None and found.digest() != wanted:
                    raise UserError(f"{self._name} is damaged: the layer {layer.member} is not {wanted}")
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{self._name}: the layer {layer.member} is damaged: {error}") from error
        finally:
            os.close(root)

    def _unzipped(self, packed: Hashed) -> IO[bytes]:
        head = packed.peek(4)
        if head[:2] == b"\x1f\x8b":
            return gzip.GzipFile(fileobj=packed)  # type: ignore[return-value]
        if head == b"\x28\xb5\x2f\xfd":
            raise UserError(
                f"{self._name} has layers packed by zstd, which are not read here: `skopeo copy` with "
                "--dest-compress-format gzip makes others, and so does docker save"
            )
        return packed  # type: ignore[return-value]

    def _entry(self, tar: tarfile.TarFile, entry: tarfile.TarInfo, root: int) -> None:
        parts = plain_parts(entry.name, self._name)
        self._files_left -= 1
        self._bytes_left -= entry.size if entry.isreg() else 0
        if self._files_left < 0 or self._bytes_left < 0:
            what = "files" if self._files_left < 0 else "bytes"
            raise UserError(f"{self._name} holds more {what} than the limit: raise it if you trust the image")
        if not parts:
            return
        where = open_folders(root, parts[:-1], self._name)
        try:
            self._put(tar, entry, parts[-1], where, root)
        except OSError as error:
            raise UserError(f"{self._name}: {entry.name} can't be unpacked: {error.strerror}") from error
        finally:
            os.close(where)

    def _put(self, tar: tarfile.TarFile, entry: tarfile.TarInfo, name: str, where: int, root: int) -> None:
        if name == OPAQUE_MARK:
            os.setxattr(where, OPAQUE, b"y")
            return
        if name.startswith(WHITEOUT):
            hidden = name[len(WHITEOUT) :]
            if hidden in ("", ".", ".."):
                raise UserError(f"{self._name}: {entry.name} hides nothing that could be there")
            clear(where, hidden)
            os.mknod(hidden, stat.S_IFCHR | 0o600, 0, dir_fd=where)  # the device 0:0 hides what lies below
            return
        if entry.isdir():
            with suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=where)
            if not stat.S_ISDIR(os.stat(name, dir_fd=where, follow_symlinks=False).st_mode):
                clear(where, name)
                os.mkdir(name, 0o755, dir_fd=where)
        elif entry.issym():
            clear(where, name)
            os.symlink(entry.linkname, name, dir_fd=where)
        elif entry.islnk():
            self._hard_link(entry, name, where, root)
            return
        elif entry.isreg():
            clear(where, name)
            content = tar.extractfile(entry)
            assert content is not None
            fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=where)
            with os.fdopen(fd, "wb") as file:
                while data := content.read(CHUNK):
                    file.write(data)
        else:
            return  # devices and pipes: a sandbox has its own /dev
        if os.getuid() == 0 and 0 <= entry.uid < 65536 and 0 <= entry.gid < 65536:
            os.chown(name, entry.uid, entry.gid, dir_fd=where, follow_symlinks=False)
        if not entry.issym():
            os.chmod(name, entry.mode & 0o1777, dir_fd=where)
        with suppress(OverflowError):
            os.utime(name, (entry.mtime, entry.mtime), dir_fd=where, follow_symlinks=False)

    def _hard_link(self, entry: tarfile.TarInfo, name: str, where: int, root: int) -> None:
        parts = plain_parts(entry.linkname, self._name)
        if not parts:
            raise UserError(f"{self._name}: {entry.name} is a link to no file")
        source = open_folders(root, parts[:-1], self._name)
        try:
            if not stat.S_ISREG(os.stat(parts[-1], dir_fd=source, follow_symlinks=False).st_mode):
                raise UserError(f"{self._name}: {entry.name} is a hard link to what is no file")
            if os.fstat(source).st_ino == os.fstat(where).st_ino and parts[-1] == name:
                return
            clear(where, name)
            os.link(parts[-1], name, src_dir_fd=source, dst_dir_fd=where, follow_symlinks=False)
        finally:
            os.close(source)


class Hashed(io.RawIOBase):
    """A stream that is hashed as it is read, and that ends with a UserError after `limit` bytes."""

    def __init__(self, stream: IO[bytes], limit: int | None = None):
        self._stream = stream
        self._hash = hashlib.sha256()
        self._ahead = b""
        self._left = limit

    def peek(self, num_bytes: int) -> bytes:
        self._ahead = self._stream.read(num_bytes)
        return self._ahead

    def read(self, size: int = -1) -> bytes:
        size = CHUNK if size < 0 else size
        data, self._ahead = self._ahead[:size], self._ahead[size:]
        if len(data) < size:
            data += self._stream.read(size - len(data))
        self._hash.update(data)
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                raise UserError(
                    "a layer unpacks to more bytes than the limit: raise it if you trust the image"
                )
        return data

    def drain(self) -> None:
        """Read to the end: padding behind the last entry is part of the digest."""
        while self.read(CHUNK):
            pass

    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


def blob_path(digest: str) -> str:
    kind, _, number = digest.partition(":")
    if kind != "sha256" or len(number) != 64 or not number.isalnum():
        raise UserError(f"{digest!r} is no digest by sha256: others can't be verified here")
    return f"blobs/{kind}/{number}"


def plain_parts(path: str, tarball: str) -> list[str]:
    """The names in a path, from the layer's root. Raises UserError for one that climbs."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in path:
        raise UserError(f"{tarball} holds {path!r}, which leads out of the image: it is refused whole")
    return parts


def open_folders(root: int, parts: list[str], tarball: str) -> int:
    """A descriptor of a folder below `root`, made where it is missing. Links lead nowhere but inside."""
    path = ""
    here = os.dup(root)
    for part in parts:
        try:
            inner = open_inside(root, f"{path}/{part}", FOLDER)
        except FileNotFoundError:
            try:
                os.mkdir(part, 0o755, dir_fd=here)
                inner = open_inside(root, f"{path}/{part}", FOLDER)
            except OSError as error:
                os.close(here)
                raise UserError(f"{tarball}: {path}/{part} leads to no folder: {error.strerror}") from error
        except OSError as error:
            os.close(here)
            raise UserError(f"{tarball}: {path}/{part} is no folder: {error.strerror}") from error
        os.close(here)
        here = inner
        path = f"{path}/{part}"
    return here


def clear(where: int, name: str) -> None:
    """Take away what an earlier entry of the same layer put there."""
    with suppress(FileNotFoundError):
        remove(where, name)
