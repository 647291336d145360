"""The WebSocket connections of browsers and programs, and the messages that each is sent."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import struct
import threading
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import WSMsgType, web

from .....uniworld_core.json_text import BadJson, dumps, loads

if TYPE_CHECKING:
    from PIL import Image

MAX_CLIENTS = 512
MAX_INCOMING = 64 * 2**10  # bytes per message; clients send little more than feature flags
# A client with a longer backlog has stopped reading and is disconnected.
_MAX_UNSENT = 20_000  # messages
_MAX_UNSENT_BYTES = 64 * 2**20
_HEARTBEAT = 30.0  # seconds between pings; the socket of a client that does not answer is closed
_BEHIND_BYTES = 2**20  # with a longer backlog, only the newest progress state is kept
_PREVIEW, _STATES = "preview", "progress_state"
_PREVIEW_SIDE = 512
_LEGACY_PREVIEW, _NODE_TEXT, _PREVIEW_WITH_METADATA = 1, 3, 4  # ComfyUI's types of binary frames (first 4 bytes)
_JPEG = 1


@dataclass(eq=False)
class Client:
    """One open socket. If several sockets have the same `sid`, messages go to the newest."""

    sid: str
    socket: web.WebSocketResponse
    features: dict[str, object] = field(default_factory=dict)
    unsent: deque[tuple[str, str | bytes]] = field(default_factory=deque)
    unsent_bytes: int = 0
    progress: Callable[[], None] = lambda: None  # called after each message that the socket has accepted
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    closing: asyncio.Future[bool] | None = None

    def put(self, frame: str | bytes, kind: str = "") -> None:
        # A newer preview replaces unsent ones. So does a progress state, which lists all nodes, if the client lags behind.
        if kind == _PREVIEW or (kind == _STATES and self.unsent_bytes > _BEHIND_BYTES):
            self._drop(kind)
        self.unsent.append((kind, frame))
        self.unsent_bytes += len(frame)
        self.ready.set()

    def _drop(self, kind: str) -> None:
        self.unsent = deque(one for one in self.unsent if one[0] != kind)
        self.unsent_bytes = sum(len(frame) for _, frame in self.unsent)

    def drop_all(self) -> None:
        self.unsent.clear()
        self.unsent_bytes = 0

    @property
    def too_slow(self) -> bool:
        return len(self.unsent) > _MAX_UNSENT or self.unsent_bytes > _MAX_UNSENT_BYTES

    async def write(self) -> None:
        """Send the queued messages until the socket closes."""
        while not self.socket.closed:
            await self.ready.wait()
            self.ready.clear()
            while self.unsent:
                _, frame = self.unsent.popleft()
                self.unsent_bytes -= len(frame)
                if isinstance(frame, str):
                    await self.socket.send_str(frame)
                else:
                    await self.socket.send_bytes(frame)
                self.progress()


class Clients:
    """All open sockets. The `send` methods are thread-safe and keep the order of messages."""

    def __init__(self, features: dict[str, Any]) -> None:
        self._features = features
        self._by_sid: dict[str, Client] = {}
        self._open: set[Client] = set()
        self._outgoing: list[tuple[str | bytes, str | None, str]] = []
        self._flush_scheduled = False
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.log_readers: set[str] = set()
        self.limit = MAX_CLIENTS

    def __len__(self) -> int:
        return len(self._open)

    def has(self, sid: str) -> bool:
        return self._wanted(sid)

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def detach(self) -> None:
        self._loop = None

    # --- sending -----------------------------------------------------------------------------------------------------

    def send(self, kind: str, data: dict[str, object], client: str | None = None) -> None:
        if self._wanted(client):
            self._schedule(dumps({"type": kind, "data": data}), client, kind)

    def send_text(self, client: str, node: str, text: str) -> None:
        if self._wanted(client):
            node_id = node.encode()
            frame = struct.pack(">II", _NODE_TEXT, len(node_id)) + node_id + text.encode()
            self._schedule(frame, client, "progress_text")

    def send_preview(self, client: str, image: Image.Image, about: dict[str, object]) -> None:
        with self._lock:
            found = self._by_sid.get(client)
        if found is None:
            return
        picture = _jpeg(image)
        if found.features.get("supports_preview_metadata") is True:
            text = json.dumps({**about, "image_type": "image/jpeg"}).encode()
            self._schedule(struct.pack(">II", _PREVIEW_WITH_METADATA, len(text)) + text + picture, client, _PREVIEW)
        else:
            self._schedule(struct.pack(">II", _LEGACY_PREVIEW, _JPEG) + picture, client, _PREVIEW)

    def _wanted(self, client: str | None) -> bool:
        with self._lock:
            return bool(self._open) if client is None else client in self._by_sid

    def _schedule(self, frame: str | bytes, client: str | None, kind: str) -> None:
        if self._loop is None:
            return
        with self._lock:
            self._outgoing.append((frame, client, kind))
            if self._flush_scheduled:
                return
            self._flush_scheduled = True
        # One wake-up for all frames until the loop runs. Each wake-up is a system call, which lets the thread of the loop
        # take the GIL from the thread that runs nodes.
        with contextlib.suppress(RuntimeError):  # the event loop has just closed
            self._loop.call_soon_threadsafe(self._flush)

    def _flush(self) -> None:
        with self._lock:
            self._flush_scheduled = False
            frames, self._outgoing = self._outgoing, []
        for frame, client, kind in frames:
            self._put(frame, client, kind)

    def _put(self, frame: str | bytes, client: str | None, kind: str) -> None:
        with self._lock:
            targets = list(self._open) if client is None else [self._by_sid[client]] if client in self._by_sid else []
        for target in targets:
            target.put(frame, kind)
            if target.too_slow:
                self._remove(target)
                target.drop_all()
                target.closing = asyncio.ensure_future(target.socket.close(code=1008, message=b"too slow"))

    # --- receiving ---------------------------------------------------------------------------------------------------

    async def serve(self, request: web.Request, first_messages: Any) -> web.WebSocketResponse:
        """Serve one socket until it closes.

        Args:
            first_messages: called with the sid; returns the (kind, data) messages to send first.
        """
        if len(self._open) >= self.limit:
            raise web.HTTPServiceUnavailable(text=f"All {self.limit} sockets are in use. Close some.")
        socket = web.WebSocketResponse(max_msg_size=MAX_INCOMING, heartbeat=_HEARTBEAT)
        await socket.prepare(request)
        client = Client(_sid(request.query.get("clientId", "")), socket)
        client.progress = getattr(request.protocol, "progress", client.progress)
        for kind, data in first_messages(client.sid):
            client.put(dumps({"type": kind, "data": data}))
        with self._lock:
            self._by_sid[client.sid] = client
            self._open.add(client)
        writer = asyncio.ensure_future(client.write())
        try:
            async for message in socket:
                if message.type == WSMsgType.TEXT:
                    self._receive(client, message.data)
        finally:
            self._remove(client)
            writer.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                await writer
        return socket

    def _receive(self, client: Client, text: str) -> None:
        try:
            message = loads(text)
        except BadJson:
            return
        if isinstance(message, dict) and message.get("type") == "feature_flags":
            features = message.get("data")
            client.features = features if isinstance(features, dict) else {}
            client.put(dumps({"type": "feature_flags", "data": self._features}))

    def _remove(self, client: Client) -> None:
        with self._lock:
            self._open.discard(client)
            if self._by_sid.get(client.sid) is client:
                del self._by_sid[client.sid]
                self.log_readers.discard(client.sid)

    async def close(self) -> None:
        for client in list(self._open):
            with contextlib.suppress(ConnectionError, asyncio.TimeoutError):
                await asyncio.wait_for(client.socket.close(code=1001, message=b"server stops"), 1)


def _sid(wanted: str) -> str:
    usable = 0 < len(wanted) <= 128 and wanted.isprintable()
    return wanted if usable else uuid.uuid4().hex


def _jpeg(image: Image.Image) -> bytes:
    picture = image.convert("RGB")
    picture.thumbnail((_PREVIEW_SIDE, _PREVIEW_SIDE))
    data = io.BytesIO()
    picture.save(data, format="JPEG", quality=90)
    return data.getvalue()
