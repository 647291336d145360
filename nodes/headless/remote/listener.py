"""The WebSocket messages of one run, across reconnects."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Any

import aiohttp

from ....uniworld_core.json_text import BadJson, loads
from .client import ServerClient, Unreachable

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 10.0  # seconds between two attempts to connect
_OPENING = 5.0  # seconds to wait for the socket before the prompt is queued


class Listener:
    """Collects the messages for a client id, and reconnects when the connection drops.

    Attributes:
        connected: whether the socket is open.
    """

    def __init__(self, client: ServerClient, client_id: str) -> None:
        self._client, self._id = client, client_id
        self._messages: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()
        self._opened = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.connected = False

    async def __aenter__(self) -> Listener:
        self._task = asyncio.create_task(self._listen())
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._opened.wait(), _OPENING)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def next(self, seconds: float) -> list[tuple[str, dict[str, Any]]]:
        """Wait up to `seconds` for a message, and return all that have arrived."""
        if self._messages.empty():
            waiting = asyncio.ensure_future(self._messages.get())
            await asyncio.wait([waiting], timeout=seconds)
            if not waiting.done():
                waiting.cancel()
                return []
            found = [waiting.result()]
        else:
            found = []
        while not self._messages.empty():
            found.append(self._messages.get_nowait())
        return found

    async def _listen(self) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                async with self._client.connect(self._id) as socket:
                    self.connected, pause = True, FIRST_PAUSE
                    self._opened.set()
                    await self._receive(socket)
            except (Unreachable, aiohttp.ClientError):
                self._opened.set()  # the run starts without a socket and polls
            finally:
                self.connected = False
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _receive(self, socket: aiohttp.ClientWebSocketResponse[bool]) -> None:
        async for message in socket:
            if message.type != aiohttp.WSMsgType.TEXT:  # binary messages are previews
                continue
            with contextlib.suppress(BadJson):
                data = loads(message.data, allow_nan=True, allow_duplicates=True)
                if isinstance(data, dict) and isinstance(data.get("type"), str) and isinstance(data.get("data"), dict):
                    self._messages.put_nowait((data["type"], data["data"]))
