"""Sandboxes without await: the same pool and boxes, their event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """An event loop in a thread, which calls from other threads wait for."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="lathe-sandbox", daemon=True)
        self.thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result()
        except BaseException:  # also the caller's ^C: what runs in the sandbox ends with it
            future.cancel()
            raise

    def end(self) -> None:
        self.run(self.loop.shutdown_default_executor())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


class WithoutAwait:
    """A pool, a sandbox, a process or a shell whose methods return what the original's are awaited for."""

    def __init__(self, original: Any, loop: LoopThread):
        self._original = original
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._original, name)
        if not callable(value):
            return value

        @functools.wraps(value)
        def call(*args: Any, **kwargs: Any) -> Any:
            result = value(*args, **kwargs)
            if inspect.iscoroutine(result):
                result = self._loop.run(result)
            # What is used further with await comes wrapped, plain results come as they are.
            is_usable = inspect.iscoroutinefunction(
                getattr(result, "close", None) or getattr(result, "kill", None)
            )
            return WithoutAwait(result, self._loop) if is_usable else result

        return call

    def __repr__(self) -> str:
        return f"WithoutAwait({self._original!r})"
