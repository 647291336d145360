"""Render scenes: pictures, exact masks, and the maps of perception tasks.

Shapes: N objects, H = W = side of the picture in pixels. Pictures as arrays are uint8 (H, W, 3).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ....uniworld_core.errors import UniWorldError
from .draw_figure import person_cover
from .scene import SIZES, UNITS, Object, Scene, rgb

OVERSAMPLE = 8
# Segmentation overlays the object with this color at half strength; detection draws a box of it at full strength. It is
# far from all colors of objects and grounds, and the overlay changes each of them by more than `read_segmentation` needs.
MARK = (255, 0, 255)
MARK_STRENGTH = 0.5
BOX_GAP, BOX_LINE = 1, 2  # units between an object and its box, and width of the box's line
DEPTH_LEVELS = (0, 100, 200, 255)  # gray of the ground, and of objects stacked on zero, one or two others

Array = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def draw(scene: Scene) -> Image.Image:
    """Render a scene as an RGB picture with anti-aliased outlines."""
    return Image.fromarray(paint(scene))


def paint(scene: Scene) -> Array:
    """Render a scene as uint8 (H, W, 3)."""
    picture_HW3 = _ground(scene).astype(np.float32)
    for thing in scene.objects:
        rows, columns, alpha_hw = _stamp(thing, scene.side)
        under_hw3 = picture_HW3[rows, columns]
        under_hw3 += alpha_hw[..., None] * (np.array(rgb(thing.color), np.float32) - under_hw3)
    for person in scene.figures:
        alpha_HW = person_cover(person, scene.side)[..., None]
        picture_HW3 += alpha_HW * (np.array(rgb(person.color), np.float32) - picture_HW3)
    return np.rint(picture_HW3).astype(np.uint8)


def full_mask(thing: Object, side: int) -> Mask:
    """Return an object's mask, including hidden parts: bool (H, W), the pixels that it covers at least half of."""
    mask_HW = np.zeros((side, side), bool)
    rows, columns, alpha_hw = _stamp(thing, side)
    mask_HW[rows, columns] = alpha_hw >= 0.5
    return mask_HW


def labels(scene: Scene) -> NDArray[np.int64]:
    """Return what is visible at each pixel, int (H, W).

    0 is the ground, -1 its second half, k + 1 is object k, and -2 - k person k.
    """
    labels_HW = np.zeros((scene.side, scene.side), np.int64)
    half = scene.side // 2
    if scene.ground.split == "left and right":
        labels_HW[:, half:] = -1
    elif scene.ground.split == "top and bottom":
        labels_HW[half:] = -1
    for number, thing in enumerate(scene.objects):
        labels_HW[full_mask(thing, scene.side)] = number + 1
    for number, person in enumerate(scene.figures):
        labels_HW[person_cover(person, scene.side) >= 0.5] = -2 - number
    return labels_HW


def visible_masks(scene: Scene) -> Mask:
    """Return the visible part of each object: bool (N, H, W)."""
    numbers_N = np.arange(1, len(scene.objects) + 1)
    return labels(scene)[None] == numbers_N[:, None, None]


def edges(scene: Scene) -> Mask:
    """Return all visible outlines, including the border between two grounds: bool (H, W).

    A line extends one unit to either side of a border.
    """
    labels_HW = labels(scene)
    edges_HW = np.zeros(labels_HW.shape, bool)
    for step in range(1, max(1, scene.side // UNITS) + 1):
        across_HW = labels_HW[:, step:] != labels_HW[:, :-step]
        down_HW = labels_HW[step:] != labels_HW[:-step]
        edges_HW[:, step:] |= across_HW
        edges_HW[:, :-step] |= across_HW
        edges_HW[step:] |= down_HW
        edges_HW[:-step] |= down_HW
    return edges_HW


def stacking(scene: Scene) -> tuple[int, ...]:
    """Return the height of each object in the stacking order: 1 on the ground, 2 on an object of height 1, and so on."""
    masks = [full_mask(thing, scene.side) for thing in scene.objects]
    heights: list[int] = []
    for number, mask_HW in enumerate(masks):
        beneath = [heights[below] for below in range(number) if (masks[below] & mask_HW).any()]
        heights.append(1 + max(beneath, default=0))
    return tuple(heights)


def is_stacked(scene: Scene) -> bool:
    """Whether objects overlap visibly: the largest overlap hides between a tenth and a half of the lower object."""
    masks_NHW = [full_mask(thing, scene.side) for thing in scene.objects]
    hidden = [
        float((above_HW & below_HW).sum() / below_HW.sum())
        for number, below_HW in enumerate(masks_NHW)
        for above_HW in masks_NHW[number + 1 :]
    ]
    return 0.1 <= max(hidden, default=0.0) <= 0.5


def depth(scene: Scene) -> Array:
    """Return the depth map: black for the ground, and brighter for objects higher in the stacking order."""
    grays = [DEPTH_LEVELS[min(height, len(DEPTH_LEVELS) - 1)] for height in stacking(scene)]
    by_label = np.array([0, *grays], np.uint8)
    return _gray(by_label[np.maximum(labels(scene), 0)])


def edge_map(scene: Scene) -> Array:
    """Return white outlines on black."""
    return _gray(np.where(edges(scene), 255, 0))


def outline_drawing(scene: Scene) -> Array:
    """Return black outlines on white."""
    return _gray(np.where(edges(scene), 0, 255))


def inverted(scene: Scene) -> Array:
    """Return the negative of the picture."""
    return 255 - paint(scene)


def segmented(scene: Scene, subject: Object) -> Array:
    """Return the picture with a translucent overlay of `MARK` on the visible part of the subject."""
    picture_HW3 = paint(scene).astype(np.float32)
    mask_HW = visible_masks(scene)[scene.objects.index(subject)]
    picture_HW3[mask_HW] += MARK_STRENGTH * (np.array(MARK, np.float32) - picture_HW3[mask_HW])
    return np.rint(picture_HW3).astype(np.uint8)


def detected(scene: Scene, subject: Object) -> Array:
    """Return the picture with a box of color `MARK` around the subject."""
    picture_HW3 = paint(scene).copy()
    left, top, right, bottom = box_around(scene, subject)
    line = max(1, BOX_LINE * scene.side // UNITS)
    box_HW = np.zeros(picture_HW3.shape[:2], bool)
    box_HW[top:bottom, left:right] = True
    box_HW[top + line : bottom - line, left + line : right - line] = False
    picture_HW3[box_HW] = MARK
    return picture_HW3


def box_around(scene: Scene, subject: Object) -> tuple[int, int, int, int]:
    """Return the outer bounds of the subject's box in pixels: left, top, right, bottom (the last two exclusive)."""
    rows, columns = np.nonzero(full_mask(subject, scene.side))
    grow = max(1, BOX_LINE * scene.side // UNITS) + BOX_GAP * scene.side // UNITS
    return (
        max(int(columns.min()) - grow, 0),
        max(int(rows.min()) - grow, 0),
        min(int(columns.max()) + 1 + grow, scene.side),
        min(int(rows.max()) + 1 + grow, scene.side),
    )


def _ground(scene: Scene) -> Array:
    picture_HW3 = np.empty((scene.side, scene.side, 3), np.uint8)
    picture_HW3[:] = rgb(scene.ground.first)
    half = scene.side // 2
    if scene.ground.split == "left and right":
        picture_HW3[:, half:] = rgb(scene.ground.second)
    elif scene.ground.split == "top and bottom":
        picture_HW3[half:] = rgb(scene.ground.second)
    return picture_HW3


def _stamp(thing: Object, side: int) -> tuple[slice, slice, NDArray[np.float32]]:
    """Return the rows and columns of an object's template in the picture, and the template's coverage there (0..1)."""
    across = round(SIZES[thing.size] * side / UNITS)
    x, y = (round(place * side / UNITS - across / 2) for place in thing.center)
    top, left = max(y, 0), max(x, 0)
    bottom, right = min(y + across, side), min(x + across, side)
    alpha_hw = template(thing.shape, across)[top - y : bottom - y, left - x : right - x]
    return slice(top, bottom), slice(left, right), alpha_hw


@lru_cache(maxsize=256)
def template(shape: str, across: int) -> NDArray[np.float32]:
    """Return a shape's anti-aliased coverage of a square: float32 (across, across) in 0..1."""
    big = across * OVERSAMPLE
    canvas = Image.new("L", (big, big))
    pen = ImageDraw.Draw(canvas)
    if shape == "circle":
        pen.ellipse((0, 0, big - 1, big - 1), fill=255)
    else:
        pen.polygon([((x + 1) / 2 * (big - 1), (y + 1) / 2 * (big - 1)) for x, y in corners(shape)], fill=255)
    return np.asarray(canvas.reduce(OVERSAMPLE), np.float32) / np.float32(255)


def corners(shape: str) -> list[tuple[float, float]]:
    """Return a shape's corners in -1..1, with x to the right and y down."""
    if shape == "square":
        return [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)]
    if shape == "triangle":
        return [(0, -1), (1, 0.85), (-1, 0.85)]
    if shape == "diamond":
        return [(0, -1), (1, 0), (0, 1), (-1, 0)]
    if shape == "cross":
        arm = 0.34
        quarter = [(-arm, -1), (arm, -1), (arm, -arm)]
        turns = ((1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0))
        return [(a * x + b * y, c * x + d * y) for a, b, c, d in turns for x, y in quarter]
    if shape == "star":
        angles = [math.pi * (corner / 5 - 0.5) for corner in range(10)]
        return [(r * math.cos(t), r * math.sin(t)) for t, r in zip(angles, [1.05, 0.45] * 5)]
    raise UniWorldError(f"Unknown shape '{shape}'; choose circle, square, triangle, diamond, star or cross.")


def _gray(values_HW: NDArray[np.integer]) -> Array:
    return np.repeat(values_HW.astype(np.uint8)[..., None], 3, axis=-1)
