"""Records: each conversation of any client becomes lines of JSON, token for token, while it is served.

A rollout is a file in parts (see `jsonl.py`), one part a reply. A part is written before the client has the
end of its reply: what was answered is on the disk, whatever ends this process. What ends the machine is
another matter, as the system is not asked to flush its own memory.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from array import array
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lathe.engine.engine import EngineClosed
from lathe.engine.reply import Chunk, weights_updates
from lathe.errors import UserError
from lathe.jsonl import Continues, Part, part_to_line
from lathe.server.sessions import Conversation, Sessions, num_equal
from lathe.text.tool_calls import CallFinished, Content, Reasoning
from lathe.types import Completion, Message, Rollout, SamplingParams, Trajectory

if TYPE_CHECKING:
    from lathe.server.service import Turn

log = logging.getLogger(__name__)

Encode = Callable[[Trajectory], tuple[int, ...]]


class Recorder:
    """Writes rollouts into a folder. `model` is the name that they carry. Safe to call from any thread.

    Raises UserError when the folder can't be written to. A reply that can't be written later (a full disk) is
    an error in the log, and no harm to the client; its conversation goes on in another record.
    """

    def __init__(self, folder: Path | str, *, model: str, sessions: Sessions | None = None):
        self.folder = Path(folder)
        self.model = model
        self.sessions = Sessions() if sessions is None else sessions
        self._lock = threading.Lock()
        open_folder(self.folder)

    def prepare(
        self, asked: Trajectory, session: str | None, encode: Encode
    ) -> tuple[Trajectory, tuple[int, ...]]:
        """A request and its prompt: over the exact ids of the conversation that it goes on with, where its
        prompt still begins with them, else as it came. It then names as its parent what it repeats."""
        with self._lock:
            match = self.sessions.match(asked, session)
            known = None if match is None else self.sessions.continued(match, asked)
            parent = self.sessions.quoted(asked, session) if match is None else match.conversation
        if known is not None:
            prompt = encode(known)
            if prompt[: len(known.token_ids)] == known.token_ids:
                return known, prompt
        prompt = encode(asked)
        # Ids that the client holds are no trajectory of ours.
        return replace(asked, token_ids=(), parent=asked.parent if parent is None else parent.id), prompt

    def record(self, turn: Turn, completion: Completion, sampling: SamplingParams) -> None:
        """Write one reply, unless it was ended before its first token, or its tokens are not exactly known.
        `sampling` is how it was drawn."""
        if not completion.token_ids:
            return
        if not completion.is_exact:
            log.warning("a reply was not recorded: the upstream kept some of its tokens back")
            return
        try:
            with self._lock:
                self._record(turn, completion, sampling)
        except Exception:  # the boundary: the client has its reply, whatever became of the record
            log.exception("a reply of %d tokens was not recorded", len(completion.token_ids))

    def _record(self, turn: Turn, completion: Completion, sampling: SamplingParams) -> None:
        asked = replace(turn.trajectory, token_ids=())
        whole = asked.extend(completion, sampling)
        token_ids = array("i", whole.token_ids)
        prompt = token_ids[: len(completion.prompt_token_ids)]
        conversation = self.sessions.place(turn.trajectory, prompt, turn.session)
        part = self._part(turn, conversation, whole)
        record = conversation.record
        try:
            append(self.folder / f"{record.id}.jsonl", part_to_line(part))
        except OSError:
            self.sessions.forget_record(record)
            raise
        record.num_parts += 1
        self.sessions.remember(conversation, whole.messages, token_ids)

    def _part(self, turn: Turn, conversation: Conversation, whole: Trajectory) -> Part:
        """What `whole` adds to its conversation."""
        record, num_tokens = conversation.record, len(conversation.token_ids)
        num_messages = num_equal(conversation.trajectory.messages, whole.messages)
        new = replace(
            whole if num_tokens == 0 else Trajectory((), segments=whole.segments),
            id=conversation.id,
            parent=conversation.trajectory.parent if num_tokens == 0 else None,
            messages=whole.messages[num_messages:],
            token_ids=whole.token_ids[num_tokens:],
            loss_mask=whole.loss_mask[num_tokens:],
            logprobs=whole.logprobs[num_tokens:],
        )
        rollout = Rollout((new,), stop_reason=whole.segments[-1].finish_reason, id=record.id)
        if record.num_parts == 0:
            info = {"dialect": turn.dialect, "session": record.session}
            rollout = replace(rollout, model=self.model, info=info)
        continues = {new.id: Continues(num_messages, num_tokens)} if num_tokens else {}
        return Part(rollout, record.num_parts, continues)


def open_folder(folder: Path) -> None:
    """Make a folder for records, or see that it can be written to. Raises UserError."""
    try:
        # What people say to a model is nobody else's business.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"Can't record in {folder}: {error.strerror}. Choose another --record.") from error


def append(path: Path, line: bytes) -> None:
    """Add a line to a file, or leave the file as it was and raise OSError."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            written = 0
            while written < len(line):
                written += file.write(line[written:])
        except OSError:
            file.truncate(size)
            raise


@contextmanager
def recording(recorder: Recorder | None, turn: Turn) -> Iterator[Callable[[Chunk], Awaitable[None]]]:
    """Records a turn's replies. Await what it gives with each chunk, before anyone else has the chunk.

    Replies that are cut, as the client leaves or the server stops, are recorded with what was sampled. A step
    that failed leaves no record. Without a recorder, nothing happens.
    """
    open_chunks: dict[int, list[Chunk]] = {}

    async def note(chunk: Chunk) -> None:
        if recorder is None:
            return
        open_chunks.setdefault(chunk.index, []).append(chunk)
        if chunk.completion is not None:
            del open_chunks[chunk.index]
            sampling = drawn_by(turn.sampling, chunk.index)
            await asyncio.to_thread(recorder.record, turn, chunk.completion, sampling)

    try:
        yield note
    except (GeneratorExit, asyncio.CancelledError, EngineClosed):
        for index, chunks in open_chunks.items():
            assert recorder is not None
            completion = cut_completion(turn.prompt_token_ids, chunks)
            recorder.record(turn, completion, drawn_by(turn.sampling, index))
        raise


def drawn_by(sampling: SamplingParams, index: int) -> SamplingParams:
    """How one of `n` replies was drawn: each has a seed of its own. What was reported beside is left out."""
    seed = None if sampling.seed is None else sampling.seed + index
    return replace(sampling, n=1, seed=seed, logprobs=None, prompt_logprobs=None)


def cut_completion(prompt_token_ids: tuple[int, ...], chunks: list[Chunk]) -> Completion:
    """A reply that was ended from outside."""
    tokens = tuple(token for chunk in chunks for token in chunk.logprobs)
    versions = [chunk.weights_version for chunk in chunks for _ in chunk.logprobs]
    events = [event for chunk in chunks for event in chunk.events]
    message = Message(
        "assistant",
        "".join(event.text for event in events if isinstance(event, Content)),
        tool_calls=tuple(event.call for event in events if isinstance(event, CallFinished)),
        reasoning="".join(event.text for event in events if isinstance(event, Reasoning)) or None,
    )
    return Completion(
        message=message,
        prompt_token_ids=prompt_token_ids,
        token_ids=tuple(token.token_id for token in tokens),
        logprobs=tokens,
        finish_reason="abort",
        weights_version=versions[0] if versions else 0,
        weights_updates=weights_updates(versions),
        is_exact=chunks[-1].is_exact,
    )
