"""Heads that read what was painted *over* a picture: the mask of a segmentation, the boxes of a detection.

The model paints the object in a flat translucent colour, or a rectangle around it, and leaves the rest of the picture
as it was. Comparing with that picture finds the paint; a map on plain black or white needs no comparing.

Shapes: B items, H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .components import connected_components, keep_large
from .masks import close_mask
from .perception_heads import Box, PerceptionResult, as_image, count, one_line, percent, stands_out

# Paint differs from the picture by at least this much in some channel (0..1): twice what repainting through the VAE
# leaves on flat ground.
MIN_DIFFERENCE = 0.12
# A drift of the whole picture's colour up to this much is taken out before comparing.
MAX_DRIFT = 0.06
# Beside a line of strong colour, up to so many pixels away, what is weaker than this share of it is compression's fringe.
FRINGE = 4
FRINGE_LEVEL = 0.5
# A pixel this near to black or white counts as it; a map needs half of its pixels there, or both together 0.9.
PLAIN_TOLERANCE = 0.2
PLAIN_SHARE = 0.5
TWO_LEVEL_SHARE = 0.9
# Parts and holes of a segmentation under this share of the picture, or of the marked area, are noise.
MIN_PART_OF_PICTURE = 0.0005
MIN_PART_OF_MASK = 0.01
# Of the picture's longer side: the shortest straight bar that can be a side of a drawn rectangle, and how far two
# bars of one rectangle may be out of line.
BAR_LENGTH = 0.03
BAR_TOLERANCE = 0.015
# Of each side of a rectangle, how much must be there.
MIN_SIDE = 0.8
# An overlap (intersection over union) from which on two finds are one rectangle.
SAME_BOX = 0.75
_MAX_BARS = 64  # beyond, the "bars" are texture


def read_segmentation(painted_BHW3: Tensor, source_BHW3: Tensor | None) -> PerceptionResult:
    """The painted object's mask, as a white-on-black map and MASK, with a box for each of its parts.

    Raises:
        ValueError: no source, and the map is not painted on plain black or white.
    """
    marked_BHW = close_mask(_paint(painted_BHW3, source_BHW3, lines=False))
    pixels = marked_BHW[0].numel()
    min_area_B = (marked_BHW.sum(dim=(1, 2)) * MIN_PART_OF_MASK).clamp(min=pixels * MIN_PART_OF_PICTURE)
    mask_BHW = ~keep_large(~keep_large(marked_BHW, min_area_B), min_area_B)
    parts = connected_components(mask_BHW)
    boxes: list[list[Box]] = []
    lines = []
    for item, mask_HW in enumerate(mask_BHW):
        boxes.append([_box(*corner) for corner in parts.boxes[parts.items == item].tolist()])
        in_parts = count(len(boxes[-1]), "part")
        lines.append(f"mask on {percent(mask_HW)} of the picture in {in_parts}" if boxes[-1] else "nothing painted")
    return PerceptionResult(as_image(mask_BHW), mask_BHW.float(), boxes, one_line(lines))


def read_detection(painted_BHW3: Tensor, source_BHW3: Tensor | None) -> PerceptionResult:
    """Boxes of the drawn rectangles: outer bounds, best first. The map draws them clean; the mask fills them.

    Nested and crossing rectangles are told apart by their straight sides. An outline whose sides cannot be paired
    (too small, or broken) gives its bounding box if all four sides are mostly there.

    Raises:
        ValueError: no source, and the map is not painted on plain black or white.
    """
    marked_BHW = close_mask(_paint(painted_BHW3, source_BHW3, lines=True))
    boxes = [_rectangles(marked_HW) for marked_HW in marked_BHW.cpu()]
    filled_BHW, drawn_BHW = torch.zeros_like(marked_BHW), torch.zeros_like(marked_BHW)
    line = max(1, round(0.004 * max(marked_BHW.shape[1:])))
    for item, found in enumerate(boxes):
        for x, y, width, height in (_corner(box) for box in found):
            filled_BHW[item, y : y + height, x : x + width] = True
            outline_HW = torch.zeros_like(marked_BHW[item])
            outline_HW[y : y + height, x : x + width] = True
            outline_HW[y + line : y + height - line, x + line : x + width - line] = False
            drawn_BHW[item] |= outline_HW
    lines = [
        f"{count(len(found), 'rectangle')} around {percent(filled_HW)} of the picture" if found else "no rectangles"
        for found, filled_HW in zip(boxes, filled_BHW)
    ]
    return PerceptionResult(as_image(drawn_BHW), filled_BHW.float(), boxes, one_line(lines))


def _paint(painted_BHW3: Tensor, source_BHW3: Tensor | None, lines: bool) -> Tensor:
    """Where lines or areas were painted over the source, or on plain ground: bool (B, H, W)."""
    marked = []
    for item, painted_HW3 in enumerate(painted_BHW3):
        ground = _plain_ground(painted_HW3, lines)
        source_HW3 = None if source_BHW3 is None else source_BHW3[item]
        # A source that is plain itself (a scanned page) is the ground to compare with.
        if ground is not None and (source_HW3 is None or _plain_ground(source_HW3, lines) is None):
            marked.append(stands_out((painted_HW3 - ground).abs().amax(dim=-1)[None], level=0.5)[0])
        elif source_HW3 is None:
            raise ValueError(
                "The painted map is not on plain black or white, so it can only be read by comparing it with the "
                "picture it was painted from: give the source picture too."
            )
        else:
            marked.append(_differs(painted_HW3, source_HW3, lines))
    return torch.stack(marked)


def _plain_ground(picture_HW3: Tensor, lines: bool) -> float | None:
    """0 or 1 if the picture is drawn on plain black or white, else None.

    An area in white on black has black ground however much is white; with lines the larger share is the ground.
    """
    black = float((picture_HW3.amax(dim=-1) <= PLAIN_TOLERANCE).float().mean())
    white = float((picture_HW3.amin(dim=-1) >= 1 - PLAIN_TOLERANCE).float().mean())
    if black + white >= TWO_LEVEL_SHARE and not lines:
        return 0.0
    if max(black, white) >= PLAIN_SHARE:
        return 0.0 if black >= white else 1.0
    return None


def _differs(painted_HW3: Tensor, source_HW3: Tensor, lines: bool) -> Tensor:
    """Where one picture differs from its source: bool (H, W)."""
    delta_HW3 = painted_HW3 - source_HW3
    drift_3 = delta_HW3.flatten(0, 1).median(dim=0).values
    delta_HW3 = delta_HW3 - torch.where(drift_3.abs() <= MAX_DRIFT, drift_3, 0.0)
    # Single pixels that differ are noise: the mean of 3x3 must differ too.
    smooth_3HW = F.avg_pool2d(delta_HW3.movedim(-1, 0)[None], 3, 1, 1, count_include_pad=False)[0]
    strength_HW = delta_HW3.abs().amax(dim=-1)
    marked_HW = (smooth_3HW.abs().amax(dim=0) >= MIN_DIFFERENCE / 2) & (strength_HW >= MIN_DIFFERENCE)
    if not lines:
        return marked_HW
    crest_HW = F.max_pool2d(strength_HW[None], 2 * FRINGE + 1, 1, FRINGE)[0]
    return marked_HW & (strength_HW >= FRINGE_LEVEL * crest_HW)


@dataclass(frozen=True)
class _Bar:
    """A straight stroke: left, top, right, bottom in pixels, right and bottom exclusive."""

    left: int
    top: int
    right: int
    bottom: int


def _rectangles(marked_HW: Tensor) -> list[Box]:
    """The rectangles drawn in a mask, best first."""
    found: list[Box] = []
    # Columns are rows of the transposed picture.
    for turned, mask_HW in ((False, marked_HW), (True, marked_HW.T)):
        for box in _between_bars(mask_HW, _bars(mask_HW)):
            x, y, width, height = _corner(box)
            found.append(_box(y, x, height, width, float(box["score"])) if turned else box)
    kept = _best(found)
    kept = _best(kept + _outlines(_without(marked_HW, kept)))
    return sorted(kept, key=lambda box: (-float(box["score"]), _corner(box)[1], _corner(box)[0]))


def _bars(mask_HW: Tensor) -> list[_Bar]:
    """Horizontal bars: what is left of a mask after opening it with a long flat line."""
    height, width = mask_HW.shape
    length = max(6, round(BAR_LENGTH * max(height, width)))
    if width < length:
        return []
    eroded_1HW = -F.max_pool2d(-mask_HW.float()[None], (1, length), 1)
    opened_1HW = F.max_pool2d(F.pad(eroded_1HW, (length - 1, length - 1)), (1, length), 1) > 0.5
    corners = sorted(connected_components(opened_1HW).boxes.tolist(), key=lambda corner: -corner[2])
    return [_Bar(x, y, x + w, y + h) for x, y, w, h in corners if 2 * h <= w][:_MAX_BARS]


def _between_bars(mask_HW: Tensor, bars: list[_Bar]) -> list[Box]:
    """Rectangles whose top and bottom are bars of one length, and whose sides are there too.

    Best first, each bar is used up by the rectangles it makes: two rectangles one above the other do not make a third.
    """
    tolerance = max(3, round(BAR_TOLERANCE * max(mask_HW.shape)))
    pairs: list[tuple[float, int, int, Box]] = []
    for first, top in enumerate(bars):
        for second, bottom in enumerate(bars):
            in_line = abs(top.left - bottom.left) <= tolerance and abs(top.right - bottom.right) <= tolerance
            if top.bottom >= bottom.top or not in_line:
                continue
            x, y = min(top.left, bottom.left), top.top
            width, height = max(top.right, bottom.right) - x, bottom.bottom - y
            sides = _sides(mask_HW, x, y, width, height, tolerance)
            if min(sides) >= MIN_SIDE:
                score = sum(sides) / 4
                pairs.append((score, first, second, _box(x, y, width, height, score)))
    used: set[int] = set()
    found = []
    for _, first, second, box in sorted(pairs, key=lambda pair: (-pair[0], pair[3]["height"])):
        if not {first, second} <= used:
            used |= {first, second}
            found.append(box)
    return found


def _sides(mask_HW: Tensor, x: int, y: int, width: int, height: int, band: int) -> tuple[float, float, float, float]:
    """How much of the top, bottom, left and right side of a rectangle is marked, within a band along it: 0..1."""
    inside_HW = mask_HW[y : y + height, x : x + width]
    tall, wide = min(band, height), min(band, width)
    shares = (
        inside_HW[:tall].any(dim=0),
        inside_HW[height - tall :].any(dim=0),
        inside_HW[:, :wide].any(dim=1),
        inside_HW[:, width - wide :].any(dim=1),
    )
    top, bottom, left, right = (float(share.float().mean()) for share in shares)
    return top, bottom, left, right


def _outlines(mask_HW: Tensor) -> list[Box]:
    """Bounding boxes of hollow parts that touch all four of their sides."""
    smallest = max(4, round(0.01 * max(mask_HW.shape)))
    parts = connected_components(mask_HW[None])
    found = []
    for number, (x, y, width, height) in enumerate(parts.boxes.tolist()):
        hollow = int(parts.areas[number]) <= 0.75 * width * height
        if min(width, height) < smallest or not hollow:
            continue
        band = max(2, round(0.1 * min(width, height)))
        sides = _sides(parts.labels[0] == number + 1, x, y, width, height, band)
        if min(sides) >= MIN_SIDE:
            found.append(_box(x, y, width, height, sum(sides) / 4))
    return found


def _without(mask_HW: Tensor, boxes: list[Box]) -> Tensor:
    """A mask with the outlines of the boxes rubbed out."""
    band = max(4, round(BAR_TOLERANCE * max(mask_HW.shape)))
    rest_HW = mask_HW.clone()
    for x, y, width, height in (_corner(box) for box in boxes):
        rows = slice(max(y - 2, 0), y + height + 2)
        columns = slice(max(x - 2, 0), x + width + 2)
        inner = (slice(y + band, max(y + height - band, y + band)), slice(x + band, max(x + width - band, x + band)))
        kept = rest_HW[inner].clone()
        rest_HW[rows, columns] = False
        rest_HW[inner] = kept
    return rest_HW


def _best(boxes: list[Box]) -> list[Box]:
    """Boxes, best first, without those that are nearly one already taken."""
    kept: list[Box] = []
    for box in sorted(boxes, key=lambda box: -float(box["score"])):
        if all(_overlap(box, other) < SAME_BOX for other in kept):
            kept.append(box)
    return kept


def _overlap(one: Box, other: Box) -> float:
    """Intersection over union."""
    x0, y0, w0, h0 = _corner(one)
    x1, y1, w1, h1 = _corner(other)
    width, height = min(x0 + w0, x1 + w1) - max(x0, x1), min(y0 + h0, y1 + h1) - max(y0, y1)
    common = max(width, 0) * max(height, 0)
    return common / (w0 * h0 + w1 * h1 - common)


def _box(x: int, y: int, width: int, height: int, score: float | None = None) -> Box:
    box: Box = {"x": x, "y": y, "width": width, "height": height}
    return box if score is None else {**box, "score": round(score, 3)}


def _corner(box: Box) -> tuple[int, int, int, int]:
    return int(box["x"]), int(box["y"]), int(box["width"]), int(box["height"])
