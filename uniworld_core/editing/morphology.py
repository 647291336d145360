"""Morphology of bool masks with OpenCV's elliptic kernel: closing, opening and dilation.

Shapes: B items, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Diameter of the published code (univa/utils/get_mask.py): pixels, and latent cells in its second closing.
KERNEL_SIZE = 5

# kornia's unfold engine takes about 200 bytes per pixel for a 5x5 kernel, so only a few pictures are processed at a time.
_MORPHOLOGY_CHUNK = 4


def ellipse(size: int) -> Tensor:
    """Return OpenCV's elliptic structuring element MORPH_ELLIPSE of an odd size, float32 (size, size).

    The row at distance dy from the middle has width 2·round(√(r² − dy²)) + 1. Size 5 is a full 5x3 block with one pixel above
    and one below.
    """
    radius = size // 2
    offsets = torch.arange(-radius, radius + 1)
    half_width = (radius**2 - offsets**2).double().sqrt().round()
    return (offsets.abs()[None, :] <= half_width[:, None]).float()


def close_mask(mask_BHW: Tensor, kernel_size: int = KERNEL_SIZE) -> Tensor:
    """Fill gaps of a bool mask (B, H, W) into which an ellipse of this diameter does not fit."""
    from kornia.morphology import closing

    return _morph(closing, mask_BHW, kernel_size)


def open_mask(mask_BHW: Tensor, kernel_size: int) -> Tensor:
    """Remove parts of a bool mask (B, H, W) into which an ellipse of this diameter does not fit. Others keep their outline."""
    from kornia.morphology import opening

    opened_BHW = _morph(opening, mask_BHW, kernel_size)
    return mask_BHW & dilate_mask(opened_BHW, kernel_size)


def dilate_mask(mask_BHW: Tensor, kernel_size: int = KERNEL_SIZE) -> Tensor:
    """Dilate a bool mask (B, H, W) by an ellipse of this diameter."""
    from kornia.morphology import dilation

    return _morph(dilation, mask_BHW, kernel_size)


def _morph(operation: Callable[..., Tensor], mask_BHW: Tensor, kernel_size: int) -> Tensor:
    # kornia's default border mode, "geodesic", ignores pixels outside the picture, as OpenCV's default does.
    kernel = ellipse(kernel_size).to(mask_BHW.device)
    chunks = mask_BHW.float().unsqueeze(1).split(_MORPHOLOGY_CHUNK)
    return torch.cat([operation(chunk, kernel) for chunk in chunks]).squeeze(1) > 0.5
