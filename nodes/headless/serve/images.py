"""Pictures in requests: looked at before they are kept, and shown in the sizes and channels that clients ask for."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import IO, Any

from PIL import Image, ImageSequence
from PIL.PngImagePlugin import PngInfo

from ..pictures import MAX_FILE_PIXELS

# No format whose decoder runs other programs or reads other files.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
MAX_PREVIEW_SIDE = 4096
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".apng", ".jfif")


@contextlib.contextmanager
def opened(file: Any) -> Iterator[Image.Image]:
    """A picture whose size is checked before a pixel is decoded.

    Args:
        file: a path, or a file that is open for reading.

    Raises:
        ValueError: it is no picture, is damaged, or is too large. Errors of the block are taken for the picture's.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(file, formats=[name for name in FORMATS if name in _known_formats()])
        with picture:
            _check_size(picture.width * picture.height)
            yield picture
    except Image.DecompressionBombError as error:
        raise ValueError(f"The picture is too large; at most {MAX_FILE_PIXELS} pixels are read.") from error
    except ValueError:
        raise
    except Exception as error:  # what Pillow raises for broken files is of every kind
        raise ValueError("The file is no picture, or is damaged. Use PNG, JPEG or WebP.") from error


def _known_formats() -> set[str]:
    Image.init()
    return set(Image.OPEN)


def _check_size(pixels: int) -> None:
    if pixels > MAX_FILE_PIXELS:
        raise ValueError(f"The picture has {pixels} pixels or more; at most {MAX_FILE_PIXELS} are read. Scale it down.")


def check_picture(file: IO[bytes]) -> None:
    """Decode a picture whole, every frame. Raises ValueError as `opened`."""
    file.seek(0)
    with opened(file) as picture:
        for number, frame in enumerate(ImageSequence.Iterator(picture), start=1):
            _check_size(frame.width * frame.height * number)
            frame.load()
    file.seek(0)


def with_alpha_of(original: Any, mask: IO[bytes]) -> bytes:
    """The original picture as PNG with the mask's alpha channel, its workflow kept. Raises ValueError as `opened`."""
    mask.seek(0)
    with opened(mask) as shape:
        alpha = shape.convert("RGBA").getchannel("A")
    with opened(original) as picture:
        text = PngInfo()
        for key, value in getattr(picture, "text", {}).items():
            text.add_text(key, str(value))
        if picture.size != alpha.size:
            raise ValueError(f"The mask is {alpha.width}x{alpha.height}, the picture {picture.width}x{picture.height}.")
        masked = picture.convert("RGBA")
    masked.putalpha(alpha)
    return _encoded(masked, "PNG", pnginfo=text, compress_level=4)


def preview_of(file: Any, wanted: str, channel: str) -> tuple[bytes, str]:
    """A small file of a picture and its content type; `wanted` is ComfyUI's "format;quality".

    It has the picture's size, as in ComfyUI, unless a side is longer than `MAX_PREVIEW_SIDE`.
    """
    name, _, quality = wanted.rpartition(";") if ";" in wanted else (wanted, "", "")
    kind = name if name in ("webp", "jpeg") and "a" not in channel else "webp"
    level = min(max(int(quality), 1), 100) if quality.isdigit() and len(quality) < 4 else 90
    with opened(file) as picture:
        flat = kind == "jpeg" or channel == "rgb"
        _shrink(picture)
        shown = picture.convert("RGB") if flat else picture.convert("RGBA") if "A" in picture.getbands() else picture
        if shown.mode not in ("RGB", "RGBA", "L"):
            shown = shown.convert("RGB")
        shown.load()
    return _encoded(shown, kind, quality=level), f"image/{kind}"


def channel_of(file: Any, channel: str) -> bytes:
    """A picture without its transparency ("rgb"), or its transparency alone ("a"), as PNG."""
    with opened(file) as picture:
        if channel == "rgb":
            plain = picture if picture.mode in ("L", "RGB") else picture.convert("RGBA")  # half the memory
            return _encoded(plain.convert("RGB"), "PNG")
        alone = Image.new("RGBA", picture.size)
        alone.putalpha(picture.convert("RGBA").getchannel("A"))
    return _encoded(alone, "PNG")


def _shrink(picture: Image.Image) -> None:
    """Make a large picture smaller before it is converted, while it has few bytes per pixel."""
    if max(picture.size) > MAX_PREVIEW_SIDE:
        simple = picture.mode in ("L", "LA", "RGB", "RGBA")
        method = Image.Resampling.BICUBIC if simple else Image.Resampling.NEAREST  # all that others know
        picture.thumbnail((MAX_PREVIEW_SIDE, MAX_PREVIEW_SIDE), method, reducing_gap=2.0 if simple else None)


def _encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    data = io.BytesIO()
    picture.save(data, format=kind, **options)
    return data.getvalue()
