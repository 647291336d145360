"""Rectangles drawn in a mask, found by their straight sides, so that nested and crossing ones are separated.

Shapes: H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from ..editing.morphology import close_mask
from ..images.components import connected_components
from .heads import Box

# Relative to the picture's longer side: minimum length of a bar, and how far the ends of two bars of a rectangle may differ.
BAR_LENGTH = 0.03
BAR_TOLERANCE = 0.015
# Share of each side of a rectangle that must be marked.
MIN_SIDE = 0.8
# Two boxes are the same rectangle at this intersection over union, or if all sides are within this many pixels of each
# other, as the outer and the inner rim of one stroke are.
SAME_BOX = 0.75
SAME_SIDES = 8
_MAX_BARS = 64  # more of them are texture


@dataclass(frozen=True)
class _Bar:
    """A straight stroke: left, top, right, bottom in pixels, right and bottom exclusive."""

    left: int
    top: int
    right: int
    bottom: int


def find_rectangles(marked_HW: Tensor) -> list[Box]:
    """Find the rectangles drawn in a bool mask (H, W), best first: outer bounds in pixels, and a score from 0 to 1."""
    found: list[Box] = []
    # Vertical bars are horizontal ones of the transposed mask.
    for turned, mask_HW in ((False, marked_HW), (True, marked_HW.T)):
        for box in _between_bars(mask_HW, _bars(mask_HW)):
            x, y, width, height = corner(box)
            found.append(make_box(y, x, height, width, float(box["score"])) if turned else box)
    kept = _best(found)
    kept = _best(kept + _outlines(close_mask(_without(marked_HW, kept)[None])[0]))
    return sorted(kept, key=lambda box: (-float(box["score"]), corner(box)[1], corner(box)[0]))


def _bars(mask_HW: Tensor) -> list[_Bar]:
    """Find horizontal bars: stacked long runs with the same ends.

    A run with different ends starts a new bar, so that touching strokes of two rectangles are not merged.
    """
    height, width = mask_HW.shape
    length = max(6, round(BAR_LENGTH * max(height, width)))
    if width < length:
        return []
    # Small gaps are closed only along rows, so that parallel strokes next to each other stay separate.
    closed_1HW = -F.max_pool2d(-F.max_pool2d(mask_HW.float()[None], (1, 5), 1, (0, 2)), (1, 5), 1, (0, 2))
    eroded_1HW = -F.max_pool2d(-closed_1HW, (1, length), 1)
    opened_HW = F.max_pool2d(F.pad(eroded_1HW, (length - 1, length - 1)), (1, length), 1)[0]
    steps_HW = F.pad(opened_HW, (1, 1)).diff(dim=1)
    starts, ends = (steps_HW > 0).nonzero().tolist(), (steps_HW < 0).nonzero().tolist()
    slack = max(2, _tolerance(mask_HW) // 2)
    done: list[_Bar] = []
    growing: list[tuple[_Bar, int, int]] = []  # a bar, and its last run
    for (row, left), (_, right) in zip(starts, ends):
        done += [bar for bar, _, _ in growing if bar.bottom < row]
        growing = [grown for grown in growing if grown[0].bottom >= row]
        bar = _Bar(left, row, right, row + 1)
        for place, (above, last_left, last_right) in enumerate(growing):
            if above.bottom == row and abs(last_left - left) <= slack and abs(last_right - right) <= slack:
                bar = _Bar(min(above.left, left), above.top, max(above.right, right), row + 1)
                del growing[place]
                break
        growing.append((bar, left, right))
    done += [bar for bar, _, _ in growing]
    thin = [bar for bar in done if 2 * (bar.bottom - bar.top) <= bar.right - bar.left]
    return sorted(thin, key=lambda bar: bar.left - bar.right)[:_MAX_BARS]


def _between_bars(mask_HW: Tensor, bars: list[_Bar]) -> list[Box]:
    """Find rectangles whose top and bottom are bars of the same length, and whose other sides are marked as well.

    The best rectangles come first and use up their bars, so that two rectangles above each other do not make a third.
    """
    tolerance = _tolerance(mask_HW)
    pairs: list[tuple[float, int, int, Box]] = []
    for first, top in enumerate(bars):
        for second, bottom in enumerate(bars):
            in_line = abs(top.left - bottom.left) <= tolerance and abs(top.right - bottom.right) <= tolerance
            if top.bottom >= bottom.top or not in_line:
                continue
            x, y = min(top.left, bottom.left), top.top
            width, height = max(top.right, bottom.right) - x, bottom.bottom - y
            sides = _sides(mask_HW, x, y, width, height, tolerance)
            if min(sides) >= MIN_SIDE and _is_hollow(mask_HW, x, y, width, height):
                score = sum(sides) / 4
                pairs.append((score, first, second, make_box(x, y, width, height, score)))
    used: set[int] = set()
    found = []
    for _, first, second, box in sorted(pairs, key=lambda pair: (-pair[0], pair[3]["height"])):
        if not {first, second} <= used:
            used |= {first, second}
            found.append(box)
    return found


def _tolerance(mask_HW: Tensor) -> int:
    """Return by how many pixels the ends of two bars of a rectangle may differ."""
    return max(3, round(BAR_TOLERANCE * max(mask_HW.shape)))


def _sides(mask_HW: Tensor, x: int, y: int, width: int, height: int, band: int) -> tuple[float, float, float, float]:
    """Return the share of the top, bottom, left and right side that is marked, within a band along the side: 0..1."""
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


def _is_hollow(mask_HW: Tensor, x: int, y: int, width: int, height: int) -> bool:
    """Whether some row and some column are mostly unmarked. A single broad stroke has four marked sides as well."""
    inside_HW = mask_HW[y : y + height, x : x + width].float()
    return bool((inside_HW.mean(dim=1) <= 0.6).any() and (inside_HW.mean(dim=0) <= 0.6).any())


def _outlines(mask_HW: Tensor) -> list[Box]:
    """Return the bounding boxes of hollow parts whose four sides are marked."""
    smallest = max(8, round(0.01 * max(mask_HW.shape)))
    parts = connected_components(mask_HW[None])
    found = []
    for number, (x, y, width, height) in enumerate(parts.boxes.tolist()):
        if min(width, height) < smallest:
            continue
        part_HW = parts.labels[0] == number + 1
        sides = _sides(part_HW, x, y, width, height, max(2, round(0.1 * min(width, height))))
        if min(sides) >= MIN_SIDE and _is_hollow(part_HW, x, y, width, height):
            found.append(make_box(x, y, width, height, sum(sides) / 4))
    return found


def _without(mask_HW: Tensor, boxes: list[Box]) -> Tensor:
    """Return the mask without the outlines of the boxes."""
    band = max(4, round(BAR_TOLERANCE * max(mask_HW.shape)))
    rest_HW = mask_HW.clone()
    for x, y, width, height in (corner(box) for box in boxes):
        rows = slice(max(y - 2, 0), y + height + 2)
        columns = slice(max(x - 2, 0), x + width + 2)
        inner = (slice(y + band, max(y + height - band, y + band)), slice(x + band, max(x + width - band, x + band)))
        kept = rest_HW[inner].clone()
        rest_HW[rows, columns] = False
        rest_HW[inner] = kept
    return rest_HW


def _best(boxes: list[Box]) -> list[Box]:
    """Return the boxes, best first and larger before smaller, without near duplicates."""
    kept: list[Box] = []
    for box in sorted(boxes, key=lambda box: (-round(float(box["score"]), 2), -corner(box)[2] * corner(box)[3])):
        if not any(_is_same(box, other) for other in kept):
            kept.append(box)
    return kept


def _is_same(one: Box, other: Box) -> bool:
    (x0, y0, w0, h0), (x1, y1, w1, h1) = corner(one), corner(other)
    apart = (abs(x0 - x1), abs(y0 - y1), abs(x0 + w0 - x1 - w1), abs(y0 + h0 - y1 - h1))
    return max(apart) <= SAME_SIDES or _overlap(one, other) >= SAME_BOX


def _overlap(one: Box, other: Box) -> float:
    """Return the intersection over union."""
    x0, y0, w0, h0 = corner(one)
    x1, y1, w1, h1 = corner(other)
    width, height = min(x0 + w0, x1 + w1) - max(x0, x1), min(y0 + h0, y1 + h1) - max(y0, y1)
    common = max(width, 0) * max(height, 0)
    return common / (w0 * h0 + w1 * h1 - common)


def make_box(x: int, y: int, width: int, height: int, score: float | None = None) -> Box:
    """Make a box from left, top and size in pixels."""
    box: Box = {"x": x, "y": y, "width": width, "height": height}
    return box if score is None else {**box, "score": round(score, 3)}


def corner(box: Box) -> tuple[int, int, int, int]:
    """Return left, top, width and height of a box."""
    return int(box["x"]), int(box["y"]), int(box["width"]), int(box["height"])
