"""Pictures in requests: checked before they are kept, and shown in the sizes and channels that clients ask for.

Every function takes a `Budget` last, and gives the bytes of a file with its content type. This module imports no torch,
so that a process which only decodes starts at once (`decoding.py`).
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
from .....uniworld_core.images.picture_files import ORIENTED_METADATA, Limits, PictureFile, upright

# No format whose decoder runs other programs or reads other files.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
MAX_PREVIEW_SIDE = 4096

Source = Path | IO[bytes]
Encoded = tuple[bytes, str]


@dataclass(frozen=True)
class Budget:
    """How much decoding may cost: the limits of a picture file, and a `check` that raises when time is up."""

    limits: Limits
    check: Callable[[], None]


def opened(file: Source, budget: Budget, name: str = "") -> PictureFile:
    """A picture file within the budget; messages call it `name`, or by its path.

    Raises:
        UniWorldError: it is no picture, or is too large.
    """
    if isinstance(file, Path):
        name = name or file.name
    else:
        file.seek(0)
    return PictureFile(file, name, budget.limits, budget.check, tuple(kind for kind in FORMATS if kind in _known()))


def _known() -> set[str]:
    Image.init()
    return set(Image.OPEN)


def check_picture(file: IO[bytes], name: str, budget: Budget) -> Encoded:
    """Decode a picture whole, every frame, and give nothing. Raises UniWorldError as `opened`, or it is damaged."""
    with opened(file, budget, name) as picture:
        for _ in picture.frames():
            pass
    file.seek(0)
    return b"", ""


def with_alpha_of(original: Source, mask: Source, budget: Budget) -> Encoded:
    """The original picture as PNG with the mask's alpha channel, upright as the mask was drawn, its workflow kept.

    Raises:
        UniWorldError: as `check_picture`, or the mask is of another size.
    """
    with opened(mask, budget, "mask") as file:
        alpha = file.guarded(lambda: file.first().convert("RGBA").getchannel("A"))
    with opened(original, budget) as file:
        picture = file.first()
        text = PngInfo()
        for key, value in getattr(file.picture, "text", {}).items():
            if key not in ORIENTED_METADATA:
                text.add_text(key, str(value))
        if picture.size != alpha.size:
            raise UniWorldError(
                f"The mask is {alpha.width}x{alpha.height}, the picture {picture.width}x{picture.height}."
            )
        masked = file.guarded(lambda: picture.convert("RGBA"))
    masked.putalpha(alpha)
    return _encoded(masked, "PNG", pnginfo=text, compress_level=4)


def preview_of(file: Source, wanted: str, channel: str, budget: Budget) -> Encoded:
    """A small file of a picture's first frame, upright; `wanted` is ComfyUI's "format;quality".

    It has the picture's size, as in ComfyUI, unless a side is longer than `MAX_PREVIEW_SIDE`.

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

    with opened(file, budget) as source:
        return _encoded(source.guarded(shown), kind, quality=level)


def channel_of(file: Source, channel: str, budget: Budget) -> Encoded:
    """A picture without its transparency ("rgb"), or its transparency alone ("a"), upright, as PNG.

    Raises:
        UniWorldError: as `check_picture`.
    """

    def shown() -> Image.Image:
        picture = source.first()
        if channel == "rgb":
            plain = picture if picture.mode in ("L", "RGB") else picture.convert("RGBA")  # half the memory
            return plain.convert("RGB")
        alone = Image.new("RGBA", picture.size)
        alone.putalpha(picture.convert("RGBA").getchannel("A"))
        return alone

    with opened(file, budget) as source:
        return _encoded(source.guarded(shown), "PNG")


def _small(file: PictureFile) -> Image.Image:
    """The first frame, made smaller while it has few bytes per pixel, and upright."""
    picture = file.picture
    if max(picture.size) <= MAX_PREVIEW_SIDE:
        return file.first()
    if picture.format in ("JPEG", "MPO"):  # decoded at a fraction of its size, where that is enough
        picture.draft(None, (MAX_PREVIEW_SIDE * 2, MAX_PREVIEW_SIDE * 2))
    picture = file.first(turned=False)
    simple = picture.mode in ("L", "LA", "RGB", "RGBA")
    method = Image.Resampling.BICUBIC if simple else Image.Resampling.NEAREST  # all that others know
    picture.thumbnail((MAX_PREVIEW_SIDE, MAX_PREVIEW_SIDE), method, reducing_gap=2.0 if simple else None)
    return upright(picture)


def _encoded(picture: Image.Image, kind: str, **options: object) -> Encoded:
    data = io.BytesIO()
    picture.save(data, format=kind, **options)
    return data.getvalue(), f"image/{kind.lower()}"
