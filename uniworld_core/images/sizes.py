"""The sizes UniWorld paints: the nearest of a set of aspect ratios at a given area (published: utils/anyres_util.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UniWorldError

# Sides are multiples of this: 8 for the VAE, 2 for packing, 2 for the ratios' own steps.
STRIDE = 32
# UniWorld-V1 paints squares of this side, and other aspects at its area.
DEFAULT_SIDE = 1024
DEFAULT_AREA = DEFAULT_SIDE * DEFAULT_SIDE

# The largest picture that is not a slip of the finger.
MAX_PIXELS = 4096 * 4096

# width : height, in the order in which the published code breaks ties.
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
    """The size to paint for a picture of `height` by `width`: the nearest ratio of the set, near `area` pixels.

    Raises:
        UniWorldError: a side is not positive, the set is unknown, or the area is under 32x32 or over 4096x4096.
    """
    if not (height > 0 and width > 0):
        raise UniWorldError(f"The picture is {width}x{height} pixels; both sides must be positive.")
    if ratios not in RATIO_SETS:
        raise UniWorldError(f"The ratio set {ratios!r} is unknown; there are {', '.join(RATIO_SETS)}.")
    if not STRIDE * STRIDE <= area <= MAX_PIXELS:
        raise UniWorldError(f"The area {area} is outside {STRIDE * STRIDE} to {MAX_PIXELS} pixels.")
    ratio_w, ratio_h = min(RATIO_SETS[ratios], key=lambda ratio: abs(ratio[0] / ratio[1] - width / height))
    base_h, base_w = ratio_h * STRIDE, ratio_w * STRIDE
    # At areas smaller than one step of a ratio such as 16:9 the published code gives 0 x 0: paint one step instead.
    scale = max(1, round(math.sqrt(area / (base_h * base_w))))
    return Size(base_h * scale, base_w * scale)


def mean_size(sizes: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Mean (height, width) of several references, as the published program sizes an edit of two."""
    return int(sum(h for h, _ in sizes) / len(sizes)), int(sum(w for _, w in sizes) / len(sizes))


def check_size(height: int, width: int, unit: int) -> Size:
    """The size as given, if a model can paint it whose smallest unit is so many pixels a side.

    Raises:
        UniWorldError: a side is no positive multiple of `unit`, or the picture is over 4096x4096 pixels in all.
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
