"""Errors of the web server and the event loop in the server's log, with a rate limit per kind."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from ..queue.terminal import Terminal

_NAMES = ("aiohttp", "asyncio")


class _TerminalHandler(logging.Handler):
    def __init__(self, terminal: Terminal) -> None:
        super().__init__(logging.WARNING)
        self._terminal = terminal

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(Exception):
            error = record.exc_info[1] if record.exc_info else None
            self._terminal.say_throttled((record.name, str(record.msg)), _one_line(record.getMessage(), error))


def _one_line(message: str, error: BaseException | None) -> str:
    first = message.strip().partition("\n")[0]
    return first if error is None else f"{first} ({type(error).__name__}: {str(error)[:200]})"


@contextlib.contextmanager
def quiet_logs(loop: asyncio.AbstractEventLoop, terminal: Terminal) -> Iterator[None]:
    """Redirect the messages of aiohttp and the event loop to the terminal, rate-limited.

    Clients can provoke these messages, and must not be able to fill a log file's disk.
    """

    def handle_exception(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        message = str(context.get("message", "Unhandled error"))
        with contextlib.suppress(Exception):
            terminal.say_throttled(message, _one_line(message, context.get("exception")))

    handler, before = _TerminalHandler(terminal), {name: logging.getLogger(name).propagate for name in _NAMES}
    loop.set_exception_handler(handle_exception)
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
