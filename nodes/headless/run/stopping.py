"""A request to stop what runs: Ctrl-C on the command line, or a cluster that gives its worker up."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

from ....streams import say
from ...host import PlainHost


class StopRequest:
    """Whether the user asked to stop. It lasts, unlike the host's flag, which each run of a workflow clears."""

    def __init__(self, host: PlainHost) -> None:
        self._host, self._made = host, threading.Event()

    def make(self) -> None:
        """Ask to stop: the node that runs ends within a step. Any thread and a signal handler may call it."""
        self._made.set()
        self._host.interrupted.set()

    def __bool__(self) -> bool:
        return self._made.is_set()


@contextlib.contextmanager
def stop_on_interrupt(host: PlainHost) -> Iterator[StopRequest]:
    """While it lasts, Ctrl-C asks the run to stop within a step, and a second one stops at once."""
    request = StopRequest(host)

    def handle(*_: object) -> None:
        if request:
            raise KeyboardInterrupt
        request.make()
        say("Stopping after this step. Press Ctrl-C again to stop at once.")

    try:
        before = signal.signal(signal.SIGINT, handle)
    except ValueError:  # not the main thread, which alone gets signals
        yield request
        return
    try:
        yield request
    finally:
        signal.signal(signal.SIGINT, before)
