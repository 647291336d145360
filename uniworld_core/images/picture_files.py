"""Picture files that may be anything: opened and decoded within limits, tolerant of damage, cancellable, upright.

This module imports no torch, so that a process which only decodes starts at once.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from ..errors import UniWorldError

T = TypeVar("T")

# Suffixes of picture files, in lower case, and the media types that such files are sent as.
PICTURE_TYPES = {
    ".png": "image/png", ".apng": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".jfif": "image/jpeg",
    ".mpo": "image/jpeg", ".webp": "image/webp", ".gif": "image/gif", ".bmp": "image/bmp", ".tif": "image/tiff",
    ".tiff": "image/tiff", ".avif": "image/avif",
}  # fmt: skip
# Above this many pixels, all frames together, a file is taken for a decompression bomb: 128 Mi pixels are 1.5 GiB as
# float32 RGB, and more than any camera makes.
MAX_PIXELS = 2**27
# A minute of video at 60 frames a second has 3,600. Every frame costs time and memory, however small it is.
MAX_FRAMES = 4096

# A progressive JPEG may hold thousands of scans of the whole picture in a few kilobytes, and `check` runs only when
# Pillow asks for more bytes.
_CHECKED_BYTES = 4096
# What Pillow says about text and color profiles beyond its limits (PngImagePlugin, 10.1 to 13).
_TEXT_LIMITS = ("decompressed data too large", "memory used in text chunks")


@dataclass(frozen=True)
class Limits:
    """How much of a picture file is decoded: pixels of all frames together, and frames."""

    pixels: int = MAX_PIXELS
    frames: int = MAX_FRAMES


LIMITS = Limits()


class BadPicture(UniWorldError):
    """A picture file cannot be read or decoded; the message is a sentence that names it."""


class TooMuch(BadPicture):
    """A picture file is larger than the limits."""


class PictureFile:
    """A picture file that is open for reading; a context manager.

    What ComfyUI's LoadImage decodes is decoded, with the same pixels: where Pillow's strict reading fails, its tolerant
    one is tried, and `warning` says so.

    Attributes:
        picture: as Pillow opened it.
        warning: a sentence on what is wrong with a picture that was decoded all the same; empty if nothing is.
        damage: why not all its pixels are there; empty if they are.
    """

    def __init__(
        self,
        file: Path | IO[bytes],
        name: str,
        limits: Limits | None = None,
        check: Callable[[], None] | None = None,
        formats: tuple[str, ...] | None = None,
    ) -> None:
        """Open a picture; no pixel is decoded yet.

        Args:
            file: a path, or a file that is open for reading and stays open.
            name: what messages call it.
            check: called at every read and before every frame; what it raises ends the decoding.
            formats: Pillow's names of the formats to try; None for all.

        Raises:
            TooMuch: the picture has too many pixels or frames.
            UniWorldError: the file cannot be read, or is no picture.
        """
        self.name, self.warning, self.damage = name, "", ""
        self._limits, self._check = limits or LIMITS, _Check(check)
        self._opened: IO[bytes] | None = None
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
            self.picture.__exit__(None, None, None)  # `close` would close the file of others as well
        if self._opened is not None:
            self._opened.close()

    def first(self, turned: bool = True) -> Image.Image:
        """The first frame, decoded; upright unless `turned` is false. Raises UniWorldError if it cannot be decoded."""
        self.guarded(lambda: self._tolerantly(self.picture.load))
        return self.guarded(lambda: upright(self.picture)) if turned else self.picture

    def frames(self) -> Iterator[Image.Image]:
        """All frames, decoded and upright; the first one alone of an MPO file, whose others are a camera's previews.

        A frame is valid until the next one is asked for.

        Raises:
            TooMuch: there are too many, or they have too many pixels together.
            UniWorldError: one cannot be decoded.
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
        """The result of an action on the picture, with what Pillow raises about it as one sentence.

        Pillow's decoders raise errors of every type for damaged files (of libavif a RuntimeError, of struct its own, and
        whatever unpacking nonsense leads to), so all of them count as damage, but not a lack of memory, nor what the
        `check` raises, whatever its type.

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
            raise self._sentence(error) from error

    def _tolerantly(self, action: Callable[[], T]) -> T:
        # The same errors as in ComfyUI (node_helpers.pillow) are worth a second try.
        try:
            return action()
        except (OSError, ValueError) as error:
            if self._check.raised is not None:
                raise
            with tolerant():
                result = action()
            if _is_about_text(error):
                what = "has more metadata than can be read, and is used without them. Its pixels are whole."
            else:
                self.damage = "its header" if isinstance(error, UnidentifiedImageError) else str(error)
                what = f"is damaged or cut short ({self.damage}). What is missing is gray or black: get a whole copy of it."
            self.warning = self.warning or f"The picture '{self.name}' {what}"
            return result

    def _check_size(self) -> None:
        width, height = self.picture.size
        if width * height > self._limits.pixels:
            raise TooMuch(self._too_large(f"{width}x{height}", "Scale it down."))
        # Some formats say how many frames they have; others would have to be walked through.
        if self.picture.format != "MPO" and vars(self.picture).get("n_frames", 1) > self._limits.frames:
            raise TooMuch(self._too_many_frames())

    def _too_large(self, what: str, fix: str) -> str:
        return f"The picture '{self.name}' is too large ({what}); at most {self._limits.pixels} pixels are read. {fix}"

    def _too_many_frames(self) -> str:
        return (
            f"The picture '{self.name}' has too many frames; at most {self._limits.frames} are read. "
            "Split it into shorter files, or keep every second frame."
        )

    def _sentence(self, error: Exception) -> BadPicture:
        name = self.name
        if isinstance(error, Image.DecompressionBombError):
            return TooMuch(self._too_large("Pillow takes it for a decompression bomb", "Scale it down."))
        if isinstance(error, _Empty):
            return BadPicture(f"The picture '{name}' is an empty file. Get a whole copy of it.")
        if isinstance(error, UnidentifiedImageError):
            return BadPicture(
                f"The file '{name}' is not a picture that can be read, or its header is damaged. Use PNG, JPEG or WebP."
            )
        if _is_about_text(error):
            return BadPicture(f"The picture '{name}' has more metadata than can be read. Save it again without them.")
        if isinstance(error, OSError) and error.strerror:
            return BadPicture(f"The picture '{name}' cannot be read: {error.strerror}. Check the file.")
        why = str(error) or type(error).__name__
        return BadPicture(f"The picture '{name}' is damaged or cut short ({why}). Get a whole copy of it.")


def _is_about_text(error: BaseException) -> bool:
    return any(words in str(error).lower() for words in _TEXT_LIMITS)


class _Check:
    """A `check` that keeps what it raised, so that it can be told from what Pillow raises."""

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
    """Decoding took longer than it may; for a `check`."""


def deadline(seconds: float) -> Callable[[], None]:
    """A `check` that raises TooSlow when that many seconds have passed from now on."""
    end = time.monotonic() + seconds

    def check() -> None:
        if time.monotonic() > end:
            raise TooSlow(f"It takes more than {seconds:g} seconds.")

    return check


class _Empty(Exception):
    pass


class _WatchedFile:
    """An open file whose reads first call `check`."""

    def __init__(self, file: IO[bytes], check: Callable[[], None]) -> None:
        self._file, self._check = file, check

    def read(self, size: int = -1) -> bytes:
        self._check()
        return self._file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


# Filters of warnings belong to the process.
_filters = threading.Lock()


def _open(file: Any, formats: tuple[str, ...] | None) -> Image.Image:
    file.seek(0, os.SEEK_END)
    if not file.tell():
        raise _Empty
    with _filters, warnings.catch_warnings():
        # Our own limit lies under Pillow's error and says what to do; of a malformed MPO file the first picture is used.
        warnings.simplefilter("ignore")
        return Image.open(file, formats=formats)


# --- Pillow's tolerance of damage, for one thread ---------------------------------------------------------------------

_thread = threading.local()
_flag_lock = threading.Lock()
_flag_users = 0


class _ThreadsFlag:
    """In the place of `ImageFile.LOAD_TRUNCATED_IMAGES`: true in the threads inside `tolerant`, as before elsewhere."""

    def __init__(self, elsewhere: Any) -> None:
        self.elsewhere = elsewhere

    def __bool__(self) -> bool:
        return getattr(_thread, "tolerant", False) or bool(self.elsewhere)


@contextlib.contextmanager
def tolerant() -> Iterator[None]:
    """Let Pillow decode damaged files in this thread.

    Pillow has one switch for the whole process, which other code may read and set at the same time: other threads go on
    to see their own value, and when nobody is inside any more, the switch is as it was.
    """
    global _flag_users
    with _flag_lock:
        _flag_users += 1
        if not isinstance(ImageFile.LOAD_TRUNCATED_IMAGES, _ThreadsFlag):
            ImageFile.LOAD_TRUNCATED_IMAGES = _ThreadsFlag(ImageFile.LOAD_TRUNCATED_IMAGES)  # type: ignore[assignment]
    _thread.tolerant = True
    try:
        yield
    finally:
        _thread.tolerant = False
        with _flag_lock:
            _flag_users -= 1
            flag = ImageFile.LOAD_TRUNCATED_IMAGES
            if not _flag_users and isinstance(flag, _ThreadsFlag):
                ImageFile.LOAD_TRUNCATED_IMAGES = flag.elsewhere


# --- EXIF orientation -------------------------------------------------------------------------------------------------

# What brings a picture of each EXIF orientation upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Where a picture's metadata say how it is to be turned, and so what must not be copied to one that is upright already.
ORIENTED_METADATA = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif", "Raw profile type APP1")


def upright(picture: Image.Image) -> Image.Image:
    """A picture turned as its EXIF says; as it is where it has none, or one that cannot be read, as viewers show it.

    A turned picture no longer carries the metadata that say so.
    """
    turn = _TURNS.get(orientation(picture))
    if turn is None:
        return picture
    turned = picture.transpose(turn)
    for key in ORIENTED_METADATA:
        turned.info.pop(key, None)
    return turned


def orientation(picture: Image.Image) -> int:
    """EXIF's orientation, 1 to 8: 1 is upright, and 5 to 8 lie on a side. 1 where none can be read."""
    try:
        value = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF makes Pillow's readers raise errors of any type; the picture itself is whole
        return 1
    return value if value in range(1, 9) else 1


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """Width and height of an upright picture, from the header of a file alone."""
    width, height = picture.size
    if picture.format == "TIFF" and hasattr(picture, "tag_v2"):
        # Newer versions of Pillow give the upright size of a TIFF, older ones the size that its tags say.
        width, height = picture.tag_v2.get(ExifTags.Base.ImageWidth), picture.tag_v2.get(ExifTags.Base.ImageLength)
    return (height, width) if orientation(picture) >= 5 else (width, height)
