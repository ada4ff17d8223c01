"""Images without a registry: folders that lie over each other, each named by what it holds.

A store is `root/layers` (the folders) and `root/images` (for each image a list of them). A layer is built in
`root/building` and moved into place when it is whole: a build that was killed leaves nothing that looks like
a layer, and of two that build the same, the second finds the first's. What is deleted goes by `root/trash`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lathe.errors import UserError
from lathe.sandbox.digest import folder_bytes, folder_digest
from lathe.sandbox.namespace.layers import delete, lay_over
from lathe.sandbox.oci import OciImage
from lathe.sandbox.sources import copy_folder, git_checkout, pip_install, resolve_commit

MAX_LAYERS = 50  # an overlay's options must fit a page of 4,096 bytes, with a sandbox's own layers
FIRST_UID = 0x6FFF0000  # as root, sandboxes' users 0 to 65535 are those from here on (namespace/view.py)
FORMAT = 1  # goes into the names of layers: another way to unpack makes another layer
PACKAGES = "/opt/requirements"


@dataclass(frozen=True)
class ImageInfo:
    """What an image is made of. `num_bytes` are its files' sizes, layers of other images included.

    `path` are folders of programs that go before all others, `env` variables that every command gets.
    """

    id: str
    layers: tuple[str, ...]
    on_host: bool
    env: Mapping[str, str]
    path: tuple[str, ...]
    source: str
    num_bytes: int


class ImageStore:
    """Builds, finds and forgets images. Several processes may use one store at once.

    An image that stands on this machine's own programs (`on_host`) holds only what differs from them.
    Builders return an image's id: the same content has the same one, but snapshots' ids are their own.
    """

    def __init__(self, root: Path | None = None):
        self.root = root or default_root()
        for name in ("layers", "images", "building", "trash"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        (self.root / "layers").chmod(0o711)  # sandboxes go through it as nobody's user

    def from_directory(self, path: Path | str, at: str = "/work") -> str:
        """A copy of a folder as it is now, at a place in the sandbox, all of it owned by its root.

        Links stay links; devices, pipes and sockets are left out. Raises UserError for what can't be read.
        """
        source = Path(path)
        if not source.is_dir():
            raise UserError(f"{source} is no folder of this machine: an image can be made of a folder only")
        inner = checked(at)

        def fill(folder: Path) -> None:
            copy_folder(source, make_folders(folder, inner))

        return self._image([self._build(fill)], source=str(source))

    def from_git(self, repo: Path | str, commit: str = "HEAD", at: str = "/work") -> str:
        """The files of a repository at a commit, with a `.git` that knows this commit and no other.

        `repo` is a folder or a URL; of a URL, `commit` is a branch, a tag or all 40 digits. Nothing later
        than the commit can be read from it, nor anything earlier; it has no remotes. Submodules stay empty,
        files in Git LFS stay pointers. Raises UserError for what is not there or can't be fetched.
        """
        inner = checked(at)
        found = resolve_commit(str(repo), commit)

        def fill(folder: Path) -> None:
            git_checkout(str(repo), found, make_folders(folder, inner))

        # A commit's id says what it holds; packs and indexes of the same commit differ from run to run.
        return self._image([self._build(fill, f"git {found} {inner}")], source=f"{repo} {found}")

    def from_requirements(
        self, requirements: Path | str, progress: Callable[[str], None] | None = None
    ) -> str:
        """The packages of a pip requirements file, for the running Python: `import x` works inside.

        `progress` hears pip's lines as they come. Raises UserError, with what pip said, when one of them
        can't be had.
        """
        file = Path(requirements)
        if not file.is_file():
            raise UserError(f"there is no requirements file {file}")

        def fill(folder: Path) -> None:
            pip_install(file, make_folders(folder, PACKAGES), progress)

        layer = self._build(fill)
        return self._image(
            [layer], env={"PYTHONPATH": PACKAGES}, path=[f"{PACKAGES}/bin"], source=f"pip {file}"
        )

    def from_oci(self, tarball: Path | str, *, max_bytes: int = 32 << 30, max_files: int = 2_000_000) -> str:
        """What `docker save` writes, or an OCI layout in a tar: a whole root, not on this machine's programs.

        Every digest is verified. Devices and the setuid bit are dropped, what climbs out is refused. Raises
        UserError for all of that, and for more bytes or files than the limits.
        """
        with OciImage(Path(tarball), max_bytes, max_files) as found:
            layers = [
                self._build(partial(found.unpack, each), f"oci {each.diff_id}") for each in found.layers
            ]
        return self._image(layers, on_host=False, env=found.env, source=str(tarball))

    def stack(self, image: str | None, *above: str) -> str:
        """Images over an image (None: this machine's programs). The higher ones' files and variables win.

        A whole root can only be the lowest. Made flat when it is too deep to mount.
        """
        manifests = [self._manifest(each) for each in ([image] if image else []) + list(above)]
        for name, manifest in zip(above, manifests[1 if image else 0 :], strict=True):
            if not manifest["on_host"] and (image or name != above[0]):
                raise UserError(f"image {name} is a whole root: it can only be the lowest of a stack")
        layers: list[str] = []
        env: dict[str, str] = {}
        path: list[str] = []
        for manifest in manifests:
            layers = [each for each in layers if each not in manifest["layers"]] + manifest["layers"]
            path = manifest["path"] + [each for each in path if each not in manifest["path"]]
            joined = [each for each in (manifest["env"].get("PYTHONPATH"), env.get("PYTHONPATH")) if each]
            env = {**env, **manifest["env"]}
            if joined:
                env["PYTHONPATH"] = ":".join(dict.fromkeys(":".join(joined).split(":")))
        on_host = manifests[0]["on_host"] if manifests else True
        made = self._image(layers, on_host=on_host, env=env, path=path, source="stack")
        return self.flatten(made) if len(layers) > MAX_LAYERS else made

    def flatten(self, image: str) -> str:
        """The same image as one layer."""
        manifest = self._manifest(image)
        if len(manifest["layers"]) <= 1:
            return image

        def fill(folder: Path) -> None:
            for layer in self.layers(image):
                lay_over(str(layer), str(folder))
            if os.getuid() == 0:
                own(folder)

        flat = self._build(fill, f"flat {' '.join(manifest['layers'])}")
        return self._image(
            [flat], manifest["on_host"], manifest["env"], manifest["path"], f"flat {manifest['source']}"
        )

    def adopt(self, folder: Path, base: str | None) -> str:
        """Take a folder (it is moved) as the layer above `base`: a snapshot. The new image's id."""
        name = uuid.uuid4().hex[:16]
        below: dict = {"layers": [], "on_host": True, "env": {}, "path": []}
        if base is not None:
            below = self._manifest(base)
        with self._held(fcntl.LOCK_SH):
            folder.rename(self.root / "layers" / name)
            layers = [*below["layers"], name]
            self._write(name, {**below, "layers": layers, "source": f"snapshot above {base}"})
        return self.flatten(name) if len(layers) > MAX_LAYERS else name

    def layers(self, image_id: str) -> list[Path]:
        """The folders of an image, lowest first."""
        return [self.root / "layers" / name for name in self._manifest(image_id)["layers"]]

    def on_host(self, image_id: str | None) -> bool:
        """Whether it stands on this machine's own programs."""
        return image_id is None or self._manifest(image_id)["on_host"]

    def env(self, image_id: str | None, path: str) -> dict[str, str]:
        """The variables that an image gives to commands; PATH is its own, or its programs before `path`."""
        if image_id is None:
            return {"PATH": path}
        manifest = self._manifest(image_id)
        folders = [*manifest["path"], manifest["env"].get("PATH", path)]
        return {**manifest["env"], "PATH": ":".join(folders)}

    def has(self, image_id: str) -> bool:
        """Whether there is such an image."""
        return (self.root / "images" / f"{image_id}.json").is_file()

    def ids(self) -> list[str]:
        """The ids of all images."""
        return sorted(path.stem for path in (self.root / "images").glob("*.json"))

    def info(self, image_id: str) -> ImageInfo:
        """What an image is made of. Its files are counted, which takes as long as it has files."""
        manifest = self._manifest(image_id)
        return ImageInfo(
            image_id,
            tuple(manifest["layers"]),
            manifest["on_host"],
            manifest["env"],
            tuple(manifest["path"]),
            manifest["source"],
            sum(folder_bytes(layer) for layer in self.layers(image_id)),
        )

    def remove(self, image_id: str) -> None:
        """Forget an image. Those of its layers that no other image has are deleted in the background. No
        sandbox may stand on it."""
        with self._held(fcntl.LOCK_EX):
            if not self.has(image_id):
                return
            layers = self._manifest(image_id)["layers"]
            (self.root / "images" / f"{image_id}.json").unlink()
            for each in set(layers) - self._used():
                self._discard(self.root / "layers" / each)

    def gc(self) -> int:
        """Delete layers that no image has, and what killed builds left. How many folders that were."""
        with self._held(fcntl.LOCK_EX):
            used = self._used()
            unused = [path for path in (self.root / "layers").iterdir() if path.name not in used]
            for path in (self.root / "building").glob("*.lock"):
                with path.open("w") as lock, suppress(BlockingIOError):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody builds there any more
                    unused += [folder for folder in [path.with_suffix("")] if folder.exists()]
                    path.unlink()
            for path in unused:
                path.rename(self.root / "trash" / uuid.uuid4().hex)
        for path in (self.root / "trash").iterdir():
            delete(str(path))
        return len(unused)

    def _build(self, fill: Callable[[Path], None], what: str | None = None) -> str:
        """Have a layer filled and put in its place. Its name is that of `what` it is, else of its content."""
        name = digest(f"{FORMAT} {os.getuid() == 0} {what}") if what else None
        if name and (self.root / "layers" / name).is_dir():
            return name
        folder = self.root / "building" / uuid.uuid4().hex
        with folder.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            folder.mkdir()
            try:
                fill(folder)
                folder.chmod(0o755)
                name = name or folder_digest(folder)
                with suppress(OSError):  # somebody else's is there
                    folder.rename(self.root / "layers" / name)
            finally:
                delete(str(folder))
                Path(lock.name).unlink(missing_ok=True)
        if not (self.root / "layers" / name).is_dir():
            raise UserError(f"the layer {name} could not be moved to {self.root / 'layers'}: is it writable?")
        return name

    def _image(
        self,
        layers: list[str],
        on_host: bool = True,
        env: Mapping[str, str] | None = None,
        path: list[str] | None = None,
        source: str = "",
    ) -> str:
        what = {"layers": layers, "on_host": on_host, "env": dict(env or {}), "path": path or []}
        name = digest(json.dumps(what, sort_keys=True))
        with self._held(fcntl.LOCK_SH):
            for layer in layers:
                if not (self.root / "layers" / layer).is_dir():
                    raise UserError(f"the layer {layer} was deleted meanwhile: build the image again")
            if not self.has(name):
                self._write(name, {**what, "source": source})
        return name

    def _write(self, name: str, manifest: dict) -> None:
        fresh = self.root / "building" / f"{uuid.uuid4().hex}.json"
        fresh.write_text(json.dumps(manifest))
        fresh.rename(self.root / "images" / f"{name}.json")

    def _manifest(self, image_id: str) -> dict:
        try:
            manifest = json.loads((self.root / "images" / f"{image_id}.json").read_text())
        except FileNotFoundError:
            raise UserError(
                f"there is no image {image_id!r} in {self.root}: build it there, or open the pool with the "
                "store that has it"
            ) from None
        return {"env": {}, "path": [], "source": "", **manifest}

    def _used(self) -> set[str]:
        return {layer for image in self.ids() for layer in self._manifest(image)["layers"]}

    def _discard(self, folder: Path) -> None:
        gone = self.root / "trash" / uuid.uuid4().hex
        with suppress(FileNotFoundError):
            folder.rename(gone)
            threading.Thread(target=delete, args=[str(gone)], name="lathe-delete").start()

    @contextmanager
    def _held(self, how: int) -> Iterator[None]:
        """Between a layer's arrival and the image that names it, nobody may take it for unused."""
        with (self.root / "lock").open("w") as lock:
            fcntl.flock(lock, how)
            yield


def default_root() -> Path:
    """Where a person's images are kept: their cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lathe" / "images"


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def checked(at: str) -> str:
    """A place in a sandbox. Raises UserError for one that is none."""
    if not at.startswith("/") or ".." in at.split("/") or "\0" in at:
        raise UserError(f"an image's files stand at an absolute path inside the sandbox, not at {at!r}")
    return os.path.normpath(at)


def make_folders(root: Path, inner: str) -> Path:
    folder = root
    for part in inner.strip("/").split("/"):
        if part:
            folder = folder / part
            folder.mkdir(mode=0o755)
            folder.chmod(0o755)
    return folder


def own(folder: Path) -> None:
    """Snapshots belong to sandboxes' users, built layers to ours: in a mixture, all becomes ours."""
    for here, _, files, fd in os.fwalk(folder):
        for name in [*files, "."]:
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            ids = [each - FIRST_UID if each >= FIRST_UID else each for each in (status.st_uid, status.st_gid)]
            if ids != [status.st_uid, status.st_gid]:
                os.chown(name, ids[0], ids[1], dir_fd=fd, follow_symlinks=False)
        del here
