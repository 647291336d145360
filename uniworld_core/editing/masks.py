"""What an edit changed: the mask, the loss weight over it, and putting the edit back over the original.

Shapes: B items, H rows, W columns of the picture; h, w rows and columns of the latent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import UniWorldError
from ..images.batches import mask_batch, resize_image, resize_mask, rgb_batch, same_batch
from ..images.components import connected_components, keep_large
from ..images.pictures import to_bytes

# Figures of the published code, univa/utils/get_mask.py.
THRESHOLD = 18  # of 255, on the gray difference
KERNEL_SIZE = 5  # pixels; latent cells in the second closing
MIN_COMPONENT = 0.3  # of the marked area
MIN_EDITED_SHARE = 0.001  # of the picture
LATENT_FACTOR = 8  # FLUX's VAE: one latent cell is 8x8 pixels

METHODS = ("code", "paper")
WEIGHT_FUNCTION = "logarithmic"  # the published programs' and the paper's

# ITU-R 601-2 luma in 16-bit fixed point, with Pillow's rounding (libImaging/Convert.c, L24).
_LUMA = (19595, 38470, 7471)
_LUMA_HALF = 0x8000
_LUMA_SHIFT = 16

# kornia's unfold engine takes about 200 bytes a pixel for a 5x5 kernel, so pictures pass a few at a time.
_MORPHOLOGY_CHUNK = 4


@dataclass(frozen=True, eq=False)
class EditMask:
    """What changed between two batches of pictures.

    Attributes:
        pixels: bool (B, H, W), the edited part.
        latent: bool (B, h, w), the latent cells that hold it.
        share: float32 (B,), edited pixels over all pixels; 1 where `whole`.
        whole: bool (B,): nothing was left marked (a reconstruction), so the whole picture counts as edited.
        too_small: bool (B,): the edited share is under `MIN_EDITED_SHARE` but not zero. The published trainer stops
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
    """Find what an edit changed.

    Both ways mark where the gray difference of the 8-bit pictures reaches `threshold`, drop the 8-connected parts
    smaller than `min_component` of the marked area, intersect over the references, take the whole picture if nothing
    is left, and max-pool by 8. The published code (univa/utils/get_mask.py) *closes* the marks with an ellipse before
    the filter and the pooled mask once more after it; the paper (arXiv 2506.03147, adaptive editing region weighting)
    *dilates* before the filter and leaves the pooled mask alone. It gives no figures, so the code's are used.

    Args:
        before: reference pictures (B, H, W, C) in 0..1, or several of them. A batch of one serves every item.
        after: edited pictures (B, H, W, C) in 0..1, of the same height and width. RGBA is composited on white.
        method: one of `METHODS`.
        threshold: 0..255, on the gray difference.
        kernel_size: diameter of the ellipse, odd.
        min_component: 0..1, of the marked area.
        cover_edges: what max-pooling does with sides that are no multiple of 8. By default the incomplete last cells
            are left out (h = H // 8), as in the published code and the VAE; True gives them cells of their own. A
            side shorter than 8 always makes one cell.

    Raises:
        UniWorldError: no references, other ranks, sizes that differ, NaN, or a setting out of range.
    """
    _check_settings(method, threshold, kernel_size, min_component)
    references = [before] if isinstance(before, Tensor) else list(before)
    if not references:
        raise UniWorldError("An edit mask needs at least one picture from before the edit, but none was given.")
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


def fit_before(before: Tensor, after: Tensor) -> Tensor:
    """The picture from before at the size of the edited one, bicubic, as the published trainer fits its references."""
    return resize_image(rgb_batch("before", before), *rgb_batch("after", after).shape[1:3])


def picture_mask(mask: EditMask) -> Tensor:
    """The latent cells of a mask made with `cover_edges` at picture size: float32 (B, H, W), whole 8x8 blocks."""
    return _blocks(mask.latent.float(), mask.pixels.shape[1], mask.pixels.shape[2])


# The paper's candidates for w(x), x = total area / edited area (arXiv 2506.03147); each is 1 at x = 1. The published
# code (univa/utils/get_mask.py, get_weight) has the logarithmic ("log") and the exponential root ("exp") one.
WEIGHT_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "logarithmic": lambda x: torch.log2(x) + 1,
    "linear": lambda x: x,
    "exponential_root": lambda x: 2 ** (x**0.5 - 1),
    "quadratic_root": lambda x: (x**0.5 - 1) ** 2 + 1,
}
WEIGHT_DECIMALS = 6  # get_weight rounds to as many
_FLOAT32_WHOLE = 2.0**24  # from here on float32 has whole numbers only, and rounding by scaling could overflow


def edit_weight(latent_Bhw: Tensor, function: str = WEIGHT_FUNCTION) -> Tensor:
    """Loss weights over the latent: 1 outside the edit, w(total area / edited area) inside.

    Args:
        latent_Bhw: bool (B, h, w), `EditMask.latent`.
        function: a name in `WEIGHT_FUNCTIONS`.

    Returns:
        float32 (B, h, w), always finite. An item without any marked cell is 1 everywhere.

    Raises:
        UniWorldError: an unknown function, or a mask of another rank or type.
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
    """Weights as a picture to look at: IMAGE (B, H, W, 3), gray = w / (largest w of the item), one block a cell.

    The edit is white and the rest 1/w, so an edit that counts twice as much stands on mid-gray; all white means that
    every cell counts the same.
    """
    relative_Bhw = weight_Bhw / weight_Bhw.amax(dim=(1, 2), keepdim=True)
    return _blocks(relative_Bhw, height, width).unsqueeze(-1).expand(-1, -1, -1, 3).contiguous()


def composite_edit(before: Tensor, after: Tensor, mask: Tensor, feather: int = 0) -> Tensor:
    """Lay the edited part over the original; whatever the mask leaves out is the original, bit for bit.

    The feather blends *inward*: from the mask's edge the edit fades in over `feather` pixels, and no pixel outside
    the mask is touched. A part too thin for that still reaches full strength along its middle. The picture's own edge
    is no mask edge.

    Args:
        before, after: (B, H, W, C) in 0..1, of one size. A batch of one serves every item.
        mask: (B, H, W) in 0..1; values between blend.
        feather: pixels, 0 or more.

    Returns:
        float32 (B, H, W, 3).

    Raises:
        UniWorldError: other ranks, sizes or batches that differ, NaN, or a negative feather.
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


def fit_edit(before: Tensor, after: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The edited picture (bicubic) and the mask (nearest) at the size of the picture from before."""
    height, width = rgb_batch("before", before).shape[1:3]
    return (
        resize_image(rgb_batch("after", after), height, width),
        resize_mask(mask_batch("mask", mask), height, width),
    )


def ellipse(size: int) -> Tensor:
    """OpenCV's elliptic structuring element of an odd size, float32 (size, size): MORPH_ELLIPSE.

    Row dy from the middle is 2·round(√(r² − dy²)) + 1 wide, so 5x5 is a full 5x3 block with one pixel above and
    one below.
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
    """Where the gray of the per-channel difference of the 8-bit pictures reaches the threshold: bool (B, H, W)."""
    _check_size("before", before_BHW3.shape[1:3], "after", after_BHW3.shape[1:3])
    before_BHW3, after_BHW3 = same_batch(before=to_bytes(before_BHW3).int(), after=to_bytes(after_BHW3).int())
    difference_BHW3 = (after_BHW3 - before_BHW3).abs()
    luma_BHW = (difference_BHW3 * difference_BHW3.new_tensor(_LUMA)).sum(dim=-1) + _LUMA_HALF
    return (luma_BHW >> _LUMA_SHIFT) >= threshold


def close_mask(mask_BHW: Tensor, kernel_size: int = KERNEL_SIZE) -> Tensor:
    """Fill gaps in a bool mask (B, H, W) that an ellipse of that diameter does not fit into."""
    from kornia.morphology import closing

    return _morph(closing, mask_BHW, kernel_size)


def open_mask(mask_BHW: Tensor, kernel_size: int) -> Tensor:
    """Drop what an ellipse of that diameter does not fit into of a bool mask (B, H, W); the rest keeps its outline."""
    from kornia.morphology import opening

    opened_BHW = _morph(opening, mask_BHW, kernel_size)
    return mask_BHW & dilate_mask(opened_BHW, kernel_size)


def dilate_mask(mask_BHW: Tensor, kernel_size: int = KERNEL_SIZE) -> Tensor:
    """Grow a bool mask (B, H, W) by an ellipse of that diameter."""
    from kornia.morphology import dilation

    return _morph(dilation, mask_BHW, kernel_size)


def _morph(operation: Callable[..., Tensor], mask_BHW: Tensor, kernel_size: int) -> Tensor:
    # kornia's "geodesic" default leaves the picture's border neutral, as OpenCV's default does.
    kernel = ellipse(kernel_size).to(mask_BHW.device)
    chunks = mask_BHW.float().unsqueeze(1).split(_MORPHOLOGY_CHUNK)
    return torch.cat([operation(chunk, kernel) for chunk in chunks]).squeeze(1) > 0.5


def _pooled(mask_BHW: Tensor, cover_edges: bool) -> Tensor:
    """Latent cells that hold any of the mask: bool (B, h, w)."""
    window = [min(LATENT_FACTOR, side) for side in mask_BHW.shape[1:]]
    return F.max_pool2d(mask_BHW.float().unsqueeze(1), window, window, ceil_mode=cover_edges).squeeze(1) > 0.5


def _blocks(cells_Bhw: Tensor, height: int, width: int) -> Tensor:
    """Cells as blocks of 8x8 pixels, cut to a picture of that size: (B, H, W)."""
    blocks_BHW = cells_Bhw.repeat_interleave(LATENT_FACTOR, 1).repeat_interleave(LATENT_FACTOR, 2)
    return blocks_BHW[:, :height, :width]


def _inward_ramp(inside_BHW: Tensor, feather: int) -> Tensor:
    """0 outside a bool mask, rising by equal steps to 1 at `feather` pixels from its edge, or in a part's middle."""
    depth_BHW = inside_BHW.float()
    eroded_B1HW = -depth_BHW.unsqueeze(1)
    for step in range(feather):
        # A square and a cross by turns make octagons, near enough to circles. Padding is neutral in max-pooling.
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
