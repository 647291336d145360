"""Sending files to browsers and keeping files from them, whole or not at all."""

from __future__ import annotations

import mimetypes
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from aiohttp import web

from .....uniworld_core import files
from .....uniworld_core.images.picture_files import PICTURE_TYPES
from .sending import send_file

# Windows takes these from its registry, where other programs write.
_TYPES = {
    **PICTURE_TYPES, ".js": "text/javascript", ".mjs": "text/javascript", ".css": "text/css", ".html": "text/html",
    ".svg": "image/svg+xml", ".json": "application/json", ".md": "text/markdown", ".wasm": "application/wasm",
    ".woff": "font/woff", ".woff2": "font/woff2", ".ico": "image/x-icon", ".txt": "text/plain",
}  # fmt: skip
# What a browser shows of files that users and workflows made: data, in which no browser runs anything. Everything else
# is a download; there are too many types that some browser takes for a page (.svg, .xml, .rdf, .mml, .atom, .xhtml, ...).
_SHOWN = {
    **PICTURE_TYPES, ".mp4": "video/mp4", ".webm": "video/webm", ".mov": "video/quicktime", ".mkv": "video/x-matroska",
    ".mp3": "audio/mpeg", ".wav": "audio/wav", ".ogg": "audio/ogg", ".opus": "audio/ogg", ".flac": "audio/flac",
    ".m4a": "audio/mp4", ".json": "application/json", ".txt": "text/plain; charset=utf-8",
}  # fmt: skip
_DOWNLOAD = "application/octet-stream"
# No file of users or workflows may run anything, nor be taken for another type than the one that is stated.
SANDBOX = {"Content-Security-Policy": "sandbox", "X-Content-Type-Options": "nosniff"}


def content_type(name: str) -> str:
    return _TYPES.get(Path(name).suffix.lower()) or mimetypes.guess_type(name)[0] or _DOWNLOAD


async def send_own(request: web.Request, path: Path, cache: str = "no-cache") -> web.StreamResponse:
    """A file of the editor or of a node pack."""
    kind = content_type(path.name)
    if kind.startswith("text/") or kind == "application/json":
        kind += "; charset=utf-8"
    return await send_file(request, path, {"Content-Type": kind, "Cache-Control": cache})


async def send_foreign(request: web.Request, path: Path) -> web.StreamResponse:
    """A file that a user or a workflow made: never run as a page or a script."""
    return await send_file(request, path, foreign_headers(path.name))


def foreign_headers(name: str, kind: str | None = None) -> dict[str, str]:
    """The headers of a file that a user or a workflow made.

    Args:
        kind: the type of a copy of it that the server has made itself; None to go by the name.
    """
    kind = kind or _SHOWN.get(Path(name).suffix.lower(), _DOWNLOAD)
    way = "attachment" if kind == _DOWNLOAD else "inline"
    return {"Content-Type": kind, "Content-Disposition": f"{way}; {_disposition(name)}", **SANDBOX}


def _disposition(name: str) -> str:
    """The part of the header that names a file; other alphabets need the long form of RFC 6266."""
    plain = "".join(
        letter if letter.isascii() and letter.isprintable() and letter not in '"\\' else "_" for letter in name
    )
    return f"filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


def write_atomic(path: Path, data: bytes, replace: bool = True) -> bool:
    """Write a file that is there whole or not at all; False if it exists and may not be replaced.

    Does not wait for the disk: all clients of the server would wait with it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if replace:
        files.write_atomic(path, data, sync=False)
        return True
    with files.temporary_file(path.parent, path.name) as file:
        file.write(data)
        return files.rename_new(file, path)


def numbered(name: str) -> Iterator[str]:
    """The name, and then ComfyUI's names for files of the same name: `cat (1).png`, `cat (2).png`, ..."""
    yield name
    path = Path(name)
    for number in range(1, 100_000):
        yield path.with_name(f"{path.stem} ({number}){path.suffix}").name
