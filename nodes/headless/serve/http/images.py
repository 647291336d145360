"""Check uploaded pictures, and encode pictures in the sizes and channels that clients request.

Every function takes a `Budget` as its last argument and returns the bytes of a file with its content type. This module
does not import torch, so that the decoder process (`decoding.py`) starts quickly.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .....uniworld_core.errors import UniWorldError
from .....uniworld_core.images.orientation import ORIENTED_METADATA, upright
from .....uniworld_core.images.picture_files import Limits, PictureFile

# Pillow's other formats are excluded: some decoders run programs (EPS runs Ghostscript) or read other files.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
MAX_PREVIEW_SIDE = 4096

Source = Path | IO[bytes]
Encoded = tuple[bytes, str]


@dataclass(frozen=True)
class Budget:
    """Limits on decoding: size limits of a picture file, and a `check` that raises after the deadline."""

    limits: Limits
    check: Callable[[], None]


def open_picture(file: Source, budget: Budget, name: str = "") -> PictureFile:
    """Open a picture file within a budget.

    Args:
        name: the file's name in error messages; empty for that of its path.

    Raises:
        UniWorldError: the file is not a picture, or is too large.
    """
    if isinstance(file, Path):
        name = name or file.name
    else:
        file.seek(0)
    return PictureFile(
        file, name, budget.limits, budget.check, tuple(kind for kind in FORMATS if kind in _available_formats())
    )


def _available_formats() -> set[str]:
    Image.init()
    return set(Image.OPEN)


def check_picture(file: IO[bytes], name: str, budget: Budget) -> Encoded:
    """Decode all frames of a picture and return nothing. Raises UniWorldError as `open_picture`, or if it is damaged."""
    with open_picture(file, budget, name) as picture:
        for _ in picture.frames():
            pass
    file.seek(0)
    return b"", ""


def with_alpha_of(original: Source, mask: Source, budget: Budget) -> Encoded:
    """Return the original picture as PNG with the mask's alpha channel, including its workflow metadata.

    The picture is rotated by its EXIF orientation first, since the mask was drawn on the upright picture.

    Raises:
        UniWorldError: as `check_picture`, or the sizes of picture and mask differ.
    """
    with open_picture(mask, budget, "mask") as file:
        alpha = file.guarded(lambda: file.first().convert("RGBA").getchannel("A"))
    with open_picture(original, budget) as file:
        picture = file.first()
        text = PngInfo()
        for key, value in getattr(file.picture, "text", {}).items():
            if key not in ORIENTED_METADATA:
                text.add_text(key, str(value))
        if picture.size != alpha.size:
            raise UniWorldError(
                f"The mask has {alpha.width}x{alpha.height} pixels, but the picture has {picture.width}x{picture.height}."
            )
        masked = file.guarded(lambda: picture.convert("RGBA"))
    masked.putalpha(alpha)
    return _encoded(masked, "PNG", pnginfo=text, compress_level=4)


def preview_of(file: Source, wanted: str, channel: str, budget: Budget) -> Encoded:
    """Return the first frame, upright and compressed. `wanted` is ComfyUI's "format;quality".

    As in ComfyUI, the size is kept, unless a side is longer than `MAX_PREVIEW_SIDE`.

    Raises:
        UniWorldError: as `check_picture`.
    """
    name, _, quality = wanted.rpartition(";") if ";" in wanted else (wanted, "", "")
    kind = name if name in ("webp", "jpeg") and "a" not in channel else "webp"
    level = min(max(int(quality), 1), 100) if quality.isdigit() and len(quality) < 4 else 90

    def shown() -> Image.Image:
        picture = _small(source)
        if kind == "jpeg" or channel == "rgb":
            return picture.convert("RGB")
        if "A" in picture.getbands():
            return picture.convert("RGBA")
        return picture if picture.mode in ("RGB", "L") else picture.convert("RGB")

    with open_picture(file, budget) as source:
        return _encoded(source.guarded(shown), kind, quality=level)


def channel_of(file: Source, channel: str, budget: Budget) -> Encoded:
    """Return a picture without its alpha channel ("rgb"), or only its alpha channel ("a"), upright, as PNG.

    Raises:
        UniWorldError: as `check_picture`.
    """

    def shown() -> Image.Image:
        picture = source.first()
        if channel == "rgb":
            plain = (
                picture if picture.mode in ("L", "RGB") else picture.convert("RGBA")
            )  # keeping L and RGB halves the memory
            return plain.convert("RGB")
        alpha = Image.new("RGBA", picture.size)
        alpha.putalpha(picture.convert("RGBA").getchannel("A"))
        return alpha

    with open_picture(file, budget) as source:
        return _encoded(source.guarded(shown), "PNG")


def as_png(file: Source, budget: Budget) -> Encoded:
    """Return the first frame, upright, as PNG. Raises UniWorldError as `check_picture`, or if pixels are missing."""

    def shown() -> Image.Image:
        picture = source.first()
        return picture.convert("RGBA" if "A" in picture.getbands() or "transparency" in picture.info else "RGB")

    with open_picture(file, budget, "the picture") as source:
        picture = source.guarded(shown)
        if source.damage:  # an answer about half of a picture would be wrong
            raise UniWorldError(f"The picture is truncated or damaged ({source.damage}). Send an intact copy.")
        return _encoded(picture, "PNG", compress_level=1)


def _small(file: PictureFile) -> Image.Image:
    """Return the first frame, scaled down and upright. Scaling comes before conversions that would need more memory."""
    picture = file.picture
    if max(picture.size) <= MAX_PREVIEW_SIDE:
        return file.first()
    if picture.format in ("JPEG", "MPO"):  # decode at a fraction of the size, which is faster
        picture.draft(None, (MAX_PREVIEW_SIDE * 2, MAX_PREVIEW_SIDE * 2))
    picture = file.first(turned=False)
    simple = picture.mode in ("L", "LA", "RGB", "RGBA")
    method = Image.Resampling.BICUBIC if simple else Image.Resampling.NEAREST  # Pillow's only method for other modes
    picture.thumbnail((MAX_PREVIEW_SIDE, MAX_PREVIEW_SIDE), method, reducing_gap=2.0 if simple else None)
    return upright(picture)


def _encoded(picture: Image.Image, kind: str, **options: object) -> Encoded:
    data = io.BytesIO()
    picture.save(data, format=kind, **options)
    return data.getvalue(), f"image/{kind.lower()}"
