"""Multipart forms within size limits, and file names of uploaded pictures."""

from __future__ import annotations

import tempfile
import zlib
from dataclasses import dataclass
from typing import IO

from aiohttp import BodyPartReader, web
from aiohttp.http import HttpProcessingError

from .....uniworld_core.errors import UniWorldError
from .....uniworld_core.images.picture_files import PICTURE_TYPES
from .responses import RequestError, check_content_length, too_large

FORM_BYTES = 2**20  # for the fields and headers of a form, in addition to its file
_MAX_PARTS = 64
_SPOOLED_BYTES = 2**20  # larger files are on disk while they are read
_PLAIN = ("binary", "8bit", "7bit")
# Offset and magic bytes of the accepted formats.
_SIGNATURES = (
    (0, b"\x89PNG", ".png"), (0, b"\xff\xd8\xff", ".jpg"), (0, b"GIF8", ".gif"), (8, b"WEBP", ".webp"), (0, b"BM", ".bmp"),
    (0, b"II", ".tiff"), (0, b"MM", ".tiff"), (4, b"ftyp", ".avif"),
)  # fmt: skip


@dataclass(frozen=True)
class Form:
    """A multipart form: the file of its field "image", the client's name for it, and the text fields."""

    file: IO[bytes]
    filename: str
    texts: dict[str, str]

    def text(self, name: str) -> str:
        return self.texts.get(name, "")


async def read_form(request: web.Request, limit: int) -> Form:
    """Read the multipart form of a request, with a file of at most `limit` bytes in its field "image".

    Raises:
        RequestError: the request is not such a form, or it is too large.
    """
    if not request.content_type.startswith("multipart/"):
        raise RequestError(400, "no_image", 'Send the picture as the field "image" of a multipart form.')
    check_content_length(request, limit + FORM_BYTES)
    form = Form(tempfile.SpooledTemporaryFile(_SPOOLED_BYTES), "", {})  # noqa: SIM115 (closed together with the form)
    try:
        filename = await _read_parts(request, form, limit + FORM_BYTES)
    except (ValueError, AssertionError, LookupError, RuntimeError, zlib.error, HttpProcessingError) as error:
        raise RequestError(400, "invalid_form", "The multipart form cannot be read.") from error
    if not filename:
        raise RequestError(400, "no_image", 'Send the picture as the field "image" of a multipart form.')
    form.file.seek(0)
    return Form(form.file, filename, form.texts)


async def _read_parts(request: web.Request, form: Form, limit: int) -> str:
    """Read all parts into `form` and return the file's name."""
    reader, filename, size, parts = await request.multipart(), "", 0, 0
    while (part := await reader.next()) is not None:
        parts += 1
        if not isinstance(part, BodyPartReader) or parts > _MAX_PARTS:
            raise UniWorldError("the form is nested or has too many parts")
        if (
            part.headers.get("Content-Encoding")
            or part.headers.get("Content-Transfer-Encoding", "binary") not in _PLAIN
        ):
            raise UniWorldError("a part is encoded")  # browsers never do this, and `read_chunk` does not decode
        is_file = part.name == "image" and bool(part.filename) and not filename
        text = bytearray()
        while chunk := await part.read_chunk(2**16):
            size += len(chunk)
            if size > limit:
                raise too_large(limit)
            if is_file:
                form.file.write(chunk)
            elif not part.filename:
                text += chunk
                if len(text) > FORM_BYTES:
                    raise too_large(FORM_BYTES)
        if is_file:
            filename = part.filename or ""
        elif part.name and not part.filename:
            form.texts[part.name] = text.decode(part.get_charset("utf-8"))
    return filename


def picture_name(name: str, data: bytes) -> str:
    """Return the file name for an uploaded picture.

    A name with a picture's extension is kept. To any other name the extension of the content is added: browsers may send
    "blob", and nodes recognize pictures by their extension.
    """
    if name.lower().endswith(tuple(PICTURE_TYPES)):
        return name
    found = (suffix for start, sign, suffix in _SIGNATURES if data[start : start + len(sign)] == sign)
    return name.rstrip(".") + next(found, ".png")
