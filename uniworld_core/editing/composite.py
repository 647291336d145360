"""Compositing of an edit over the original.

Shapes: B items, H rows, W columns, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import UniWorldError
from ..images.batches import check_same_size, mask_batch, rgb_batch, same_batch
from ..images.components import connected_components


def composite_edit(before: Tensor, after: Tensor, mask: Tensor, feather: int = 0) -> Tensor:
    """Composite the edited part over the original. Pixels outside the mask are bit-identical to the original.

    The feather is *inward*: the edit fades in over `feather` pixels from the edge of the mask, and no pixel outside the mask
    changes. A part too thin for that reaches full strength in its middle. The border of the picture is not an edge of the
    mask.

    Args:
        before, after: (B, H, W, C) in 0..1, of the same size. A batch of one serves every item.
        mask: (B, H, W) in 0..1; intermediate values blend.
        feather: width in pixels, 0 or more.

    Returns:
        float32 (B, H, W, 3).

    Raises:
        UniWorldError: shapes are invalid or do not match, there are NaN values, or the feather is negative.
    """
    if feather < 0:
        raise UniWorldError(f"The feather is {feather} pixels; expected 0 or more.")
    before_BHW3, after_BHW3 = rgb_batch("before", before), rgb_batch("after", after)
    alpha_BHW = mask_batch("mask", mask)
    for name, size in (("after", after_BHW3.shape[1:3]), ("mask", alpha_BHW.shape[1:])):
        check_same_size("before", before_BHW3.shape[1:3], name, size)
    alpha_BHW = alpha_BHW * _inward_ramp(alpha_BHW > 0, feather) if feather else alpha_BHW
    before_BHW3, after_BHW3, alpha_BHW = same_batch(before=before_BHW3, after=after_BHW3, mask=alpha_BHW)
    alpha_BHW1 = alpha_BHW.unsqueeze(-1)
    blended_BHW3 = torch.where(alpha_BHW1 < 1, torch.lerp(before_BHW3, after_BHW3, alpha_BHW1), after_BHW3)
    return torch.where(alpha_BHW1 > 0, blended_BHW3, before_BHW3)


def _inward_ramp(inside_BHW: Tensor, feather: int) -> Tensor:
    """Return a ramp from 0 outside a bool mask to 1 at `feather` pixels from its edge, or in the middle of thin parts."""
    depth_BHW = inside_BHW.float()
    eroded_B1HW = -depth_BHW.unsqueeze(1)
    for step in range(feather):
        # Alternating squares and crosses give octagons, which approximate circles. Max-pooling ignores its padding.
        if step % 2:
            eroded_B1HW = F.max_pool2d(eroded_B1HW, 3, 1, 1)
        else:
            rows_B1HW = F.max_pool2d(eroded_B1HW, (3, 1), 1, (1, 0))
            eroded_B1HW = torch.maximum(rows_B1HW, F.max_pool2d(eroded_B1HW, (1, 3), 1, (0, 1)))
        depth_BHW = depth_BHW - eroded_B1HW.squeeze(1)
    labels_BHW = connected_components(inside_BHW).labels
    deepest_N = depth_BHW.new_ones(int(labels_BHW.max()) + 1)
    deepest_N = deepest_N.scatter_reduce(0, labels_BHW.flatten(), depth_BHW.flatten(), "amax")
    return depth_BHW / deepest_N[labels_BHW]
