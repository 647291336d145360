"""Edit masks: what an edit changed.

Shapes: B items, H rows, W columns of the picture; h, w rows and columns of the latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import UniWorldError
from ..images.batches import check_same_size, rgb_batch, same_batch
from ..images.components import keep_large
from ..images.pictures import to_bytes
from .morphology import KERNEL_SIZE, close_mask, dilate_mask

# Constants of the published code, univa/utils/get_mask.py.
THRESHOLD = 18  # of 255, on the gray difference
MIN_COMPONENT = 0.3  # of the marked area
MIN_EDITED_SHARE = 0.001  # of the picture
LATENT_FACTOR = 8  # FLUX's VAE: one latent cell is 8x8 pixels

METHODS = ("code", "paper")

# ITU-R 601-2 luma in 16-bit fixed point, with Pillow's rounding (libImaging/Convert.c, L24).
_LUMA = (19595, 38470, 7471)
_LUMA_HALF = 0x8000
_LUMA_SHIFT = 16


@dataclass(frozen=True, eq=False)
class EditMask:
    """What changed between two batches of pictures.

    Attributes:
        pixels: bool (B, H, W), the edited part.
        latent: bool (B, h, w), the latent cells that contain it.
        share: float32 (B,), edited pixels over all pixels; 1 where `whole`.
        whole: bool (B,): no pixel remained marked (a reconstruction), so the whole picture counts as edited.
        too_small: bool (B,): the edited share is below `MIN_EDITED_SHARE` but not zero. The published trainer stops
            at such a sample; here the caller decides.
    """

    pixels: Tensor
    latent: Tensor
    share: Tensor
    whole: Tensor
    too_small: Tensor


def edit_mask(
    before: Tensor | Sequence[Tensor],
    after: Tensor,
    method: str = "code",
    threshold: int = THRESHOLD,
    kernel_size: int = KERNEL_SIZE,
    min_component: float = MIN_COMPONENT,
    cover_edges: bool = False,
) -> EditMask:
    """Compute the mask of what an edit changed.

    Both methods mark pixels where the gray difference of the 8-bit pictures reaches `threshold`, remove 8-connected parts
    smaller than `min_component` of the marked area, intersect over the references, use the whole picture if nothing
    remains, and max-pool by 8. They differ in the morphology. The published code (univa/utils/get_mask.py) *closes* the mask
    with an ellipse before the filter, and again after the pooling. The paper (arXiv 2506.03147, adaptive editing region
    weighting) *dilates* it before the filter, and does not change the pooled mask. It gives no constants, so those of the
    code are used.

    Args:
        before: reference pictures (B, H, W, C) in 0..1, or several of them. A batch of one serves every item.
        after: edited pictures (B, H, W, C) in 0..1, of the same height and width. RGBA is composited on white.
        method: one of `METHODS`.
        threshold: 0..255, on the gray difference.
        kernel_size: diameter of the ellipse, odd.
        min_component: 0..1, of the marked area.
        cover_edges: how max-pooling treats sides that are not multiples of 8. By default incomplete last cells are dropped
            (h = H // 8), as in the published code and the VAE; True keeps them. A side shorter than 8 is always one cell.

    Raises:
        UniWorldError: there are no references, shapes are invalid or do not match, there are NaN values, or a setting is
            out of range.
    """
    _check_settings(method, threshold, kernel_size, min_component)
    references = [before] if isinstance(before, Tensor) else list(before)
    if not references:
        raise UniWorldError("An edit mask needs at least one picture from before the edit; give one in 'before'.")
    after_BHW3 = rgb_batch("after", after)
    grow = close_mask if method == "code" else dilate_mask
    kept = []
    for reference in references:
        marked_BHW = _changed(rgb_batch("before", reference), after_BHW3, threshold)
        grown_BHW = grow(marked_BHW, kernel_size)
        kept.append(keep_large(grown_BHW, min_component * grown_BHW.sum(dim=(1, 2)).cpu().double()))
    pixels_BHW = torch.stack(same_batch(**{f"before {i + 1}": mask for i, mask in enumerate(kept)})).all(dim=0)
    share_B = pixels_BHW.float().mean(dim=(1, 2))
    whole_B = ~pixels_BHW.any(dim=2).any(dim=1)
    pixels_BHW = pixels_BHW | whole_B[:, None, None]
    latent_Bhw = _pooled(pixels_BHW, cover_edges)
    return EditMask(
        pixels=pixels_BHW,
        latent=close_mask(latent_Bhw, kernel_size) if method == "code" else latent_Bhw,
        share=torch.where(whole_B, torch.ones_like(share_B), share_B),
        whole=whole_B,
        too_small=(share_B < MIN_EDITED_SHARE) & ~whole_B,
    )


def picture_mask(mask: EditMask) -> Tensor:
    """Return the latent cells of a mask at picture size, as 8x8 blocks: float32 (B, H, W). Needs `cover_edges=True`."""
    return cell_blocks(mask.latent.float(), mask.pixels.shape[1], mask.pixels.shape[2])


def cell_blocks(cells_Bhw: Tensor, height: int, width: int) -> Tensor:
    """Expand cells to blocks of 8x8 pixels, cropped to a picture of this size: (B, H, W)."""
    blocks_BHW = cells_Bhw.repeat_interleave(LATENT_FACTOR, 1).repeat_interleave(LATENT_FACTOR, 2)
    return blocks_BHW[:, :height, :width]


def _check_settings(method: str, threshold: int, kernel_size: int, min_component: float) -> None:
    if method not in METHODS:
        raise UniWorldError(f"The edit mask method '{method}' is not known; choose one of {', '.join(METHODS)}.")
    if not 0 <= threshold <= 255:
        raise UniWorldError(f"The threshold is {threshold}; expected 0 to 255, steps of an 8-bit gray difference.")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise UniWorldError(f"The kernel size is {kernel_size}; expected an odd number of pixels.")
    if not 0 <= min_component <= 1:
        raise UniWorldError(f"The smallest component is {min_component}; expected 0 to 1, a share of the marked area.")


def _changed(before_BHW3: Tensor, after_BHW3: Tensor, threshold: int) -> Tensor:
    """Return where the gray value of the 8-bit pictures' difference reaches the threshold: bool (B, H, W)."""
    check_same_size("before", before_BHW3.shape[1:3], "after", after_BHW3.shape[1:3])
    before_BHW3, after_BHW3 = same_batch(before=to_bytes(before_BHW3).int(), after=to_bytes(after_BHW3).int())
    difference_BHW3 = (after_BHW3 - before_BHW3).abs()
    luma_BHW = (difference_BHW3 * difference_BHW3.new_tensor(_LUMA)).sum(dim=-1) + _LUMA_HALF
    return (luma_BHW >> _LUMA_SHIFT) >= threshold


def _pooled(mask_BHW: Tensor, cover_edges: bool) -> Tensor:
    """Return the latent cells that contain marked pixels: bool (B, h, w)."""
    window = [min(LATENT_FACTOR, side) for side in mask_BHW.shape[1:]]
    return F.max_pool2d(mask_BHW.float().unsqueeze(1), window, window, ceil_mode=cover_edges).squeeze(1) > 0.5
