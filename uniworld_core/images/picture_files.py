"""Decoding of untrusted picture files: within limits, tolerant of damage, cancellable, and upright.

This module does not import torch, so that a process that only decodes pictures starts fast.
"""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from PIL import Image, ImageFile, UnidentifiedImageError

from ..errors import UniWorldError
from .orientation import upright
from .tolerance import tolerant

T = TypeVar("T")

# Suffixes of picture files in lower case, and their media types.
PICTURE_TYPES = {
    ".png": "image/png", ".apng": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".jfif": "image/jpeg",
    ".mpo": "image/jpeg", ".webp": "image/webp", ".gif": "image/gif", ".bmp": "image/bmp", ".tif": "image/tiff",
    ".tiff": "image/tiff", ".avif": "image/avif",
}  # fmt: skip
# A file with more pixels in all its frames counts as a decompression bomb. 128 Mi pixels take 1.5 GiB as float32 RGB, and
# no camera makes larger pictures.
MAX_PIXELS = 2**27
# A minute of video at 60 frames per second has 3,600. Every frame costs time and memory, even a tiny one.
MAX_FRAMES = 4096

# `check` runs whenever Pillow reads more bytes. The reads are small, because a few kilobytes of a progressive JPEG may hold
# thousands of scans of the whole picture.
_CHECKED_BYTES = 4096
# Parts of Pillow's messages about texts and color profiles beyond its limits (PngImagePlugin, 10.1 to 13).
_TEXT_LIMITS = ("decompressed data too large", "memory used in text chunks")


@dataclass(frozen=True)
class Limits:
    """Limits on what is decoded.

    Attributes:
        pixels: pixels of all frames together.
        frames: number of frames.
    """

    pixels: int = MAX_PIXELS
    frames: int = MAX_FRAMES


LIMITS = Limits()


class BadPicture(UniWorldError):
    """A picture file cannot be read or decoded. The message names the file."""


class TooMuch(BadPicture):
    """A picture file exceeds the limits."""


class PictureFile:
    """A picture file opened for reading; a context manager.

    It decodes every file that ComfyUI's LoadImage decodes, to the same pixels. If Pillow's strict decoding fails, its
    tolerant mode is tried, and `warning` reports the damage.

    Attributes:
        picture: the picture as Pillow opened it.
        warning: a sentence about the damage of a picture that was decoded nevertheless; empty if it is intact.
        damage: why some of its pixels are missing; empty if none are.
    """

    def __init__(
        self,
        file: Path | IO[bytes],
        name: str,
        limits: Limits | None = None,
        check: Callable[[], None] | None = None,
        formats: tuple[str, ...] | None = None,
    ) -> None:
        """Open a picture without decoding its pixels.

        Args:
            file: a path, or a file opened for reading, which is not closed.
            name: name of the picture in messages.
            limits: limits on pixels and frames; None for `LIMITS`.
            check: called at every read and before every frame. An exception from it cancels the decoding.
            formats: Pillow's names of the formats to try; None for all.

        Raises:
            TooMuch: the picture has too many pixels or frames.
            UniWorldError: the file cannot be read, or is not a picture.
        """
        self.name, self.warning, self.damage = name, "", ""
        self._limits, self._check = limits or LIMITS, _Check(check)
        self._opened: IO[bytes] | None = None
        self._formats = formats
        try:
            self.picture: Image.Image = self.guarded(lambda: self._open(file, formats, check is not None))
            self._check_size()
        except BaseException:
            self.close()
            raise
        if check is not None and isinstance(self.picture, ImageFile.ImageFile):
            self.picture.decodermaxblock = _CHECKED_BYTES

    def _open(self, file: Path | IO[bytes], formats: tuple[str, ...] | None, watch: bool) -> Image.Image:
        if isinstance(file, Path):
            file = self._opened = file.open("rb")
        watched: Any = _WatchedFile(file, self._check) if watch else file
        return self._tolerantly(lambda: _open(watched, formats))

    def __enter__(self) -> PictureFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if hasattr(self, "picture"):
            self.picture.__exit__(None, None, None)  # `close` would also close a file that was passed in
        if self._opened is not None:
            self._opened.close()

    def first(self, turned: bool = True) -> Image.Image:
        """Decode the first frame; upright unless `turned` is False. Raises UniWorldError if it cannot be decoded."""
        self.guarded(lambda: self._tolerantly(self.picture.load))
        return self.guarded(lambda: upright(self.picture)) if turned else self.picture

    def frames(self) -> Iterator[Image.Image]:
        """Decode the frames one by one, upright. A frame is valid until the next one is requested.

        Of an MPO file only the first frame is decoded: the others are a camera's previews.

        Raises:
            TooMuch: there are too many frames, or they have too many pixels together.
            UniWorldError: a frame cannot be decoded.
        """
        pixels = 0
        for number in range(1 if self.picture.format == "MPO" else self._limits.frames + 1):
            self._check()
            if not self.guarded(lambda number=number: self._seek(number)):  # type: ignore[misc]
                return
            if number == self._limits.frames:
                raise TooMuch(self._too_many_frames())
            pixels += self.picture.width * self.picture.height
            if pixels > self._limits.pixels:
                what = f"the first {number + 1} frames have {pixels} pixels together"
                raise TooMuch(self._too_large(what, "Scale it down, or keep fewer frames."))
            yield self.first()

    def _seek(self, number: int) -> bool:
        try:
            self.picture.seek(number)
        except EOFError:
            return False
        return True

    def guarded(self, action: Callable[[], T]) -> T:
        """Run an action on the picture, and convert Pillow's exceptions to `BadPicture`.

        For damaged files Pillow's decoders raise exceptions of any type: RuntimeError from libavif, struct.error, and others.
        All of them count as damage, except MemoryError and what `check` raised.

        Raises:
            BadPicture: the action failed.
        """
        try:
            return action()
        except (BadPicture, MemoryError):
            raise
        except Exception as error:
            if self._check.raised is not None:
                raise self._check.raised from None
            raise self._bad_picture(error) from error

    def _tolerantly(self, action: Callable[[], T]) -> T:
        # ComfyUI retries on the same exceptions (node_helpers.pillow).
        try:
            return action()
        except (OSError, ValueError) as error:
            if self._check.raised is not None:
                raise
            with tolerant():
                result = action()
            if _is_about_text(error):
                what = "has more metadata than can be read, and is used without it. Its pixels are complete."
            else:
                self.damage = "its header" if isinstance(error, UnidentifiedImageError) else str(error)
                what = f"is truncated or damaged ({self.damage}). Missing pixels are gray or black: get an intact copy of it."
            self.warning = self.warning or f"The picture '{self.name}' {what}"
            return result

    def _check_size(self) -> None:
        width, height = self.picture.size
        if width * height > self._limits.pixels:
            raise TooMuch(self._too_large(f"{width}x{height}", "Scale it down."))
        # Formats that store the number of frames are checked now. For others Pillow would have to read the whole file.
        if self.picture.format != "MPO" and vars(self.picture).get("n_frames", 1) > self._limits.frames:
            raise TooMuch(self._too_many_frames())

    def _too_large(self, what: str, fix: str) -> str:
        return f"The picture '{self.name}' is too large ({what}); at most {self._limits.pixels} pixels are read. {fix}"

    def _too_many_frames(self) -> str:
        return (
            f"The picture '{self.name}' has too many frames; at most {self._limits.frames} are read. "
            "Split it into shorter files, or keep every second frame."
        )

    def _bad_picture(self, error: Exception) -> BadPicture:
        name = self.name
        if isinstance(error, Image.DecompressionBombError):
            return TooMuch(self._too_large("Pillow considers it a decompression bomb", "Scale it down."))
        if isinstance(error, _Empty):
            return BadPicture(f"The picture '{name}' is an empty file. Get an intact copy of it.")
        if isinstance(error, UnidentifiedImageError):
            usable = "PNG, JPEG or WebP" if self._formats is None else " or ".join(self._formats)
            return BadPicture(
                f"The file '{name}' is not a picture that can be read, or its header is damaged. Use {usable}."
            )
        if _is_about_text(error):
            return BadPicture(
                f"The picture '{name}' has more metadata than can be read. Save it again without metadata."
            )
        if isinstance(error, OSError) and error.strerror:
            return BadPicture(f"The picture '{name}' cannot be read: {error.strerror}. Check the file.")
        why = str(error) or type(error).__name__
        return BadPicture(f"The picture '{name}' is truncated or damaged ({why}). Get an intact copy of it.")


def _is_about_text(error: BaseException) -> bool:
    return any(words in str(error).lower() for words in _TEXT_LIMITS)


class _Check:
    """A `check` that remembers the exception it raised, which tells it apart from Pillow's own."""

    def __init__(self, check: Callable[[], None] | None) -> None:
        self._check = check
        self.raised: BaseException | None = None

    def __call__(self) -> None:
        if self._check is None:
            return
        try:
            self._check()
        except BaseException as error:
            self.raised = error
            raise


class TooSlow(Exception):
    """Decoding took too long; raised by `deadline`."""


def deadline(seconds: float) -> Callable[[], None]:
    """Return a `check` that raises TooSlow once `seconds` have passed from now."""
    end = time.monotonic() + seconds

    def check() -> None:
        if time.monotonic() > end:
            raise TooSlow(f"Decoding takes more than {seconds:g} seconds.")

    return check


class _Empty(Exception):
    pass


class _WatchedFile:
    """An open file that calls `check` before every read."""

    def __init__(self, file: IO[bytes], check: Callable[[], None]) -> None:
        self._file, self._check = file, check

    def read(self, size: int = -1) -> bytes:
        self._check()
        return self._file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


# Warning filters are global to the process, so only one thread at a time may change them.
_filters = threading.Lock()


def _open(file: Any, formats: tuple[str, ...] | None) -> Image.Image:
    file.seek(0, os.SEEK_END)
    if not file.tell():
        raise _Empty
    with _filters, warnings.catch_warnings():
        # Pillow warns of large pictures, for which `Limits` has its own check, and of malformed MPO files, whose first
        # picture is used.
        warnings.simplefilter("ignore")
        return Image.open(file, formats=formats)
