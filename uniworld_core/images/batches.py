"""IMAGE and MASK batches: checks, conversion to RGB, broadcasting and resizing.

Shapes: B items, H rows, W columns, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import UniWorldError


def rgb_batch(name: str, image_BHWC: Tensor) -> Tensor:
    """Convert an IMAGE batch to float32 (B, H, W, 3). RGBA is composited on white, as in the published programs.

    Args:
        name: name of the picture in errors.
        image_BHWC: float in 0..1, with 1, 3 or 4 channels.

    Raises:
        UniWorldError: the shape or dtype is invalid, there are no pixels, or there are NaN or infinite values.
    """
    shape = tuple(image_BHWC.shape)
    if image_BHWC.ndim != 4 or shape[-1] not in (1, 3, 4) or 0 in shape:
        raise UniWorldError(
            f"The picture '{name}' has shape {list(shape)}; expected (batch, height, width, channels) with 1, 3 or 4 "
            "channels and at least one pixel."
        )
    image_BHWC = _finite_float(f"picture '{name}'", image_BHWC)
    if shape[-1] == 4:
        alpha_BHW1 = image_BHWC[..., 3:]
        return torch.where(alpha_BHW1 == 1, image_BHWC[..., :3], image_BHWC[..., :3] * alpha_BHW1 + 1 - alpha_BHW1)
    return image_BHWC.expand(*shape[:3], 3)


def mask_batch(name: str, mask_BHW: Tensor) -> Tensor:
    """Convert a MASK batch to float32 (B, H, W) in 0..1. A single mask (H, W) becomes a batch of one.

    Raises:
        UniWorldError: the shape is invalid, there are no pixels, or there are NaN or infinite values.
    """
    mask_BHW = mask_BHW.unsqueeze(0) if mask_BHW.ndim == 2 else mask_BHW
    if mask_BHW.ndim != 3 or 0 in mask_BHW.shape:
        raise UniWorldError(
            f"The mask '{name}' has shape {list(mask_BHW.shape)}; expected (batch, height, width) with at least "
            "one pixel."
        )
    mask_BHW = mask_BHW.float() if mask_BHW.dtype == torch.bool else mask_BHW
    return _finite_float(f"mask '{name}'", mask_BHW).clamp(0, 1)


def same_batch(**batches: Tensor) -> list[Tensor]:
    """Broadcast batches of one item to the batch size of the others.

    Raises:
        UniWorldError: two batches have different sizes, and neither size is 1.
    """
    size = max(tensor.shape[0] for tensor in batches.values())
    for name, tensor in batches.items():
        if tensor.shape[0] not in (1, size):
            longest = next(other for other, tensor in batches.items() if tensor.shape[0] == size)
            raise UniWorldError(
                f"'{name}' holds {tensor.shape[0]} pictures and '{longest}' holds {size}: give both the same number, or "
                "one of them a single picture."
            )
    return [tensor.expand(size, *tensor.shape[1:]) for tensor in batches.values()]


def check_same_size(name: str, size: Sequence[int], other_name: str, other_size: Sequence[int]) -> None:
    """Compare the sizes (height, width) of two batches. Raises UniWorldError if they differ."""
    if tuple(size) != tuple(other_size):
        raise UniWorldError(
            f"'{name}' is {size[1]}x{size[0]} pixels and '{other_name}' is {other_size[1]}x{other_size[0]}: resize one "
            "to the other first."
        )


def resize_image(image_BHWC: Tensor, height: int, width: int) -> Tensor:
    """Resize an IMAGE, bicubic with antialiasing like Pillow. An image of the right size is returned unchanged."""
    if image_BHWC.shape[1:3] == (height, width):
        return image_BHWC
    image_BCHW = image_BHWC.movedim(-1, 1)
    resized_BCHW = F.interpolate(image_BCHW, (height, width), mode="bicubic", align_corners=False, antialias=True)
    return resized_BCHW.clamp(0, 1).movedim(1, -1).contiguous()


def resize_mask(mask_BHW: Tensor, height: int, width: int) -> Tensor:
    """Resize a mask to the nearest pixel center. A mask of the right size is returned unchanged."""
    if mask_BHW.shape[1:] == (height, width):
        return mask_BHW
    resized_B1HW = F.interpolate(mask_BHW.unsqueeze(1).float(), (height, width), mode="nearest-exact")
    return resized_B1HW.squeeze(1).to(mask_BHW.dtype)


def _finite_float(what: str, values: Tensor) -> Tensor:
    if not values.is_floating_point():
        raise UniWorldError(
            f"The {what} has dtype {values.dtype}; expected float in 0..1 (divide 8-bit values by 255)."
        )
    if not torch.isfinite(values).all():
        raise UniWorldError(f"The {what} has NaN or infinite values: check the step that produced it.")
    return values.float()
