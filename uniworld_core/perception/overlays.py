"""Heads that read paint *over* a picture: the mask of a segmentation, the boxes of a detection.

The model paints the object in a flat translucent color, or a rectangle around it, and leaves the rest of the picture
unchanged. The paint is found by comparison with the source. A map on plain black or white needs no comparison.

Shapes: B items, H rows, W columns.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..editing.morphology import close_mask, open_mask
from ..errors import UniWorldError, counted
from ..images.components import connected_components, keep_large
from .heads import Box, PerceptionResult, as_image, one_line, percent, stands_out
from .rectangles import corner, find_rectangles, make_box

# Minimum difference between paint and picture in some channel (0..1). Chosen on overlays of half strength with noise of 0.03
# or JPEG artifacts.
MIN_DIFFERENCE = 0.12
# A color drift of the whole picture of up to this much is removed before the comparison.
MAX_DRIFT = 0.06
# Within this many pixels of a strongly colored line, differences weaker than this share of it are compression artifacts.
FRINGE = 4
FRINGE_LEVEL = 0.5
RIM = 2  # pixels
# Pixels this close to black or white count as such. On a plain background half of the pixels are one of them, or 0.9 either.
PLAIN_TOLERANCE = 0.2
PLAIN_SHARE = 0.5
TWO_LEVEL_SHARE = 0.9
# Parts and holes of a segmentation under this share of the picture, or of the marked area, are noise.
MIN_PART_OF_PICTURE = 0.0005
MIN_PART_OF_MASK = 0.01


def read_segmentation(painted_BHW3: Tensor, source_BHW3: Tensor | None) -> PerceptionResult:
    """Read the mask of the painted object, as a white-on-black map and MASK, with a box for each of its parts.

    Raises:
        UniWorldError: there is no source, and the map is not painted on plain black or white.
    """
    marked_BHW = close_mask(_paint(painted_BHW3, source_BHW3, lines=False))
    pixels = marked_BHW[0].numel()
    min_area_B = (marked_BHW.sum(dim=(1, 2)) * MIN_PART_OF_MASK).clamp(min=pixels * MIN_PART_OF_PICTURE)
    mask_BHW = ~keep_large(~keep_large(marked_BHW, min_area_B), min_area_B)
    parts = connected_components(mask_BHW)
    boxes: list[list[Box]] = []
    lines = []
    for item, mask_HW in enumerate(mask_BHW):
        boxes.append([make_box(*bounds) for bounds in parts.boxes[parts.items == item].tolist()])
        in_parts = counted(len(boxes[-1]), "part")
        lines.append(f"mask on {percent(mask_HW)} of the picture in {in_parts}" if boxes[-1] else "nothing painted")
    return PerceptionResult(as_image(mask_BHW), mask_BHW.float(), boxes, one_line(lines))


def read_detection(painted_BHW3: Tensor, source_BHW3: Tensor | None) -> PerceptionResult:
    """Read the boxes of the drawn rectangles: outer bounds, best first. The map has clean outlines, the mask filled boxes.

    Nested and crossing rectangles are separated by their straight sides. An outline whose sides cannot be paired (too small,
    or broken) gives its bounding box if all four sides are mostly marked.

    Raises:
        UniWorldError: there is no source, and the map is not painted on plain black or white.
    """
    marked_BHW = _paint(painted_BHW3, source_BHW3, lines=True)
    boxes = [find_rectangles(marked_HW) for marked_HW in marked_BHW.cpu()]
    filled_BHW, drawn_BHW = torch.zeros_like(marked_BHW), torch.zeros_like(marked_BHW)
    line = max(1, round(0.004 * max(marked_BHW.shape[1:])))
    for item, found in enumerate(boxes):
        for x, y, width, height in (corner(box) for box in found):
            filled_BHW[item, y : y + height, x : x + width] = True
            outline_HW = torch.zeros_like(marked_BHW[item])
            outline_HW[y : y + height, x : x + width] = True
            outline_HW[y + line : y + height - line, x + line : x + width - line] = False
            drawn_BHW[item] |= outline_HW
    lines = [
        f"{counted(len(found), 'rectangle')} around {percent(filled_HW)} of the picture" if found else "no rectangles"
        for found, filled_HW in zip(boxes, filled_BHW)
    ]
    return PerceptionResult(as_image(drawn_BHW), filled_BHW.float(), boxes, one_line(lines))


def _paint(painted_BHW3: Tensor, source_BHW3: Tensor | None, lines: bool) -> Tensor:
    """Return where lines or areas are painted over the source, or on a plain background: bool (B, H, W)."""
    marked = []
    for item, painted_HW3 in enumerate(painted_BHW3):
        ground = _plain_ground(painted_HW3, lines)
        source_HW3 = None if source_BHW3 is None else source_BHW3[item]
        # If the source itself is plain, such as a scanned page, the map is compared with the source.
        if ground is not None and (source_HW3 is None or _plain_ground(source_HW3, lines) is None):
            marked.append(stands_out((painted_HW3 - ground).abs().amax(dim=-1)[None], level=0.5)[0])
        elif source_HW3 is None:
            raise UniWorldError(
                "The painted map is not on plain black or white, so it can only be read by comparing it with the "
                "picture it was painted from: give the source picture too."
            )
        else:
            marked.append(_differs(painted_HW3, source_HW3, lines))
    return torch.stack(marked)


def _plain_ground(picture_HW3: Tensor, lines: bool) -> float | None:
    """Return 0 or 1 if the picture has a plain black or white background, else None.

    A map of areas that is only black and white has a black background, however much is white. For lines, the background is
    the color with the larger share.
    """
    black = float((picture_HW3.amax(dim=-1) <= PLAIN_TOLERANCE).float().mean())
    white = float((picture_HW3.amin(dim=-1) >= 1 - PLAIN_TOLERANCE).float().mean())
    if black + white >= TWO_LEVEL_SHARE and not lines:
        return 0.0
    if max(black, white) >= PLAIN_SHARE:
        return 0.0 if black >= white else 1.0
    return None


def _differs(painted_HW3: Tensor, source_HW3: Tensor, lines: bool) -> Tensor:
    """Return where a picture differs from its source: bool (H, W)."""
    delta_HW3 = painted_HW3 - source_HW3
    drift_3 = delta_HW3.flatten(0, 1).median(dim=0).values
    delta_HW3 = delta_HW3 - torch.where(drift_3.abs() <= MAX_DRIFT, drift_3, 0.0)
    # Single different pixels are noise, so the 3x3 mean must differ as well.
    smooth_3HW = F.avg_pool2d(delta_HW3.movedim(-1, 0)[None], 3, 1, 1, count_include_pad=False)[0]
    strength_HW = delta_HW3.abs().amax(dim=-1)
    marked_HW = (smooth_3HW.abs().amax(dim=0) >= MIN_DIFFERENCE / 2) & (strength_HW >= MIN_DIFFERENCE)
    if not lines:
        # The VAE's decoder softens outlines, which differ from the source in a rim of two pixels. That is not paint.
        return open_mask(marked_HW[None], RIM + 1)[0]
    crest_HW = F.max_pool2d(strength_HW[None], 2 * FRINGE + 1, 1, FRINGE)[0]
    return marked_HW & (strength_HW >= FRINGE_LEVEL * crest_HW)
