"""Reading multipart forms within limits, and the names that uploaded pictures are kept under."""

from __future__ import annotations

import tempfile
import zlib
from dataclasses import dataclass
from typing import IO

from aiohttp import BodyPartReader, web
from aiohttp.http import HttpProcessingError

from .....uniworld_core.errors import UniWorldError
from .....uniworld_core.images.picture_files import PICTURE_TYPES
from .replies import Refused, refuse_announced, too_large

FORM_BYTES = 2**20  # what the fields and headers of a form may have beside its file
_MAX_PARTS = 64
_SPOOLED_BYTES = 2**20  # larger files are on disk while they are read
_PLAIN = ("binary", "8bit", "7bit")
# The first bytes of the formats that are accepted, and where they stand.
_SIGNATURES = (
    (0, b"\x89PNG", ".png"), (0, b"\xff\xd8\xff", ".jpg"), (0, b"GIF8", ".gif"), (8, b"WEBP", ".webp"), (0, b"BM", ".bmp"),
    (0, b"II", ".tiff"), (0, b"MM", ".tiff"), (4, b"ftyp", ".avif"),
)  # fmt: skip


@dataclass(frozen=True)
class Form:
    """A form: the file of its field "image" under the name that the client gave it, and its texts."""

    file: IO[bytes]
    filename: str
    texts: dict[str, str]

    def text(self, name: str) -> str:
        return self.texts.get(name, "")


async def read_form(request: web.Request, limit: int) -> Form:
    """The multipart form of a request, whose field "image" is a file of at most `limit` bytes.

    Raises:
        Refused: it is none, or it is too large.
    """
    if not request.content_type.startswith("multipart/"):
        raise Refused(400, "no_image", 'Send the picture as the field "image" of a multipart form.')
    refuse_announced(request, limit + FORM_BYTES)
    form = Form(tempfile.SpooledTemporaryFile(_SPOOLED_BYTES), "", {})  # noqa: SIM115 (goes with the form)
    try:
        filename = await _read_parts(request, form, limit + FORM_BYTES)
    except (ValueError, AssertionError, LookupError, RuntimeError, zlib.error, HttpProcessingError) as error:
        raise Refused(400, "invalid_form", "The multipart form cannot be read.") from error
    if not filename:
        raise Refused(400, "no_image", 'Send the picture as the field "image" of a multipart form.')
    form.file.seek(0)
    return Form(form.file, filename, form.texts)


async def _read_parts(request: web.Request, form: Form, limit: int) -> str:
    """Read all parts into `form`; gives the name of the file."""
    reader, filename, size, parts = await request.multipart(), "", 0, 0
    while (part := await reader.next()) is not None:
        parts += 1
        if not isinstance(part, BodyPartReader) or parts > _MAX_PARTS:
            raise UniWorldError("a form in the form, or too many parts")
        if (
            part.headers.get("Content-Encoding")
            or part.headers.get("Content-Transfer-Encoding", "binary") not in _PLAIN
        ):
            raise UniWorldError("an encoded part")  # browsers and programs send files as they are
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
    """The name that a picture is kept under: browsers call a picture "blob", which no node takes for one.

    A name with the extension of a picture is kept; to any other the extension of the content is added.
    """
    if name.lower().endswith(tuple(PICTURE_TYPES)):
        return name
    found = (suffix for start, sign, suffix in _SIGNATURES if data[start : start + len(sign)] == sign)
    return name.rstrip(".") + next(found, ".png")
