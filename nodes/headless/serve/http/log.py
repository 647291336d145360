"""Errors of the web server and the event loop as lines of the server's log, few of each kind."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from ..queue.terminal import Terminal

_NAMES = ("aiohttp", "asyncio")


class _ToTerminal(logging.Handler):
    def __init__(self, terminal: Terminal) -> None:
        super().__init__(logging.WARNING)
        self._terminal = terminal

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(Exception):
            error = record.exc_info[1] if record.exc_info else None
            self._terminal.rarely((record.name, str(record.msg)), _told(record.getMessage(), error))


def _told(message: str, error: BaseException | None) -> str:
    first = message.strip().partition("\n")[0]
    return first if error is None else f"{first} ({type(error).__name__}: {str(error)[:200]})"


@contextlib.contextmanager
def quiet_logs(loop: asyncio.AbstractEventLoop, terminal: Terminal) -> Iterator[None]:
    """While it lasts, what the loop and aiohttp log goes to the terminal; what clients can cause must not fill a disk."""

    def heard(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        message = str(context.get("message", "Unhandled error"))
        with contextlib.suppress(Exception):
            terminal.rarely(message, _told(message, context.get("exception")))

    handler, before = _ToTerminal(terminal), {name: logging.getLogger(name).propagate for name in _NAMES}
    loop.set_exception_handler(heard)
    for name in _NAMES:
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).propagate = False
    try:
        yield
    finally:
        loop.set_exception_handler(None)
        for name in _NAMES:
            logging.getLogger(name).removeHandler(handler)
            logging.getLogger(name).propagate = before[name]
