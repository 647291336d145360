"""Sending files to browsers and keeping files from them, whole or not at all."""

from __future__ import annotations

import mimetypes
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from aiohttp import web

# Types in which a browser would run scripts on our own page's behalf: such files are downloaded, not shown.
_ACTIVE = ("text/html", "application/xhtml+xml", "image/svg+xml", "text/xml", "application/xml")
_ACTIVE_WORDS = ("javascript", "ecmascript", "text/css", "html")
# Windows takes these from its registry, where other programs write.
_TYPES = {
    ".js": "text/javascript", ".mjs": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml",
    ".json": "application/json", ".md": "text/markdown", ".wasm": "application/wasm", ".woff": "font/woff",
    ".woff2": "font/woff2", ".webp": "image/webp", ".avif": "image/avif", ".png": "image/png", ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg", ".gif": "image/gif", ".ico": "image/x-icon", ".txt": "text/plain",
}  # fmt: skip


def content_type(name: str) -> str:
    return _TYPES.get(Path(name).suffix.lower()) or mimetypes.guess_type(name)[0] or "application/octet-stream"


def send_own(path: Path, cache: str = "no-cache") -> web.FileResponse:
    """A file of the editor or of a node pack."""
    kind = content_type(path.name)
    if kind.startswith("text/") or kind == "application/json":
        kind += "; charset=utf-8"
    return web.FileResponse(path, headers={"Content-Type": kind, "Cache-Control": cache})


def send_foreign(path: Path) -> web.FileResponse:
    """A file that a user or a workflow made: never run as a page or a script."""
    kind = content_type(path.name)
    if kind in _ACTIVE or any(word in kind for word in _ACTIVE_WORDS):
        kind = "application/octet-stream"
    return web.FileResponse(path, headers={"Content-Type": kind, "Content-Disposition": disposition(path.name)})


def disposition(name: str) -> str:
    """The header that names a file; other alphabets go the long way of RFC 6266."""
    plain = "".join(
        letter if letter.isascii() and letter.isprintable() and letter not in '"\\' else "_" for letter in name
    )
    return f"filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


def write_whole(path: Path, data: bytes, replace: bool = True) -> bool:
    """Write a file that is there whole or not at all; False if it exists and may not be replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.parent / f".{secrets.token_hex(8)}.part"
    try:
        part.write_bytes(data)
        if replace:
            part.replace(path)
            return True
        return _rename_new(part, path)
    finally:
        part.unlink(missing_ok=True)


def _rename_new(part: Path, path: Path) -> bool:
    try:
        if os.name == "nt":
            part.rename(path)  # fails where the file exists
        else:
            os.link(part, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        if path.exists():
            return False
        part.rename(path)
    return True


def numbered(name: str) -> Iterator[str]:
    """The name, and then ComfyUI's names for files of the same name: `cat (1).png`, `cat (2).png`, ..."""
    yield name
    path = Path(name)
    for number in range(1, 100_000):
        yield path.with_name(f"{path.stem} ({number}){path.suffix}").name
