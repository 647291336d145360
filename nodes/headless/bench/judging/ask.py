"""A question to a judge model: texts and pictures, and the hash by which its reply is found again."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from .....uniworld_core.errors import UniWorldError, brief

_MIMES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif"}


@dataclass(frozen=True)
class AskPicture:
    """A picture of a question.

    Attributes:
        form: "file" sends the file unchanged; "jpeg" sends it as RGB in JPEG with Pillow's default quality.
        size: width and height to resize it to (bicubic), for the form "jpeg"; None keeps its size.
        box: left, top, right and bottom of the part to send, as PNG; None sends the whole picture.
    """

    path: Path
    form: Literal["file", "jpeg"] = "file"
    size: tuple[int, int] | None = None
    box: tuple[int, int, int, int] | None = None

    def data_url(self) -> str:
        """Return the picture as a data URL. Raises UniWorldError if the file cannot be read."""
        with self._named_errors():
            data, kind = self._encoded()
        return f"data:{kind};base64,{base64.b64encode(data).decode()}"

    def decoded(self) -> Image.Image:
        """Return the picture that is sent as RGB. Raises UniWorldError if the file cannot be read."""
        with self._named_errors(), Image.open(io.BytesIO(self._encoded()[0])) as picture:
            return picture.convert("RGB")

    def pixels(self) -> tuple[int, int]:
        """Return the width and height that are sent. Raises UniWorldError if the file cannot be read."""
        if self.size is not None:
            return self.size
        if self.box is not None:
            return self.box[2] - self.box[0], self.box[3] - self.box[1]
        with self._named_errors(), Image.open(self.path) as picture:
            return picture.size

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise UniWorldError(f"The picture '{self.path}' cannot be read: {brief(error)}. Replace it.") from error

    def _encoded(self) -> tuple[bytes, str]:
        with Image.open(self.path) as picture:
            if self.box is not None:
                return _saved(picture.convert("RGB").crop(self.box), "PNG"), "image/png"
            if self.form == "file":
                kind = _MIMES.get(picture.format or "")
                if kind is not None:
                    return self.path.read_bytes(), kind
                return _saved(picture.convert("RGBA" if "A" in picture.getbands() else "RGB"), "PNG"), "image/png"
            rgb = picture.convert("RGB")
            return _saved(rgb if self.size in (None, rgb.size) else rgb.resize(self.size), "JPEG"), "image/jpeg"


def _saved(picture: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()


@dataclass(frozen=True)
class Ask:
    """One question.

    Attributes:
        kind: names the question among those about the same result.
        system: text of the system message; "" for none.
        text: text of the user's message, sent before the pictures.
        pictures_first: whether the pictures are sent before the text instead.
        max_tokens, temperature: as in the published script; None leaves them to the server.
        thinking: False asks a model that thinks by default to reply directly; None leaves it to the server.
    """

    kind: str
    text: str
    pictures: tuple[AskPicture, ...] = ()
    system: str = ""
    max_tokens: int | None = None
    temperature: float | None = None
    pictures_first: bool = False
    thinking: bool | None = None

    def key(self, model: str, attempt: int, digest: Callable[[Path], str]) -> str:
        """Return the hash of the request: of everything that the reply depends on, but not of the server's address.

        Pictures count by their files, not by their encoding, which may differ between versions of Pillow.

        Args:
            attempt: number of the attempt; an unreadable reply is asked for again under another key.
            digest: returns the hash of a file.
        """
        pictures = [
            [digest(one.path), one.form, one.size, *([one.box] if one.box is not None else [])] for one in self.pictures
        ]
        order = ["pictures first"] if self.pictures_first else []
        thinking = [] if self.thinking is None else [f"thinking {self.thinking}"]
        content = [
            model,
            self.system,
            self.text,
            pictures,
            self.max_tokens,
            self.temperature,
            attempt,
            *order,
            *thinking,
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def messages(self) -> list[dict[str, Any]]:
        """Return the messages of a chat completion. Raises UniWorldError if a picture cannot be read."""
        pictures = [{"type": "image_url", "image_url": {"url": one.data_url()}} for one in self.pictures]
        text = {"type": "text", "text": self.text}
        content = [*pictures, text] if self.pictures_first else [text, *pictures]
        user: dict[str, Any] = {"role": "user", "content": content}
        system = [{"role": "system", "content": [{"type": "text", "text": self.system}]}] if self.system else []
        return [*system, user]
