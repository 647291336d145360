"""Binary morphology on masks (H, W), in plain numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def grow(mask_HW: Mask, pixels: int = 1) -> Mask:
    """Dilate by a square of side 2 * pixels + 1."""
    for _ in range(pixels):
        wide_HW = mask_HW.copy()
        wide_HW[:, 1:] |= mask_HW[:, :-1]
        wide_HW[:, :-1] |= mask_HW[:, 1:]
        mask_HW = wide_HW.copy()
        mask_HW[1:] |= wide_HW[:-1]
        mask_HW[:-1] |= wide_HW[1:]
    return mask_HW


def shrink(mask_HW: Mask, pixels: int = 1) -> Mask:
    """Erode by a square of side 2 * pixels + 1. Outside the picture counts as marked."""
    return ~grow(~mask_HW, pixels)


def overlap(one_HW: Mask, other_HW: Mask) -> float:
    """Return the intersection over union of two masks; 1 if both are empty."""
    union = int((one_HW | other_HW).sum())
    return int((one_HW & other_HW).sum()) / union if union else 1.0
