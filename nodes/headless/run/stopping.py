"""A request to stop a run: Ctrl-C or SIGTERM on the command line, or a cluster that stops its worker."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from ....signals import at_signals
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
def stop_on_interrupt(host: PlainHost, terminate: bool = True) -> Iterator[StopRequest]:
    """Within this context, Ctrl-C stops the run within a step, and a second Ctrl-C stops it at once.

    Args:
        terminate: handle SIGTERM like Ctrl-C.
    """
    request = StopRequest(host)

    def handle() -> None:
        if request:
            raise KeyboardInterrupt
        request.set()
        say("Stopping after this step. Press Ctrl-C again to stop at once.")

    with at_signals(handle, terminate):
        yield request
