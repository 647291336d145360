"""Send a file as a response: complete, as a range, or as 304 if the client has it cached.

Replaces aiohttp's FileResponse, which would send a `.gz` or `.br` file of the same name instead, and which uses sendfile,
so that a client that stops reading cannot be detected.
"""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path
from typing import BinaryIO

from aiohttp import ETag, web
from aiohttp.abc import AbstractStreamWriter

_CHUNK = 2**16


async def send_file(request: web.Request, path: Path, headers: dict[str, str]) -> web.StreamResponse:
    """Return a response with a file's content, or status 206, 304, 412 or 416 according to conditions and ranges.

    Raises:
        web.HTTPNotFound: the path is not a regular file, or does not exist.
    """
    try:
        file, about = await asyncio.to_thread(_open, path)
    except OSError as error:
        raise web.HTTPNotFound(text="File not found.") from error
    tag = f"{about.st_mtime_ns:x}-{about.st_size:x}"
    early = _condition(request, tag, about.st_mtime)
    if early is not None:
        file.close()
        response = web.Response(status=early, headers=headers if early == 304 else None)
        response.etag, response.last_modified = tag, about.st_mtime
        return response
    try:
        start, count = _range(request, tag, about)
    except _UnsatisfiableRange:
        file.close()
        return web.Response(status=416, headers={"Content-Range": f"bytes */{about.st_size}"})
    result = _FileResponse(file, start or 0, status=200 if start is None else 206, headers=headers)
    result.etag, result.last_modified, result.content_length = tag, about.st_mtime, count
    result.headers["Accept-Ranges"] = "bytes"
    if start is not None:
        result.headers["Content-Range"] = f"bytes {start}-{start + count - 1}/{about.st_size}"
    return result


def _open(path: Path) -> tuple[BinaryIO, os.stat_result]:
    # Non-blocking: opening a named pipe would otherwise block the thread until somebody writes to it.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    about = os.fstat(descriptor)
    if not stat.S_ISREG(about.st_mode):
        os.close(descriptor)
        raise FileNotFoundError(path)
    return os.fdopen(descriptor, "rb"), about


def _condition(request: web.Request, tag: str, modified: float) -> int | None:
    """Return the status for a request whose preconditions fail (RFC 9110, section 13.2.2); None if they hold."""
    if request.if_match is not None:
        if not _matches(tag, request.if_match, weak=False):
            return 412
    elif request.if_unmodified_since is not None and int(modified) > request.if_unmodified_since.timestamp():
        return 412
    if request.if_none_match is not None:
        return 304 if _matches(tag, request.if_none_match, weak=True) else None
    since = request.if_modified_since
    return 304 if since is not None and int(modified) <= since.timestamp() else None


def _matches(tag: str, tags: tuple[ETag, ...], weak: bool) -> bool:
    return any(one.value in (tag, "*") and (weak or not one.is_weak) for one in tags)


class _UnsatisfiableRange(Exception):
    """The requested range contains no byte of the file."""


def _range(request: web.Request, tag: str, about: os.stat_result) -> tuple[int | None, int]:
    """Return the first byte of the requested range (None for the complete file) and its length.

    Raises:
        _UnsatisfiableRange: the range contains no byte of the file.
    """
    size = about.st_size
    unless = request.headers.get("If-Range")
    if "Range" not in request.headers or (unless is not None and not _still(request, unless, tag, about.st_mtime)):
        return None, size
    try:
        wanted = request.http_range
    except ValueError as error:  # servers may ignore several ranges and unknown units (RFC 9110, section 14.2)
        if request.headers["Range"].strip().lower().startswith("bytes=") and "," not in request.headers["Range"]:
            raise _UnsatisfiableRange from error
        return None, size
    if wanted.start is None and wanted.stop is None:
        return None, size
    start, stop, _ = slice(wanted.start, wanted.stop).indices(size)
    if start >= stop:
        raise _UnsatisfiableRange
    return start, stop - start


def _still(request: web.Request, unless: str, tag: str, modified: float) -> bool:
    date = request.if_range
    return date.timestamp() >= int(modified) if date is not None else unless.strip() == f'"{tag}"'


class _FileResponse(web.StreamResponse):
    """A response with the part of an open file that starts at `start` and has the response's content length."""

    def __init__(self, file: BinaryIO, start: int, status: int, headers: dict[str, str]) -> None:
        super().__init__(status=status, headers=headers)
        self._opened, self._offset = file, start

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        try:
            writer = await super().prepare(request)
            if request.method != "HEAD":
                await self._send(request)
            return writer
        finally:
            self._opened.close()

    async def _send(self, request: web.BaseRequest) -> None:
        left = self.content_length or 0
        progress = getattr(request.protocol, "progress", None)
        await asyncio.to_thread(self._opened.seek, self._offset)
        while left:
            chunk = await asyncio.to_thread(self._opened.read, min(_CHUNK, left))
            if not chunk:
                raise ConnectionResetError("The file became shorter while it was sent.")
            await self.write(chunk)
            left -= len(chunk)
            if progress is not None:
                progress()
