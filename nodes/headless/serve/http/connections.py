"""The server's connections: how many there may be, and for how long each may keep the server waiting.

A connection waits for its client when no request is in progress, when a request's body has not arrived, or when a reply
is not read. Each of these has its time, and when all connections are taken, the one that has waited longest makes room
for a new one: whoever opens a thousand of them and says nothing locks nobody out.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from ..server import Server
from .log import quiet_logs

FEWEST, MOST = 8, 1000
_WANTED_FILES = 4096  # files that the process asks to be allowed to have open, sockets included
_WAITING = 1024
_SLOW = 512  # bytes a second; slower than that nobody on a working line is
_FULL = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Times:
    """Seconds that a client has."""

    first = 20.0  # to begin its first request
    idle = 75.0  # to begin another one; longer than the minute that proxies keep a connection
    head = 15.0  # to send a request's head, from its first byte
    body = 30.0  # to send a body, and more as long as it sends `_SLOW` bytes a second
    reply = 60.0  # in which it reads nothing of a reply
    linger = 2.0  # to stop sending a body that was refused
    tick = 1.0  # between two looks at all connections


class Connection(RequestHandler):
    """One connection. `sweep` looks whether its client lets it wait for too long."""

    __slots__ = (
        "_all",
        "_busy",
        "_read",
        "_read_at_start",
        "_request",
        "_since",
        "_stalled",
        "_unread",
        "_unsent",
        "_wire",
    )

    def __init__(self, connections: Connections, manager: Any, **options: Any) -> None:
        super().__init__(manager, **options)
        self._all = connections
        self._busy = False
        self._since = self._loop.time()  # when the request in progress began, or the last one ended
        self._read = self._read_at_start = 0
        self._unread: float | None = None  # when the first byte of the next request came
        self._unsent, self._stalled = 0, 0.0
        self._request: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._wire = transport  # kept, as aiohttp forgets its own before everything in it has been sent
        super().connection_made(transport)
        self._all.add(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._all.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._read += len(data)
        if data and not self._busy and self._unread is None:
            self._unread = self._loop.time()
        super().data_received(data)

    async def _handle_request(self, request: Any, *args: Any, **options: Any) -> Any:
        self._busy, self._request, self._since = True, request, self._loop.time()
        self._read_at_start = self._read
        try:
            return await super()._handle_request(request, *args, **options)
        finally:
            self._busy, self._request, self._since, self._unread = False, None, self._loop.time(), None

    def progress(self) -> None:
        """Called by what sends a reply in pieces, whenever a piece has been taken."""
        self._stalled = 0.0

    def sweep(self, now: float) -> None:
        """End the connection if its client is out of time."""
        if self._not_read() or (self.transport is not None and self._out_of_time(now)):
            self.drop()

    def drop(self) -> None:
        """End the connection at once."""
        self._wire.abort()  # type: ignore[attr-defined]

    def refuse(self) -> None:
        """End the connection, telling its client that there is no room."""
        self._wire.write(_FULL)  # type: ignore[attr-defined]
        self.force_close()

    def _out_of_time(self, now: float) -> bool:
        times = self._all.times
        if self._busy:
            late = now - self._since - times.body
            return self.awaits_body and late > 0 and self._read - self._read_at_start < late * _SLOW
        if self._unread is not None:
            return now - self._unread > times.head
        return now - self._since > (times.idle if self._request_count else times.first)

    def _not_read(self) -> bool:
        unsent = self._wire.get_write_buffer_size()  # type: ignore[attr-defined]
        moving = unsent == 0 or unsent <= self._unsent - _SLOW * self._all.times.tick
        self._stalled, self._unsent = (0.0 if moving else self._stalled + self._all.times.tick), unsent
        return self._stalled > self._all.times.reply

    @property
    def awaits_body(self) -> bool:
        """Whether the request in progress waits for its client to send more of the body."""
        if self._request is None or getattr(self, "_reading_paused", False):
            return False  # in the latter case it is the server that does not read
        return not self._request.content.is_eof()

    @property
    def patience(self) -> tuple[int, float] | None:
        """The order in which connections make room for new ones; None for one whose client waits for the server."""
        if not self._busy:
            return 0, self._since
        return (1, self._since) if self.awaits_body or self._stalled > 5 else None


class Connections:
    """The open connections of one server, at most `limit`."""

    def __init__(self, server: Server, limit: int, times: type[Times] = Times) -> None:
        self._terminal, self.limit, self.times = server.terminal, limit, times
        self._open: set[Connection] = set()

    def __len__(self) -> int:
        return len(self._open)

    def add(self, new: Connection) -> None:
        if len(self._open) >= self.limit and not self._make_room():
            self._terminal.rarely("full", f"All {self.limit} connections are in use; new ones are refused.")
            new.refuse()
            return
        self._open.add(new)

    def discard(self, gone: Connection) -> None:
        self._open.discard(gone)

    def _make_room(self) -> bool:
        waiting = [(one.patience, one) for one in self._open if one.patience is not None]
        if not waiting:
            return False
        longest = min(waiting, key=lambda pair: pair[0])[1]  # type: ignore[arg-type,return-value]
        self._terminal.rarely("crowded", f"All {self.limit} connections are open; idle ones make room for new ones.")
        self._open.discard(longest)
        longest.drop()
        return True

    async def watch(self) -> None:
        """Sweep over all connections until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self.times.tick)
            now = loop.time()
            for one in list(self._open):
                try:
                    one.sweep(now)
                except Exception as error:  # what ends the watch would end all limits
                    self._terminal.rarely("sweep", f"A connection cannot be watched: {type(error).__name__}: {error}")


class Site:
    """A server that listens on a socket.

    Args:
        app: the server's application.
        limit: of connections; None for what the system allows.
    """

    def __init__(
        self, app: web.Application, server: Server, limit: int | None = None, times: type[Times] = Times,
        shutdown_timeout: float = 2.0,
    ) -> None:  # fmt: skip
        self.connections = Connections(server, limit or connection_limit(), times)
        self._server = server
        # aiohttp closes a connection that is idle for this long; the sweep does it earlier.
        self._options = {"access_log": None, "keepalive_timeout": 2 * times.idle, "lingering_time": times.linger}
        self._runner = web.AppRunner(app, shutdown_timeout=shutdown_timeout, handler_cancellation=True)
        self._stack = contextlib.AsyncExitStack()

    async def start(self, listener: socket.socket) -> None:
        """Listen on a bound socket."""
        loop = asyncio.get_running_loop()
        server = self._server
        server.clients.most = max(FEWEST // 2, min(server.clients.most, self.connections.limit // 2))
        self._stack.enter_context(quiet_logs(loop, server.terminal))
        await self._runner.setup()
        self._stack.push_async_callback(self._runner.cleanup)
        manager = self._runner.server

        def connection() -> Connection:
            return Connection(self.connections, manager, loop=loop, **self._options)

        # As many are accepted at a time, before the first of them counts; more may wait in the system's queue.
        at_a_time = min(128, max(FEWEST, self.connections.limit // 4))
        listening = await loop.create_server(connection, sock=listener, backlog=at_a_time)
        listener.listen(_WAITING)
        self._stack.callback(listening.close)
        watching = asyncio.ensure_future(self.connections.watch())
        self._stack.callback(watching.cancel)

    async def stop(self) -> None:
        """Stop listening, end the run in progress and close all connections."""
        await self._stack.aclose()


def connection_limit() -> int:
    """How many connections leave enough of the files that this process may have open to everything else it does."""
    try:
        import resource
    except ImportError:  # Windows counts sockets apart
        return 500
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WANTED_FILES if hard == resource.RLIM_INFINITY else min(hard, _WANTED_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    if soft == resource.RLIM_INFINITY:
        return MOST
    return max(FEWEST, min(MOST, (soft - _open_files()) // 2))


def _open_files() -> int:
    for folder in ("/proc/self/fd", "/dev/fd"):
        with contextlib.suppress(OSError):
            return len(os.listdir(folder))  # noqa: PTH208 (of the process, not of a disk)
    return 64
