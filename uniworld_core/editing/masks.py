"""Edit masks: what an edit changed, the loss weights for it, and compositing the edit over the original.

Shapes: B items, H rows, W columns of the picture; h, w rows and columns of the latent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import UniWorldError, shown
from ..images.batches import mask_batch, resize_image, resize_mask, rgb_batch, same_batch
from ..images.components import connected_components, keep_large
from ..images.pictures import to_bytes
from ..images.sizes import Size, crop_box

# Constants of the published code, univa/utils/get_mask.py.
THRESHOLD = 18  # of 255, on the gray difference
KERNEL_SIZE = 5  # pixels; latent cells in the second closing
MIN_COMPONENT = 0.3  # of the marked area
MIN_EDITED_SHARE = 0.001  # of the picture
LATENT_FACTOR = 8  # FLUX's VAE: one latent cell is 8x8 pixels

METHODS = ("code", "paper")
WEIGHT_FUNCTION = "logarithmic"  # default of the published programs and of the paper

# ITU-R 601-2 luma in 16-bit fixed point, with Pillow's rounding (libImaging/Convert.c, L24).
_LUMA = (19595, 38470, 7471)
_LUMA_HALF = 0x8000
_LUMA_SHIFT = 16

# kornia's unfold engine takes about 200 bytes per pixel for a 5x5 kernel, so only a few pictures are processed at a time.
_MORPHOLOGY_CHUNK = 4


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


# How an edited picture lies over the one before the edit.
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


def _part_shown(before: Tensor, height: int, width: int, fit: str) -> tuple[int, int, int, int]:
    """Return the box (left, top, right, bottom) of the part of `before` that an edited picture of this size shows."""
    if fit not in FITS:
        raise UniWorldError(f"fit is {shown(fit)}; it must be one of {', '.join(FITS)}.")
    full = Size(*before.shape[1:3])
    return crop_box(full.height, full.width, Size(height, width) if fit == "crop" else full)


def picture_mask(mask: EditMask) -> Tensor:
    """Return the latent cells of a mask at picture size, as 8x8 blocks: float32 (B, H, W). Needs `cover_edges=True`."""
    return _blocks(mask.latent.float(), mask.pixels.shape[1], mask.pixels.shape[2])


# The paper's candidates for w(x), with x = total area / edited area (arXiv 2506.03147); each is 1 at x = 1. The published code
# (univa/utils/get_mask.py, get_weight) implements the logarithmic ("log") and the exponential root ("exp") one.
WEIGHT_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "logarithmic": lambda x: torch.log2(x) + 1,
    "linear": lambda x: x,
    "exponential_root": lambda x: 2 ** (x**0.5 - 1),
    "quadratic_root": lambda x: (x**0.5 - 1) ** 2 + 1,
}
WEIGHT_DECIMALS = 6  # as in get_weight
_FLOAT32_WHOLE = 2.0**24  # above, all float32 values are integers, and rounding by scaling could overflow


def edit_weight(latent_Bhw: Tensor, function: str = WEIGHT_FUNCTION) -> Tensor:
    """Compute loss weights over the latent: 1 outside the edit, w(total area / edited area) inside.

    Args:
        latent_Bhw: bool (B, h, w), `EditMask.latent`.
        function: a name in `WEIGHT_FUNCTIONS`.

    Returns:
        float32 (B, h, w), always finite. An item without marked cells is 1 everywhere.

    Raises:
        UniWorldError: the function is unknown, or shape or dtype of the mask is invalid.
    """
    if function not in WEIGHT_FUNCTIONS:
        raise UniWorldError(
            f"The weight function '{function}' is not known; choose one of {', '.join(WEIGHT_FUNCTIONS)}."
        )
    if latent_Bhw.ndim != 3 or latent_Bhw.dtype != torch.bool or 0 in latent_Bhw.shape:
        raise UniWorldError(
            f"Edit weights need a bool mask (batch, rows, columns), but got {latent_Bhw.dtype} of shape "
            f"{list(latent_Bhw.shape)}; pass EditMask.latent."
        )
    edited_B = latent_Bhw.sum(dim=(1, 2)).clamp(min=1)
    weight_B = WEIGHT_FUNCTIONS[function](latent_Bhw[0].numel() / edited_B)
    weight_B = torch.where(weight_B < _FLOAT32_WHOLE, weight_B.round(decimals=WEIGHT_DECIMALS), weight_B)
    weight_B = weight_B.clamp(max=torch.finfo(torch.float32).max)
    return torch.where(latent_Bhw, weight_B[:, None, None], torch.ones_like(weight_B[:, None, None]))


def weight_picture(weight_Bhw: Tensor, height: int, width: int) -> Tensor:
    """Render weights as an IMAGE (B, H, W, 3) with one block per cell; gray = w / (largest w of the item).

    The edit is white and the rest has gray 1/w: middle gray if the edit counts twice as much. A white picture means that all
    cells have the same weight.
    """
    relative_Bhw = weight_Bhw / weight_Bhw.amax(dim=(1, 2), keepdim=True)
    return _blocks(relative_Bhw, height, width).unsqueeze(-1).expand(-1, -1, -1, 3).contiguous()


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
        _check_size("before", before_BHW3.shape[1:3], name, size)
    alpha_BHW = alpha_BHW * _inward_ramp(alpha_BHW > 0, feather) if feather else alpha_BHW
    before_BHW3, after_BHW3, alpha_BHW = same_batch(before=before_BHW3, after=after_BHW3, mask=alpha_BHW)
    alpha_BHW1 = alpha_BHW.unsqueeze(-1)
    blended_BHW3 = torch.where(alpha_BHW1 < 1, torch.lerp(before_BHW3, after_BHW3, alpha_BHW1), after_BHW3)
    return torch.where(alpha_BHW1 > 0, blended_BHW3, before_BHW3)


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


def ellipse(size: int) -> Tensor:
    """Return OpenCV's elliptic structuring element MORPH_ELLIPSE of an odd size, float32 (size, size).

    The row at distance dy from the middle has width 2·round(√(r² − dy²)) + 1. Size 5 is a full 5x3 block with one pixel above
    and one below.
    """
    radius = size // 2
    offsets = torch.arange(-radius, radius + 1)
    half_width = (radius**2 - offsets**2).double().sqrt().round()
    return (offsets.abs()[None, :] <= half_width[:, None]).float()


def _check_settings(method: str, threshold: int, kernel_size: int, min_component: float) -> None:
    if method not in METHODS:
        raise UniWorldError(f"The edit mask method '{method}' is not known; choose one of {', '.join(METHODS)}.")
    if not 0 <= threshold <= 255:
        raise UniWorldError(f"The threshold is {threshold}; expected 0 to 255, steps of an 8-bit gray difference.")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise UniWorldError(f"The kernel size is {kernel_size}; expected an odd number of pixels.")
    if not 0 <= min_component <= 1:
        raise UniWorldError(f"The smallest component is {min_component}; expected 0 to 1, a share of the marked area.")


def _check_size(name: str, size: Sequence[int], other_name: str, other_size: Sequence[int]) -> None:
    if tuple(size) != tuple(other_size):
        raise UniWorldError(
            f"'{name}' is {size[1]}x{size[0]} pixels and '{other_name}' is {other_size[1]}x{other_size[0]}: resize one "
            "to the other first."
        )


def _changed(before_BHW3: Tensor, after_BHW3: Tensor, threshold: int) -> Tensor:
    """Return where the gray value of the 8-bit pictures' difference reaches the threshold: bool (B, H, W)."""
    _check_size("before", before_BHW3.shape[1:3], "after", after_BHW3.shape[1:3])
    before_BHW3, after_BHW3 = same_batch(before=to_bytes(before_BHW3).int(), after=to_bytes(after_BHW3).int())
    difference_BHW3 = (after_BHW3 - before_BHW3).abs()
    luma_BHW = (difference_BHW3 * difference_BHW3.new_tensor(_LUMA)).sum(dim=-1) + _LUMA_HALF
    return (luma_BHW >> _LUMA_SHIFT) >= threshold


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


def _pooled(mask_BHW: Tensor, cover_edges: bool) -> Tensor:
    """Return the latent cells that contain marked pixels: bool (B, h, w)."""
    window = [min(LATENT_FACTOR, side) for side in mask_BHW.shape[1:]]
    return F.max_pool2d(mask_BHW.float().unsqueeze(1), window, window, ceil_mode=cover_edges).squeeze(1) > 0.5


def _blocks(cells_Bhw: Tensor, height: int, width: int) -> Tensor:
    """Expand cells to blocks of 8x8 pixels, cropped to a picture of this size: (B, H, W)."""
    blocks_BHW = cells_Bhw.repeat_interleave(LATENT_FACTOR, 1).repeat_interleave(LATENT_FACTOR, 2)
    return blocks_BHW[:, :height, :width]


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
