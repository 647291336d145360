"""HTTP requests to one server, with size limits and timeouts, and one exception class per kind of failure."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import aiohttp

from ....uniworld_core.errors import RunFailed, brief, shown
from ....uniworld_core.json_text import BadJson, dumps, loads
from .address import TOKEN_VARIABLE, ServerAddress

MIB = 2**20
# The object_info of a ComfyUI with many packs takes 10 to 30 MiB; queues and histories repeat whole graphs.
JSON_BYTES = 512 * MIB
ERROR_BYTES = MIB
FILE_BYTES = 16 * 1024 * MIB
TOO_MANY_REQUESTS = 429
MESSAGE_BYTES = 64 * MIB  # of the socket: previews are pictures
_CHUNK = 2**16
_MAX_SAID = 500


@dataclass(frozen=True)
class Timeouts:
    """Timeouts of requests, in seconds.

    Attributes:
        connect: for opening a connection.
        read: between two chunks of a response.
        submit: for validating a prompt, which may load files.
        answer: for all of a JSON response, so that a server that sends a few bytes a minute cannot hold up a run.
    """

    connect: float = 10.0
    read: float = 60.0
    submit: float = 300.0
    answer: float = 300.0


class ServerFailed(RunFailed):
    """A request to a server failed."""


class Unreachable(ServerFailed):
    """A server cannot be reached, or the connection broke.

    Attributes:
        sent: whether the server may have received the request.
    """

    def __init__(self, message: str, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


class BadAnswer(ServerFailed):
    """A response does not match ComfyUI's API."""


class Refusal(ServerFailed):
    """A server rejected a request.

    Attributes:
        status: the HTTP status.
        data: the response body as a JSON object; empty if it is anything else.
    """

    def __init__(self, message: str, status: int, data: dict[str, Any]) -> None:
        super().__init__(message)
        self.status, self.data = status, data


class ServerClient:
    """A client of one server. It never follows redirects, so the token is not sent to other hosts."""

    def __init__(self, address: ServerAddress, token: str | None = None, timeouts: Timeouts | None = None) -> None:
        self.address, self.timeouts = address, timeouts or Timeouts()
        self.url = address.url
        self._token = token
        self._session: aiohttp.ClientSession | None = None

    @property
    def session(self) -> aiohttp.ClientSession:
        if self._session is None:  # needs a running loop
            headers = {"User-Agent": "uniworld"} | ({"Authorization": f"Bearer {self._token}"} if self._token else {})
            self._session = aiohttp.ClientSession(
                headers=headers,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=self._limits(None),
            )
        return self._session

    def _limits(self, total: float | None, read: float | None = None) -> aiohttp.ClientTimeout:
        """Return the timeouts of a request: `total` for all of it, `read` between two chunks."""
        read = self.timeouts.read if read is None else read
        return aiohttp.ClientTimeout(total=total, sock_connect=self.timeouts.connect, sock_read=read)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def get_json(self, path: str, limit: int = JSON_BYTES, **query: str) -> Any:
        """Return the JSON response for a path.

        Raises:
            ServerFailed: the request failed.
        """
        async with self._request("GET", path, params=query, timeout=self._limits(self.timeouts.answer)) as response:
            return _parsed(await self._body(response, limit), f"{self.url}{path}")

    async def post_json(self, path: str, data: object, read_seconds: float | None = None) -> Any:
        """Post JSON and return the JSON response; None if it is empty."""
        read = read_seconds or self.timeouts.read
        timeout = self._limits(read + self.timeouts.answer, read)
        headers = {"Content-Type": "application/json"}
        async with self._request("POST", path, data=dumps(data).encode(), headers=headers, timeout=timeout) as response:
            body = await self._body(response, JSON_BYTES)
            return _parsed(body, f"{self.url}{path}") if body.strip() else None

    async def upload(self, file: Path, name: str, subfolder: str) -> str:
        """Upload a file into the input folder and return its name there, including the subfolder.

        Raises:
            OSError: the file cannot be read.
            ServerFailed: the server rejected it.
        """
        with file.open("rb") as content:
            form = aiohttp.FormData({"type": "input", "subfolder": subfolder})
            form.add_field("image", content, filename=name, content_type="application/octet-stream")
            async with self._request("POST", "/upload/image", data=form) as response:
                answer = _parsed(await self._body(response, ERROR_BYTES), f"{self.url}/upload/image")
        stored = answer.get("name") if isinstance(answer, dict) else None
        folder = answer.get("subfolder", "") if isinstance(answer, dict) else None
        if not isinstance(stored, str) or not isinstance(folder, str):
            raise BadAnswer(f"{self.url}/upload/image does not say under which name it keeps a file. Is it ComfyUI?")
        return f"{folder}/{stored}" if folder else stored

    async def has_file(self, name: str, subfolder: str, kind: str) -> bool:
        """Return whether the server has this file in its folder of a kind: "input", "output" or "temp"."""
        try:
            query, limits = _view_query(name, subfolder, kind), self._limits(self.timeouts.answer)
            async with self._request("GET", "/view", params=query, timeout=limits):
                return True  # the content is not read
        except Refusal as refusal:
            if refusal.status in (401, 403):
                raise
            return False

    async def download(self, name: str, subfolder: str, kind: str, file: BinaryIO) -> None:
        """Download a file of the server into an open file, replacing its content.

        Raises:
            ServerFailed: the download is incomplete or larger than `FILE_BYTES`.
            OSError: the file cannot be written.
        """
        chunks = self._chunks("/view", _view_query(name, subfolder, kind))
        size = 0
        file.seek(0)
        file.truncate()
        async with contextlib.aclosing(chunks):
            async for chunk in chunks:
                size += len(chunk)
                if size > FILE_BYTES:
                    raise BadAnswer(f"{self.url} sends more than {FILE_BYTES // MIB} MiB for {shown(name)}.")
                file.write(chunk)

    @contextlib.asynccontextmanager
    async def connect(self, client_id: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse[bool]]:
        """Open the WebSocket that reports the runs of a client id.

        Raises:
            Unreachable: the socket cannot be opened.
        """
        try:
            # aiohttp applies no read timeout to the handshake.
            socket = await asyncio.wait_for(
                self.session.ws_connect(
                    f"{self.url}/ws", params={"clientId": client_id}, heartbeat=20.0, max_msg_size=MESSAGE_BYTES
                ),
                self.timeouts.connect,
            )
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            raise self._unreachable(error) from error
        try:
            yield socket
        finally:
            with contextlib.suppress(aiohttp.ClientError, asyncio.TimeoutError, OSError):
                await socket.close()

    @contextlib.asynccontextmanager
    async def _request(self, method: str, path: str, **options: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        try:
            async with self.session.request(method, self.url + path, allow_redirects=False, **options) as response:
                if response.status >= 400:
                    raise await self._refusal(response)
                if response.status >= 300:
                    target = shown(response.headers.get("Location", ""), 200)
                    raise BadAnswer(f"{self.url} redirects to {target}, which is not followed. Give that as --server.")
                yield response
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            raise self._unreachable(error) from error

    async def _chunks(self, path: str, query: Mapping[str, str]) -> AsyncGenerator[bytes, None]:
        async with self._request("GET", path, params=query) as response:
            async for chunk in response.content.iter_chunked(_CHUNK):
                yield chunk

    async def _body(self, response: aiohttp.ClientResponse, limit: int) -> bytes:
        body = bytearray()
        async for chunk in response.content.iter_chunked(_CHUNK):
            body += chunk
            if len(body) > limit:
                raise BadAnswer(f"{self.url} sends more than {limit // MIB} MiB for {response.url.path}.")
        return bytes(body)

    async def _refusal(self, response: aiohttp.ClientResponse) -> Refusal:
        data: Any = None
        with contextlib.suppress(BadAnswer, BadJson):
            # Uploads and downloads have no limit for all of a response.
            body = await asyncio.wait_for(self._body(response, ERROR_BYTES), self.timeouts.answer)
            data = loads(body, allow_nan=True, allow_duplicates=True)
        data = data if isinstance(data, dict) else {}
        if response.status == 401:
            wanted = "requires a token. Set" if self._token is None else "does not accept the token. Correct"
            return Refusal(f"{self.url} {wanted} {TOKEN_VARIABLE}.", 401, data)
        said = error_text(data) or response.reason or "no reason given"
        return Refusal(f"{self.url} refuses {response.url.path}: {response.status}, {said}", response.status, data)

    def _unreachable(self, error: BaseException) -> Unreachable:
        # Without a connection, the server cannot have received the request.
        refused = isinstance(error, aiohttp.ClientConnectorError)
        reason = "it does not answer in time" if isinstance(error, asyncio.TimeoutError) else _reason(error)
        return Unreachable(f"The server {self.url} cannot be reached: {reason}.", sent=not refused)


def error_text(data: Mapping[str, Any]) -> str:
    """Return the message in the body of an error response."""
    error = data.get("error")
    if isinstance(error, Mapping):
        error = error.get("message") or error.get("type")
    return printable(" ".join(error.split())[:_MAX_SAID]) if isinstance(error, str) else ""


def printable(text: str) -> str:
    """Replace control characters in the text of a server, which must not control the terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _reason(error: BaseException) -> str:
    # Their OSErrors have OpenSSL's numbers, which `os.strerror` would read as the system's.
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"its certificate is not trusted ({brief(error.certificate_error).rstrip('.')})"
    if isinstance(error, aiohttp.ClientSSLError):
        return "it does not accept an encrypted connection. If it does not use TLS, write http:// instead of https://"
    if isinstance(error, aiohttp.ClientConnectorError) and error.os_error is not None:
        # The text of asyncio's OSError repeats the address. Numbers of failed name look-ups are negative.
        number, text = error.os_error.errno, error.os_error.strerror or str(error.os_error)
        return (os.strerror(number) if number is not None and number > 0 else text).lower()
    if isinstance(error, aiohttp.ClientPayloadError):
        return "its response ends before it is complete"  # aiohttp's text repeats the error of its parser
    if isinstance(error, aiohttp.ClientResponseError) and not isinstance(error, aiohttp.WSServerHandshakeError):
        return "its response is not valid HTTP"  # aiohttp's text is that of its parser, over several lines
    return brief(error).rstrip(".")


def _view_query(name: str, subfolder: str, kind: str) -> dict[str, str]:
    return {"filename": name, "subfolder": subfolder, "type": kind}


def _parsed(body: bytes, source: str) -> Any:
    try:
        # Nodes of packs declare infinite limits, which Python's servers write as such.
        return loads(body, allow_nan=True, allow_duplicates=True)
    except BadJson as error:
        raise BadAnswer(f"The answer of {source} {error}. Is it ComfyUI or `uniworld serve`?") from error
