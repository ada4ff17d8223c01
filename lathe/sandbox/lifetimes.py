"""When a sandbox ends by itself: it has lived for `lifetime_s`, or nobody has used it for `idle_s`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lathe.sandbox.namespace.sandbox import NamespaceSandbox


def watch_lifetimes(
    box: NamespaceSandbox, timers: dict[str, asyncio.TimerHandle], end: Callable[[str], None]
) -> None:
    """Call `end` with the reason when it is time. The next look stands in `timers`, to be cancelled there."""
    idle_s, lifetime_s = box.spec.limits.idle_s, box.spec.limits.lifetime_s
    if idle_s is None and lifetime_s is None:
        return
    loop = asyncio.get_running_loop()
    last = time.monotonic() + lifetime_s if lifetime_s is not None else float("inf")

    def look() -> None:
        now = time.monotonic()
        idle_end = float("inf")
        if idle_s is not None:
            idle_end = (now if box.num_users else box.last_used) + idle_s
        if now >= last:
            end(f"it has lived for {lifetime_s:g} s")
        elif now >= idle_end:
            end(f"nobody has used it for {idle_s:g} s")
        else:
            timers[box.id] = loop.call_later(min(last, idle_end) - now + 0.001, look)

    look()
