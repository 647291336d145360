"""Send files to browsers, and save files from them atomically."""

from __future__ import annotations

import mimetypes
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from aiohttp import web

from .....uniworld_core import files
from .....uniworld_core.images.picture_files import PICTURE_TYPES
from .sending import send_file

# `mimetypes` reads the registry on Windows, which other programs may have changed.
_TYPES = {
    **PICTURE_TYPES, ".js": "text/javascript", ".mjs": "text/javascript", ".css": "text/css", ".html": "text/html",
    ".svg": "image/svg+xml", ".json": "application/json", ".md": "text/markdown", ".wasm": "application/wasm",
    ".woff": "font/woff", ".woff2": "font/woff2", ".ico": "image/x-icon", ".txt": "text/plain",
}  # fmt: skip
# Untrusted files (made by users and workflows) of these types are shown inline: no browser runs scripts in them. Other
# files are downloads, since browsers render many types as pages (.svg, .xml, .rdf, .mml, .atom, .xhtml, ...).
_SHOWN = {
    **PICTURE_TYPES, ".mp4": "video/mp4", ".webm": "video/webm", ".mov": "video/quicktime", ".mkv": "video/x-matroska",
    ".mp3": "audio/mpeg", ".wav": "audio/wav", ".ogg": "audio/ogg", ".opus": "audio/ogg", ".flac": "audio/flac",
    ".m4a": "audio/mp4", ".json": "application/json", ".txt": "text/plain; charset=utf-8",
}  # fmt: skip
_DOWNLOAD = "application/octet-stream"
# Untrusted files must not run scripts, and browsers must not guess another type than the declared one.
SANDBOX = {"Content-Security-Policy": "sandbox", "X-Content-Type-Options": "nosniff"}


def content_type(name: str) -> str:
    return _TYPES.get(Path(name).suffix.lower()) or mimetypes.guess_type(name)[0] or _DOWNLOAD


async def send_trusted(request: web.Request, path: Path, cache: str = "no-cache") -> web.StreamResponse:
    """Send a file of the editor or of a node pack."""
    kind = content_type(path.name)
    if kind.startswith("text/") or kind == "application/json":
        kind += "; charset=utf-8"
    return await send_file(request, path, {"Content-Type": kind, "Cache-Control": cache})


async def send_untrusted(request: web.Request, path: Path) -> web.StreamResponse:
    """Send a file that a user or a workflow made. Browsers never run it as a page or script."""
    return await send_file(request, path, untrusted_headers(path.name))


def untrusted_headers(name: str, kind: str | None = None) -> dict[str, str]:
    """Return the headers for a file that a user or a workflow made.

    Args:
        kind: the content type, if the server sends a converted copy; None to derive it from the name.
    """
    kind = kind or _SHOWN.get(Path(name).suffix.lower(), _DOWNLOAD)
    way = "attachment" if kind == _DOWNLOAD else "inline"
    return {"Content-Type": kind, "Content-Disposition": f"{way}; {_disposition(name)}", **SANDBOX}


def _disposition(name: str) -> str:
    """Return the file name part of a Content-Disposition header, in ASCII and in UTF-8 (RFC 6266)."""
    plain = "".join(
        letter if letter.isascii() and letter.isprintable() and letter not in '"\\' else "_" for letter in name
    )
    return f"filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


def write_atomic(path: Path, data: bytes, replace: bool = True) -> bool:
    """Write a file atomically. Returns False if it exists and must not be replaced.

    The file is not synced to disk, because that would block the event loop and thereby all clients.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if replace:
        files.write_atomic(path, data, sync=False)
        return True
    with files.temporary_file(path.parent, path.name) as file:
        file.write(data)
        return files.rename_new(file, path)


def numbered(name: str) -> Iterator[str]:
    """Yield the name, then ComfyUI's alternatives if it is taken: `cat (1).png`, `cat (2).png`, ..."""
    yield name
    path = Path(name)
    for number in range(1, 100_000):
        yield path.with_name(f"{path.stem} ({number}){path.suffix}").name
