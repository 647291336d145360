"""Limits on the number of connections and on how long a client may keep one waiting.

A connection waits for its client between requests, while a request's body is incomplete, and while a response is not
read. Each state has a timeout. When all connections are in use, the one that has waited longest is closed to make room,
so that a client that opens a thousand idle connections cannot lock others out (Slowloris attacks).
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

MIN_CONNECTIONS, MAX_CONNECTIONS = 8, 1000
_WANTED_FILES = 4096  # soft limit on open files, including sockets, that the process requests
_BACKLOG = 1024
_MIN_BYTES_PER_SECOND = 512  # every working network connection is faster
_RESPONSE_503 = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class ConnectionTimeouts:
    """Timeouts of a connection, in seconds."""

    first_request = 20.0  # until the first request starts
    keep_alive = 75.0  # between requests; longer than the 60 s for which reverse proxies keep connections open
    request_head = 15.0  # from the first byte of a request to the end of its head
    request_body = 30.0  # for a request's body; extended while it arrives at `_MIN_BYTES_PER_SECOND`
    stalled_response = 60.0  # during which the client reads nothing of a response
    linger = 2.0  # for which a rejected body is still read, so that the client gets the response
    sweep_interval = 1.0  # between two checks of all connections


class Connection(RequestHandler):
    """One connection. `sweep` closes it if its client exceeds a timeout."""

    __slots__ = (
        "_all",
        "_busy",
        "_connected_transport",
        "_read",
        "_read_at_start",
        "_request",
        "_since",
        "_stalled",
        "_unread",
        "_unsent",
    )

    def __init__(self, connections: Connections, manager: Any, **options: Any) -> None:
        super().__init__(manager, **options)
        self._all = connections
        self._busy = False
        self._since = self._loop.time()  # when the request in progress started, or the last one finished
        self._read = self._read_at_start = 0
        self._unread: float | None = None  # when the first byte of the next request arrived
        self._unsent, self._stalled = 0, 0.0
        self._request: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._connected_transport = transport  # aiohttp drops its own reference before all data has been sent
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
        """Record that the client has read part of a response. Called after each chunk by code that streams."""
        self._stalled = 0.0

    def sweep(self, now: float) -> None:
        """Close the connection if its client has exceeded a timeout."""
        if self._response_stalled() or (self.transport is not None and self._out_of_time(now)):
            self.drop()

    def drop(self) -> None:
        """Close the connection immediately."""
        self._connected_transport.abort()  # type: ignore[attr-defined]

    def refuse(self) -> None:
        """Answer with status 503 and close the connection."""
        self._connected_transport.write(_RESPONSE_503)  # type: ignore[attr-defined]
        self.force_close()

    def _out_of_time(self, now: float) -> bool:
        timeouts = self._all.timeouts
        if self._busy:
            late = now - self._since - timeouts.request_body
            return self.awaits_body and late > 0 and self._read - self._read_at_start < late * _MIN_BYTES_PER_SECOND
        if self._unread is not None:
            return now - self._unread > timeouts.request_head
        return now - self._since > (timeouts.keep_alive if self._request_count else timeouts.first_request)

    def _response_stalled(self) -> bool:
        unsent = self._connected_transport.get_write_buffer_size()  # type: ignore[attr-defined]
        interval = self._all.timeouts.sweep_interval
        moving = unsent == 0 or unsent <= self._unsent - _MIN_BYTES_PER_SECOND * interval
        self._stalled, self._unsent = (0.0 if moving else self._stalled + interval), unsent
        return self._stalled > self._all.timeouts.stalled_response

    @property
    def awaits_body(self) -> bool:
        """Whether the request in progress is waiting for more of its body."""
        if self._request is None or getattr(self, "_reading_paused", False):
            return False  # if reading is paused, the server is the slow side
        return not self._request.content.is_eof()

    @property
    def eviction_order(self) -> tuple[int, float] | None:
        """Sort key by which connections are closed to make room; None if the client is waiting for the server."""
        if not self._busy:
            return 0, self._since
        return (1, self._since) if self.awaits_body or self._stalled > 5 else None


class Connections:
    """The open connections of one server, at most `limit`."""

    def __init__(self, server: Server, limit: int, timeouts: type[ConnectionTimeouts] = ConnectionTimeouts) -> None:
        self._terminal, self.limit, self.timeouts = server.terminal, limit, timeouts
        self._open: set[Connection] = set()

    def __len__(self) -> int:
        return len(self._open)

    def add(self, new: Connection) -> None:
        if len(self._open) >= self.limit and not self._make_room():
            self._terminal.say_throttled("full", f"All {self.limit} connections are in use; new ones are rejected.")
            new.refuse()
            return
        self._open.add(new)

    def discard(self, gone: Connection) -> None:
        self._open.discard(gone)

    def _make_room(self) -> bool:
        waiting = [(one.eviction_order, one) for one in self._open if one.eviction_order is not None]
        if not waiting:
            return False
        longest = min(waiting, key=lambda pair: pair[0])[1]  # type: ignore[arg-type,return-value]
        text = f"All {self.limit} connections are open; idle ones are closed to make room."
        self._terminal.say_throttled("crowded", text)
        self._open.discard(longest)
        longest.drop()
        return True

    async def watch(self) -> None:
        """Check all connections at regular intervals until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self.timeouts.sweep_interval)
            now = loop.time()
            for one in list(self._open):
                try:
                    one.sweep(now)
                except Exception as error:  # otherwise one broken connection would disable all timeouts
                    text = f"A connection cannot be checked: {type(error).__name__}: {error}"
                    self._terminal.say_throttled("sweep", text)


class Site:
    """A server that listens on a socket.

    Args:
        app: the server's application.
        limit: maximum number of connections; None to derive it from the system's limit on open files.
    """

    def __init__(
        self, app: web.Application, server: Server, limit: int | None = None, timeouts: type[ConnectionTimeouts] = ConnectionTimeouts,
        shutdown_timeout: float = 2.0,
    ) -> None:  # fmt: skip
        self.connections = Connections(server, limit or connection_limit(), timeouts)
        self._server = server
        # aiohttp's own idle timeout; twice ours, so that `sweep` always acts first.
        idle = 2 * timeouts.keep_alive
        self._options = {"access_log": None, "keepalive_timeout": idle, "lingering_time": timeouts.linger}
        self._runner = web.AppRunner(app, shutdown_timeout=shutdown_timeout, handler_cancellation=True)
        self._stack = contextlib.AsyncExitStack()

    async def start(self, listener: socket.socket) -> None:
        """Listen on a bound socket."""
        loop = asyncio.get_running_loop()
        server = self._server
        server.clients.limit = max(MIN_CONNECTIONS // 2, min(server.clients.limit, self.connections.limit // 2))
        self._stack.enter_context(quiet_logs(loop, server.terminal))
        await self._runner.setup()
        self._stack.push_async_callback(self._runner.cleanup)
        manager = self._runner.server

        def connection() -> Connection:
            return Connection(self.connections, manager, loop=loop, **self._options)

        # asyncio accepts up to `backlog` connections before any of them is counted, so it is kept below the limit. The
        # second `listen` makes the system's own queue longer.
        backlog = min(128, max(MIN_CONNECTIONS, self.connections.limit // 4))
        listening = await loop.create_server(connection, sock=listener, backlog=backlog)
        listener.listen(_BACKLOG)
        self._stack.callback(listening.close)
        watching = asyncio.ensure_future(self.connections.watch())
        self._stack.callback(watching.cancel)

    async def stop(self) -> None:
        """Stop listening, interrupt the run in progress and close all connections."""
        await self._stack.aclose()


def connection_limit() -> int:
    """Return a limit on connections that leaves enough of the process's open-file limit for everything else."""
    try:
        import resource
    except ImportError:  # on Windows, sockets do not count as files
        return 500
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WANTED_FILES if hard == resource.RLIM_INFINITY else min(hard, _WANTED_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    if soft == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(MIN_CONNECTIONS, min(MAX_CONNECTIONS, (soft - _open_files()) // 2))


def _open_files() -> int:
    for folder in ("/proc/self/fd", "/dev/fd"):
        with contextlib.suppress(OSError):
            return len(os.listdir(folder))  # noqa: PTH208 (not a folder on disk)
    return 64
