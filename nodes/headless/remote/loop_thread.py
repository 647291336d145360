"""An event loop in its own thread, so that the main thread keeps handling Ctrl-C."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")

_SLICE = 0.2  # seconds; on Windows, signals do not interrupt a wait
_CLOSING = 5.0


class LoopThread:
    """Runs coroutines for other threads, and cancels those that are unfinished when it closes."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        # A daemon, so that an unresponsive server cannot keep the program from exiting.
        self._thread = threading.Thread(target=self._loop.run_forever, name="uniworld-servers", daemon=True)

    def __enter__(self) -> LoopThread:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(concurrent.futures.TimeoutError):
            self.start(self._cancel_all()).result(_CLOSING)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CLOSING)
        if not self._thread.is_alive():
            self._loop.close()

    def start(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Start a coroutine and return its future."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine and return its result."""
        future = self.start(work)
        try:
            while True:
                done, _ = concurrent.futures.wait([future], _SLICE)
                if done:
                    return future.result()
        finally:
            future.cancel()

    async def _cancel_all(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
