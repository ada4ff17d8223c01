"""An engine that serves what a trainer publishes: it looks into a folder and takes every new version."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lathe.engine.engine import Engine, EngineClosed
from lathe.engine.updates import Running
from lathe.errors import CheckpointError, UserError
from lathe.model.versions import LATEST, latest_version, read_version

log = logging.getLogger(__name__)


class Follower:
    """Watches the folder on a thread of its own until it is closed, which is before the engine is.

    A version that can't be served (another model's, or damaged) is said once, and the engine goes on with the
    weights that it has. `version` is the last one that was put in place.
    """

    def __init__(
        self, engine: Engine, folder: Path | str, *, running: Running = "finish", poll_s: float = 0.5
    ):
        self.engine = engine
        self.folder = Path(folder)
        self.running: Running = running
        self.poll_s = poll_s
        self.version: int | None = None
        self._seen: tuple[int, int] | None = None  # a version, and when it was said to be the latest
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lathe-follow", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join()

    def look(self) -> bool:
        """Takes a new version, if there is one: whether it was put in place. Raises UserError if it can't."""
        while (latest := self._latest()) != self._seen and latest is not None:
            self._seen = latest
            version, _ = latest
            try:
                with ThreadPoolExecutor(1) as reader:  # its OpenMP pool must end with it: see engine/llm.py
                    config = self.engine.runner.model.config
                    weights = reader.submit(read_version, self.folder, version, config).result()
            except CheckpointError:
                if self._latest() == latest:
                    raise
                continue  # a newer one took its place while it was read
            self.engine.update_weights(weights, version=version, running=self.running)
            self.version = version
            return True
        return False

    def _latest(self) -> tuple[int, int] | None:
        """The latest version, and when it became that: a number may be published again."""
        version = latest_version(self.folder)
        return None if version is None else (version, (self.folder / LATEST).stat().st_mtime_ns)

    def _run(self) -> None:
        while not self._closing.wait(self.poll_s):
            try:
                if self.look():
                    log.info("serving version %d of the weights", self.version)
            except EngineClosed:
                return
            except UserError as error:
                log.warning("new weights can't be served: %s", error)
