"""How an edited picture of another size lies over the one from before the edit."""

from __future__ import annotations

from torch import Tensor

from ..errors import UniWorldError, shown
from ..images.batches import mask_batch, resize_image, resize_mask, rgb_batch
from ..images.sizes import Size, crop_box

FITS = ("stretch", "crop")


def fit_before(before: Tensor, after: Tensor, fit: str = FITS[0]) -> Tensor:
    """Resize the picture from before the edit to the edited one (bicubic), as the published trainer does.

    Args:
        fit: one of `FITS`. With "crop", the edited picture shows the centered part of `before` that has its aspect ratio.

    Raises:
        UniWorldError: `fit` is unknown.
    """
    before = rgb_batch("before", before)
    height, width = rgb_batch("after", after).shape[1:3]
    left, top, right, bottom = _part_shown(before, height, width, fit)
    return resize_image(before[:, top:bottom, left:right], height, width)


def fit_edit(before: Tensor, after: Tensor, mask: Tensor, fit: str = FITS[0]) -> tuple[Tensor, Tensor]:
    """Resize the edited picture (bicubic) and the mask (nearest) to the picture from before the edit.

    Args:
        fit: as in `fit_before`. With "crop", both come back at the full size: around the part that the edited picture shows,
            the picture is that from before, and the mask 0.

    Raises:
        UniWorldError: `fit` is unknown.
    """
    before, after = rgb_batch("before", before), rgb_batch("after", after)
    left, top, right, bottom = _part_shown(before, after.shape[1], after.shape[2], fit)
    small = resize_image(after, bottom - top, right - left)
    small_mask = resize_mask(mask_batch("mask", mask), bottom - top, right - left)
    height, width = before.shape[1:3]
    if small.shape[1:3] == (height, width):
        return small, small_mask
    items = max(len(before), len(small))
    placed = before.expand(items, -1, -1, -1).clone()
    placed[:, top:bottom, left:right] = small
    placed_mask = small_mask.new_zeros(len(small_mask), height, width)
    placed_mask[:, top:bottom, left:right] = small_mask
    return placed, placed_mask


def _part_shown(before: Tensor, height: int, width: int, fit: str) -> tuple[int, int, int, int]:
    """Return the box (left, top, right, bottom) of the part of `before` that an edited picture of this size shows."""
    if fit not in FITS:
        raise UniWorldError(f"fit is {shown(fit)}; it must be one of {', '.join(FITS)}.")
    full = Size(*before.shape[1:3])
    return crop_box(full.height, full.width, Size(height, width) if fit == "crop" else full)
