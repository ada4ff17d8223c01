"""The place where a task is worked on, and where it is judged: a sandbox with the task's files in it."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from contextlib import suppress

from lathe.errors import InfrastructureError, SandboxError
from lathe.sandbox.pool import Pool
from lathe.sandbox.spec import Bind, Egress, Network, SandboxSpec
from lathe.types import Sandbox, Task

SETUP_TIMEOUT_S = 600.0


def place_spec(task: Task, *, network: Network | Egress = "none", binds: Sequence[Bind] = ()) -> SandboxSpec:
    """The sandbox in which a task is worked on, before its files are there."""
    return SandboxSpec(task.image, task.workdir, tuple(binds), limits=task.limits, network=network)


async def open_place(
    task: Task, pool: Pool, *, network: Network | Egress = "none", binds: Sequence[Bind] = ()
) -> Sandbox:
    """A new sandbox with the task's image, its files, and its setup done.

    Raises InfrastructureError when any of that fails: whoever attempts the task had no hand in it.
    """
    box = await pool.create(place_spec(task, network=network, binds=binds))
    try:
        for path, text in task.files.items():
            await box.write(posixpath.join(task.workdir, path), text)
        for line in task.setup:
            (await box.exec(line, timeout_s=SETUP_TIMEOUT_S)).check()
    except BaseException as error:
        with suppress(SandboxError):
            await box.close()
        if isinstance(error, (SandboxError, OSError)):
            raise InfrastructureError(f"the task's place could not be made: {error}") from error
        raise
    return box
