"""The sizes of pictures that FLUX.1 Kontext was trained for.

Source: diffusers' FluxKontextPipeline (`PREFERRED_KONTEXT_RESOLUTIONS`), which resizes references to them.
"""

from __future__ import annotations

from ...errors import UniWorldError
from ...images.sizes import DEFAULT_SIDE, MAX_PIXELS, Size

# (width, height) at about 1024x1024 pixels, from the tallest to the widest.
PREFERRED = (
    (672, 1568),
    (688, 1504),
    (720, 1456),
    (752, 1392),
    (800, 1328),
    (832, 1248),
    (880, 1184),
    (944, 1104),
    (1024, 1024),
    (1104, 944),
    (1184, 880),
    (1248, 832),
    (1328, 800),
    (1392, 752),
    (1456, 720),
    (1504, 688),
    (1568, 672),
)
# Sides are multiples of this many pixels: 8 for the VAE, times 2 for packing.
UNIT = 16


def preferred_size(height: float, width: float, side: int = DEFAULT_SIDE) -> Size:
    """Return the preferred size with the aspect ratio nearest to a picture's.

    Args:
        height, width: size of the picture in pixels.
        side: the size has about the area of a square with this side. Sizes other than 1024 are scaled and rounded.

    Raises:
        UniWorldError: a side is not positive, or the area is above 4096x4096.
    """
    if not (height > 0 and width > 0):
        raise UniWorldError(f"The picture is {width}x{height} pixels; both sides must be positive.")
    if side < UNIT or side * side > MAX_PIXELS:
        raise UniWorldError(f"The side of the area is {side}; it must be from {UNIT} to {int(MAX_PIXELS**0.5)} pixels.")
    # The published pipeline compares sides that are rounded down to multiples of 16.
    aspect = max(UNIT, width // UNIT * UNIT) / max(UNIT, height // UNIT * UNIT)
    wide, high = min(PREFERRED, key=lambda size: abs(size[0] / size[1] - aspect))
    return Size(_scaled(high, side), _scaled(wide, side))


def _scaled(length: int, side: int) -> int:
    return max(UNIT, round(length * side / DEFAULT_SIDE / UNIT) * UNIT)
