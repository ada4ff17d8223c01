"""Verdicts that are known already: the same answer to the same task is judged once.

As a policy sharpens, most attempts of a group say the same; judging each anew is most of a step's time.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from lathe.sandbox.pool import Pool
from lathe.tasks.patch import Patch, patch_to_json
from lathe.tasks.verify import verify
from lathe.types import Task, Verdict

Verify: TypeAlias = Callable[[Task, Patch, Pool], Awaitable[Verdict]]


class KnownVerdicts:
    """Judges like `verify`, `concurrency` sandboxes at a time, and remembers.

    Only tasks that say of themselves that they judge alike each time (`info.deterministic`) share verdicts;
    all others are judged anew. An invalid verdict is a fault of the machine, and is never kept. `num_asked`
    and `num_judged` count.
    """

    def __init__(self, concurrency: int = 8, judge: Verify = verify):
        self.num_asked = 0
        self.num_judged = 0
        self._judge = judge
        self._turns = asyncio.Semaphore(concurrency)
        self._known: dict[tuple[str, bytes], asyncio.Future[Verdict]] = {}

    async def verify(self, task: Task, patch: Patch, pool: Pool) -> Verdict:
        """As `tasks.verify.verify`. Those who ask for the same at the same time wait for one verdict."""
        self.num_asked += 1
        if not task.info.get("deterministic"):
            return await self._judged(task, patch, pool)
        key = (task.id, digest(patch))
        while (known := self._known.get(key)) is not None:
            verdict = await asyncio.shield(known)
            if verdict.valid:
                return verdict
        self._known[key] = known = asyncio.get_running_loop().create_future()
        verdict = Verdict(reason="the judge was interrupted")
        try:
            verdict = await self._judged(task, patch, pool)
        finally:
            if not verdict.valid:
                del self._known[key]
            known.set_result(verdict)
        return verdict

    async def _judged(self, task: Task, patch: Patch, pool: Pool) -> Verdict:
        async with self._turns:
            self.num_judged += 1
            return await self._judge(task, patch, pool)


def digest(patch: Patch) -> bytes:
    """What two patches share that change the same files to the same."""
    text = json.dumps([patch_to_json(patch), dict(patch.left_out)], sort_keys=True)
    return hashlib.sha256(text.encode()).digest()
