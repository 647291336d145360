"""Small morphology on bool pictures (H, W), in numpy alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def grow(mask_HW: Mask, pixels: int = 1) -> Mask:
    """Dilated by a square of 2 * pixels + 1."""
    return _reduced(mask_HW, pixels, np.logical_or, outside=False)


def shrink(mask_HW: Mask, pixels: int = 1) -> Mask:
    """Eroded by a square of 2 * pixels + 1; what lies beyond the picture counts as marked."""
    return _reduced(mask_HW, pixels, np.logical_and, outside=True)


def overlap(one_HW: Mask, other_HW: Mask) -> float:
    """Intersection over union; 1 for two empty masks."""
    union = int((one_HW | other_HW).sum())
    return int((one_HW & other_HW).sum()) / union if union else 1.0


def _reduced(mask_HW: Mask, pixels: int, join: np.ufunc, outside: bool) -> Mask:
    if pixels == 0:
        return mask_HW
    # A square is its row after its column.
    for axis in (0, 1):
        width = [(0, 0), (0, 0)]
        width[axis] = (pixels, pixels)
        padded_HW = np.pad(mask_HW, width, constant_values=outside)
        mask_HW = join.reduce(np.lib.stride_tricks.sliding_window_view(padded_HW, 2 * pixels + 1, axis), axis=-1)
    return mask_HW
