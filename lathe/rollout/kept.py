"""The state of an attempt on its way, so that it goes on in another process after this one was killed.

The conversation is kept after every reply and after its results, the sandbox as a frozen layer before a turn.
Freezing copies what the sandbox has written: where that takes long, it is done less often, and the calls
since then are done again.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lathe.agent.attempt import Attempt
from lathe.agent.events import ToolEnded
from lathe.agent.tools.tool import AgentTool, Workspace
from lathe.errors import SandboxError
from lathe.jsonl import from_json, to_json
from lathe.sandbox.images import ImageStore
from lathe.tasks.patch import Patch, patch_to_json
from lathe.types import Completion, Model, SamplingParams, ToolCall, Trajectory

log = logging.getLogger(__name__)

# States in which an attempt is no further than before, and goes on from there.
NOT_KEPT = ("interrupted", "sandbox", "model")


@dataclass(frozen=True)
class Kept:
    """An attempt after a turn.

    `image` is what its sandbox was at some turn (None: the task's own place), `calls` what has been done
    since then; bash was in `frozen_cwd` then, and is in `cwd` now. `images` are those that `image` stands on.
    With a `patch` (as JSON) the agent is done, and only the verdict is missing.
    """

    attempt: Attempt
    image: str | None = None
    images: tuple[str, ...] = ()
    calls: tuple[ToolCall, ...] = ()
    cwd: str = ""
    frozen_cwd: str = ""
    todos: tuple[Any, ...] = ()
    patch: Mapping[str, Any] | None = None
    seconds: Mapping[str, Any] = field(default_factory=dict)


def write_kept(path: Path, kept: Kept) -> None:
    """Puts a state in the place of the one before, whole or not at all."""
    text = json.dumps(to_json(kept), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    fresh = path.with_suffix(".new")
    fresh.write_bytes(text.encode("utf-8", "backslashreplace"))
    fresh.replace(path)


def read_kept(path: Path) -> Kept | None:
    """The state; None where there is none that can be read: then the attempt begins anew."""
    try:
        kept = from_json(Kept, json.loads(path.read_bytes()), "")
        assert isinstance(kept, Kept)
        return kept
    except FileNotFoundError:
        return None
    except ValueError as error:
        log.warning("%s can't be read, so its attempt begins anew: %s", path, error)
        return None


class Keeping:
    """Keeps one attempt's state in the file `path`, and frozen layers in `images`.

    At most `freeze_share` of the time goes into freezing: 1 freezes before each turn, 0 never.
    """

    def __init__(self, path: Path, images: ImageStore, *, freeze_share: float = 0.1):
        self.path = path
        self._images = images
        self._freeze_share = freeze_share
        self._next_freeze = 0.0
        self._image: str | None = None
        self._below: tuple[str, ...] = ()
        self._calls: list[ToolCall] = []
        self._frozen_cwd = ""
        self._attempt: Attempt | None = None
        self._seconds: Mapping[str, float] = {}

    def load(self) -> Kept | None:
        """What is known from an earlier process."""
        kept = read_kept(self.path)
        if kept is not None and kept.image is not None and not self._images.has(kept.image):
            log.warning("%s: its frozen sandbox is gone, so its attempt begins anew", self.path)
            return None
        return kept

    def begin(self, workspace: Workspace, tools: Sequence[AgentTool], kept: Kept | None) -> None:
        """The attempt begins, or goes on from what `load` gave."""
        self._workspace = workspace
        self._reading = {tool.name for tool in tools if tool.kind == "read"}
        if kept is not None:
            self._image, self._calls, self._frozen_cwd = kept.image, list(kept.calls), kept.frozen_cwd
            self._below = kept.images if kept.image is None else (*kept.images, kept.image)
            self._seconds = kept.seconds
            self._attempt = kept.attempt

    def hear(self, event: Any) -> None:
        """Notes what was done in the sandbox."""
        if isinstance(event, ToolEnded) and event.call.name not in self._reading:
            self._calls.append(event.call)

    def save(self, attempt: Attempt, seconds: Mapping[str, float]) -> None:
        """Keeps the state after a reply, or after its results."""
        if attempt.stop_reason not in NOT_KEPT:
            self._attempt, self._seconds = attempt, dict(seconds)
            self._write()

    def finish(self, attempt: Attempt, patch: Patch, seconds: Mapping[str, float]) -> None:
        """Keeps what is to be judged."""
        write_kept(
            self.path, Kept(attempt, self._image, self._below, patch=patch_to_json(patch), seconds=seconds)
        )

    def discard(self) -> None:
        """The attempt is over: deletes its state and what was frozen."""
        kept = read_kept(self.path)
        named = () if kept is None else (*kept.images, kept.image)
        for image in {*named, *self._below, self._image} - {None}:
            assert image is not None
            self._images.remove(image)
        self.path.unlink(missing_ok=True)

    def freezing(self, model: Model) -> Model:
        """The model, before each of whose turns the sandbox is frozen."""
        return _Freezing(model, self._freeze)

    def _write(self) -> None:
        assert self._attempt is not None
        todos = tuple(self._workspace.todos)
        kept = Kept(
            self._attempt,
            self._image,
            self._below,
            tuple(self._calls),
            self._workspace.cwd,
            self._frozen_cwd,
            todos,
            seconds=self._seconds,
        )
        write_kept(self.path, kept)

    async def _freeze(self) -> None:
        started = time.monotonic()
        if not self._calls or not self._freeze_share or started < self._next_freeze:
            return
        with suppress(SandboxError):  # the calls can be done again instead
            image = await self._workspace.sandbox.snapshot()
            old = self._image
            self._image, self._calls, self._frozen_cwd = image, [], self._workspace.cwd
            self._write()
            if old is not None and old not in self._below:
                self._images.remove(old)
        ended = time.monotonic()
        self._next_freeze = ended + (ended - started) * (1 / self._freeze_share - 1)


class _Freezing:
    def __init__(self, model: Model, freeze: Callable[[], Any]):
        self._model = model
        self._freeze = freeze

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    async def complete(
        self,
        trajectory: Trajectory,
        sampling: SamplingParams | None = None,
        *,
        on_event: Callable[[Any], None] | None = None,
    ) -> Completion:
        await self._freeze()
        return await self._model.complete(trajectory, sampling, on_event=on_event)
