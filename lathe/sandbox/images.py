"""Images without a registry: folders that lie over each other."""

from __future__ import annotations

import json
import uuid
from contextlib import suppress
from pathlib import Path

from lathe.sandbox.namespace.layers import delete


class ImageStore:
    """Layers under `root/layers`, and for each image a list of them under `root/images`.

    An image that stands on this machine's own programs (`on_host`) holds only what differs from them.
    """

    def __init__(self, root: Path):
        self.root = root
        for name in ("layers", "images"):
            (root / name).mkdir(parents=True, exist_ok=True)
        (root / "layers").chmod(0o711)  # sandboxes go through it as nobody's user

    def layers(self, image_id: str) -> list[Path]:
        """The folders of an image, lowest first."""
        return [self.root / "layers" / name for name in self._manifest(image_id)["layers"]]

    def on_host(self, image_id: str | None) -> bool:
        """Whether it stands on this machine's own programs."""
        return image_id is None or self._manifest(image_id)["on_host"]

    def adopt(self, folder: Path, base: str | None) -> str:
        """Take a folder (it is moved) as the layer above `base`. The new image's id."""
        name = uuid.uuid4().hex[:16]
        folder.rename(self.root / "layers" / name)
        below = [path.name for path in self.layers(base)] if base else []
        manifest = {"layers": [*below, name], "on_host": self.on_host(base)}
        (self.root / "images" / f"{name}.json").write_text(json.dumps(manifest))
        return name

    def has(self, image_id: str) -> bool:
        """Whether there is such an image."""
        return (self.root / "images" / f"{image_id}.json").is_file()

    def remove(self, image_id: str) -> None:
        """Forget an image, and delete its topmost layer. No other image and no sandbox may stand on it."""
        with suppress(FileNotFoundError):
            top = self.layers(image_id)[-1]
            (self.root / "images" / f"{image_id}.json").unlink()
            delete(str(top))

    def _manifest(self, image_id: str) -> dict:
        return json.loads((self.root / "images" / f"{image_id}.json").read_text())
