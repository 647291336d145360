"""Ctrl-C and SIGTERM. Only the standard library is imported."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def at_signals(handle: Callable[[], None], terminate: bool = True) -> Iterator[None]:
    """Within this context, call a function at Ctrl-C instead of raising KeyboardInterrupt.

    In a thread other than the main one, which alone can handle signals, nothing changes.

    Args:
        handle: called in the main thread, between two of its instructions.
        terminate: call it at SIGTERM too, which containers and schedulers send.
    """
    before: dict[signal.Signals, Any] = {}
    with contextlib.suppress(ValueError):  # raised in another thread
        for one in (signal.SIGINT, signal.SIGTERM)[: 1 + terminate]:
            before[one] = signal.signal(one, lambda *_: handle())
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
