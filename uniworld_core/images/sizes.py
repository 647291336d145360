"""Picture sizes: the nearest of a set of aspect ratios, at a given area (published: utils/anyres_util.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UniWorldError

# Sides are multiples of this many pixels: 8 for the VAE, times 2 for packing, times 2 in the published table.
STRIDE = 32
# Side of UniWorld-V1's square pictures; other aspect ratios have the same area.
DEFAULT_SIDE = 1024
DEFAULT_AREA = DEFAULT_SIDE * DEFAULT_SIDE

# Larger sizes are taken for a typing error.
MAX_PIXELS = 4096 * 4096

# width : height. The order decides ties, and is that of the published code.
RATIO_SETS: dict[str, tuple[tuple[int, int], ...]] = {
    "any_11ratio": ((16, 9), (9, 16), (7, 5), (5, 7), (5, 4), (4, 5), (4, 3), (3, 4), (3, 2), (2, 3), (1, 1)),
    "any_9ratio": ((16, 9), (9, 16), (5, 4), (4, 5), (4, 3), (3, 4), (3, 2), (2, 3), (1, 1)),
    "any_7ratio": ((16, 9), (9, 16), (4, 3), (3, 4), (3, 2), (2, 3), (1, 1)),
    "any_5ratio": ((16, 9), (9, 16), (4, 3), (3, 4), (1, 1)),
    "any_1ratio": ((1, 1),),
}
DEFAULT_RATIOS = "any_11ratio"


@dataclass(frozen=True)
class Size:
    """Height and width in pixels."""

    height: int
    width: int


def size_by_aspect(height: float, width: float, area: int = DEFAULT_AREA, ratios: str = DEFAULT_RATIOS) -> Size:
    """Return the size to paint for a picture of `height` by `width`: the set's nearest ratio, at about `area` pixels.

    Args:
        ratios: name of a set in `RATIO_SETS`.

    Raises:
        UniWorldError: a side is not positive, the set is unknown, or the area is below 32x32 or above 4096x4096.
    """
    if not (height > 0 and width > 0):
        raise UniWorldError(f"The picture is {width}x{height} pixels; both sides must be positive.")
    if ratios not in RATIO_SETS:
        raise UniWorldError(f"The ratio set {ratios!r} is unknown; choose one of {', '.join(RATIO_SETS)}.")
    if not STRIDE * STRIDE <= area <= MAX_PIXELS:
        raise UniWorldError(f"The area is {area}; it must be from {STRIDE * STRIDE} to {MAX_PIXELS} pixels.")
    ratio_w, ratio_h = min(RATIO_SETS[ratios], key=lambda ratio: abs(ratio[0] / ratio[1] - width / height))
    base_h, base_w = ratio_h * STRIDE, ratio_w * STRIDE
    # For areas below the smallest size of a ratio such as 16:9, the published code gives 0 x 0. Use the smallest size.
    scale = max(1, round(math.sqrt(area / (base_h * base_w))))
    return Size(base_h * scale, base_w * scale)


def mean_size(sizes: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the mean (height, width) of several references, from which the published program sizes an edit."""
    return int(sum(h for h, _ in sizes) / len(sizes)), int(sum(w for _, w in sizes) / len(sizes))


def crop_box(height: int, width: int, size: Size) -> tuple[int, int, int, int]:
    """Return the box (left, top, right, bottom) of the centered crop of a picture that has the aspect ratio of `size`."""
    scale = min(height / size.height, width / size.width)
    h, w = min(height, round(size.height * scale)), min(width, round(size.width * scale))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def check_image(shape: Sequence[int], unit: int) -> None:
    """Check the shape of pictures that a VAE encodes.

    Args:
        unit: both sides must be multiples of this many pixels.

    Raises:
        UniWorldError: the shape is not (batch, height, width, 3), or as `check_size`.
    """
    if len(shape) != 4 or shape[-1] != 3 or not shape[0]:
        raise UniWorldError(f"The picture has shape {list(shape)}; expected (batch, height, width, 3).")
    check_size(shape[1], shape[2], unit)


def check_size(height: int, width: int, unit: int) -> Size:
    """Check a size in pixels and return it.

    Args:
        unit: both sides must be multiples of this many pixels.

    Raises:
        UniWorldError: a side is not a positive multiple of `unit`, or the picture has more than 4096x4096 pixels.
    """
    for name, side in (("height", height), ("width", width)):
        if not isinstance(side, int):
            raise UniWorldError(f"The {name} is {side!r}; it must be a whole number of pixels.")
        if side <= 0 or side % unit:
            near = max(unit, round(side / unit) * unit)
            raise UniWorldError(f"The {name} is {side}; it must be a positive multiple of {unit}, such as {near}.")
    if height * width > MAX_PIXELS:
        raise UniWorldError(
            f"{width}x{height} is {height * width} pixels, more than {MAX_PIXELS} (4096x4096): paint a smaller picture."
        )
    return Size(height, width)
