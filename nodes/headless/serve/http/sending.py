"""Sending a file: the bytes of that file and of no other, as a whole, as a range, or not at all if the client has it.

In place of aiohttp's FileResponse, which sends what lies beside a file under its name and `.gz` or `.br`, and hands the
file to the system at once, so that a client that stops reading cannot be noticed.
"""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path
from typing import BinaryIO

from aiohttp import ETag, web
from aiohttp.abc import AbstractStreamWriter

_PIECE = 2**16


async def send_file(request: web.Request, path: Path, headers: dict[str, str]) -> web.StreamResponse:
    """A response with a file's content; 206, 304, 412 and 416 where the request's conditions and ranges ask for them.

    Raises:
        web.HTTPNotFound: it is no regular file, or has gone.
    """
    try:
        file, about = await asyncio.to_thread(_open, path)
    except OSError as error:
        raise web.HTTPNotFound(text="There is no such file.") from error
    tag = f"{about.st_mtime_ns:x}-{about.st_size:x}"
    early = _condition(request, tag, about.st_mtime)
    if early is not None:
        file.close()
        response = web.Response(status=early, headers=headers if early == 304 else None)
        response.etag, response.last_modified = tag, about.st_mtime
        return response
    try:
        start, count = _range(request, tag, about)
    except _NoneAskedFor:
        file.close()
        return web.Response(status=416, headers={"Content-Range": f"bytes */{about.st_size}"})
    whole = start is None
    made = _FileResponse(file, start or 0, status=200 if whole else 206, headers=headers)
    made.etag, made.last_modified, made.content_length = tag, about.st_mtime, count
    made.headers["Accept-Ranges"] = "bytes"
    if start is not None:
        made.headers["Content-Range"] = f"bytes {start}-{start + count - 1}/{about.st_size}"
    return made


def _open(path: Path) -> tuple[BinaryIO, os.stat_result]:
    # Not blocking, as a pipe that somebody put there would else keep the thread.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    about = os.fstat(descriptor)
    if not stat.S_ISREG(about.st_mode):
        os.close(descriptor)
        raise FileNotFoundError(path)
    return os.fdopen(descriptor, "rb"), about


def _condition(request: web.Request, tag: str, modified: float) -> int | None:
    """The status that ends a request whose conditions (RFC 9110, 13.2.2) do not hold; None if they do."""
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


class _NoneAskedFor(Exception):
    """The range that a request names has no byte of the file."""


def _range(request: web.Request, tag: str, about: os.stat_result) -> tuple[int | None, int]:
    """The first byte that is asked for (None for the whole file), and how many. Raises _NoneAskedFor for none."""
    size = about.st_size
    unless = request.headers.get("If-Range")
    if "Range" not in request.headers or (unless is not None and not _still(request, unless, tag, about.st_mtime)):
        return None, size
    try:
        wanted = request.http_range
    except ValueError as error:  # several ranges, or another unit: it may be left out of account
        if request.headers["Range"].strip().lower().startswith("bytes=") and "," not in request.headers["Range"]:
            raise _NoneAskedFor from error
        return None, size
    if wanted.start is None and wanted.stop is None:
        return None, size
    start, stop, _ = slice(wanted.start, wanted.stop).indices(size)
    if start >= stop:
        raise _NoneAskedFor
    return start, stop - start


def _still(request: web.Request, unless: str, tag: str, modified: float) -> bool:
    date = request.if_range
    return date.timestamp() >= int(modified) if date is not None else unless.strip() == f'"{tag}"'


class _FileResponse(web.StreamResponse):
    """The part of an open file that begins at `start` and has the response's length."""

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
            piece = await asyncio.to_thread(self._opened.read, min(_PIECE, left))
            if not piece:
                raise ConnectionResetError("The file has become shorter while it was sent.")
            await self.write(piece)
            left -= len(piece)
            if progress is not None:
                progress()
