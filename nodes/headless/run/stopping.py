"""A request to stop a run: Ctrl-C on the command line, or a cluster that stops its worker."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

from ....streams import say
from ...host import PlainHost


class StopRequest:
    """A request to stop, true once it is set. Unlike the host's flag, it is not cleared by each run of a workflow."""

    def __init__(self, host: PlainHost) -> None:
        self._host, self._event = host, threading.Event()

    def set(self) -> None:
        """Request a stop: the running node is interrupted within a step. Safe in any thread and in a signal handler."""
        self._event.set()
        self._host.interrupted.set()

    def __bool__(self) -> bool:
        return self._event.is_set()


@contextlib.contextmanager
def stop_on_interrupt(host: PlainHost) -> Iterator[StopRequest]:
    """Within this context, Ctrl-C stops the run within a step, and a second Ctrl-C stops it at once."""
    request = StopRequest(host)

    def handle(*_: object) -> None:
        if request:
            raise KeyboardInterrupt
        request.set()
        say("Stopping after this step. Press Ctrl-C again to stop at once.")

    try:
        before = signal.signal(signal.SIGINT, handle)
    except ValueError:  # not in the main thread, the only one that can handle signals
        yield request
        return
    try:
        yield request
    finally:
        signal.signal(signal.SIGINT, before)
