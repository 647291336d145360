"""The exact maps of perception tasks, in the form that the core's heads read.

    map_of("hed", scene)

Shapes: H = W = side of the picture in pixels. Maps are uint8 (H, W, 3).
"""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ....uniworld_core.errors import UniWorldError
from . import draw
from .draw_figure import skeletons
from .scene import SIZES, UNITS, Object, Scene, rgb

_OVERSAMPLE = 4
HED_BLUR = 1.6  # units; makes a soft edge twice as wide as a hard one
# The blur reduces a straight edge to this fraction of its height. Maps are divided by it, so that edges are white.
_HED_PEAK = 0.4545
LINE = 2.0  # units across a straight line
INK, LIGHT_TONE, DARK_TONE = 15, 226, 168  # gray of a sketch's outlines, and of its tones for white and black objects
_SKETCH_BLUR = 0.5  # units
# The height of a bevelled object is its mask, blurred by _BEVEL_BLUR units and scaled to _BEVEL_HEIGHT units.
_BEVEL_BLUR, _BEVEL_HEIGHT = 2.0, 6.0
_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2

Floats = NDArray[np.float32]


def map_of(kind: str, scene: Scene, subject: Object | None = None) -> draw.Array:
    """Return the exact map of a perception task.

    Args:
        kind: one of `tasks.PERCEPTIONS`.
        subject: the object to segment or detect; None for the other kinds.

    Raises:
        UniWorldError: the kind is unknown, or the subject is missing.
    """
    if kind in ("segmentation", "detection"):
        if subject is None:
            raise UniWorldError(f"A map of kind '{kind}' needs a subject: pass one of the scene's objects.")
        return (draw.segmented if kind == "segmentation" else draw.detected)(scene, subject)
    if kind == "openpose":
        return skeletons(scene.figures, scene.side)
    drawers = {
        "edge": draw.edge_map,
        "depth": draw.depth,
        "hed": soft_edges,
        "mlsd": straight_lines,
        "normal": normal_map,
        "sketch": sketch,
    }
    if kind not in drawers:
        raise UniWorldError(f"The kind '{kind}' has no map; choose edge, depth, hed, mlsd, normal, sketch or openpose.")
    return drawers[kind](scene)


def soft_edges(scene: Scene) -> draw.Array:
    """Return wide outlines on black, white in the middle with soft sides."""
    soft_HW = blurred(draw.edges(scene).astype(np.float32), HED_BLUR * scene.side / UNITS)
    return _gray(255 * (soft_HW / _HED_PEAK).clip(0, 1))


def straight_lines(scene: Scene) -> draw.Array:
    """Return the visible sides of polygons and the border between two grounds, as white lines on black."""
    side, scale = scene.side, scene.side / UNITS
    canvas = Image.new("L", (side * _OVERSAMPLE,) * 2)
    pen, width = ImageDraw.Draw(canvas), round(LINE * scale * _OVERSAMPLE)
    middle, end = side * _OVERSAMPLE // 2, side * _OVERSAMPLE
    if scene.ground.split == "left and right":
        pen.line([(middle, 0), (middle, end)], fill=255, width=width)
    elif scene.ground.split == "top and bottom":
        pen.line([(0, middle), (end, middle)], fill=255, width=width)
    for thing in scene.objects:
        across = round(SIZES[thing.size] * scale)
        left, top = (round(place * scale - across / 2) * _OVERSAMPLE for place in thing.center)
        big = across * _OVERSAMPLE
        if thing.shape == "circle":
            pen.ellipse((left, top, left + big - 1, top + big - 1), fill=0)
            continue
        points = [(left + (x + 1) / 2 * (big - 1), top + (y + 1) / 2 * (big - 1)) for x, y in draw.corners(thing.shape)]
        pen.polygon(points, fill=0)
        pen.line([*points, *points[:2]], fill=255, width=width, joint="curve")
    return _gray(np.asarray(canvas.reduce(_OVERSAMPLE)))


def sketch(scene: Scene) -> draw.Array:
    """Return a charcoal sketch: dark, slightly soft outlines on white, and objects shaded by the luma of their colors.

    Tones stay in the lighter half of the range, so that the core's head can separate lines from shading.
    """
    tone_HW = np.full((scene.side, scene.side), 255, np.float32)
    for thing, mask_HW in zip(scene.objects, draw.visible_masks(scene)):
        tone_HW[mask_HW] = tone_of(thing)
    soft_HW = blurred(draw.edges(scene).astype(np.float32), _SKETCH_BLUR * scene.side / UNITS)
    return _gray(tone_HW + soft_HW.clip(0, 1) * (INK - tone_HW))


def tone_of(thing: Object) -> float:
    """Return the gray of an object in a sketch."""
    return DARK_TONE + (LIGHT_TONE - DARK_TONE) * float(np.dot(_LUMA, rgb(thing.color))) / 255


def normal_map(scene: Scene) -> draw.Array:
    """Return `normals` as colors: (n + 1) / 2, as the core's head reads them."""
    return np.rint(255 * (normals(scene) + 1) / 2).astype(np.uint8)


def normals(scene: Scene) -> Floats:
    """Return unit normals, float32 (H, W, 3): x to the right, y up, z towards the viewer.

    The ground is flat, and objects have bevelled rims.
    """
    normal_HW3 = np.zeros((scene.side, scene.side, 3), np.float32)
    normal_HW3[..., 2] = 1
    for thing, seen_HW in zip(scene.objects, draw.visible_masks(scene)):
        normal_HW3[seen_HW] = _bevel(thing, scene.side)[seen_HW]
    return normal_HW3


@lru_cache(maxsize=64)
def _bevel(thing: Object, side: int) -> Floats:
    """Return unit normals of one bevelled object, float32 (H, W, 3)."""
    scale = side / UNITS
    mask_HW = draw.full_mask(thing, side).astype(np.float32)
    down_HW, right_HW = np.gradient(_BEVEL_HEIGHT * scale * blurred(mask_HW, _BEVEL_BLUR * scale))
    slope_HW3 = np.stack([-right_HW, down_HW, np.ones_like(down_HW)], axis=-1)
    return slope_HW3 / np.linalg.norm(slope_HW3, axis=-1, keepdims=True)


def blurred(values_HW: Floats, sigma: float) -> Floats:
    """Apply a Gaussian blur to (..., H, W), with `sigma` in pixels and replicated edges.

    Computed in float64: the order of summation, which depends on the BLAS, then cannot change the float32 result.
    """
    down, right = (_blur_matrix(side, sigma) for side in values_HW.shape[-2:])
    return (down @ values_HW.astype(np.float64) @ right.T).astype(np.float32)


@cache
def _blur_matrix(side: int, sigma: float) -> NDArray[np.float64]:
    """Return the 1-D Gaussian blur as a matrix, float64 (side, side), whose rows sum to 1."""
    reach = int(np.ceil(3 * sigma))
    offsets = np.arange(-reach, reach + 1)
    kernel_K = np.exp(-0.5 * (offsets / sigma) ** 2)
    matrix = np.zeros((side, side))
    for offset, share in zip(offsets, kernel_K / kernel_K.sum()):
        matrix[np.arange(side), (np.arange(side) + offset).clip(0, side - 1)] += share
    return matrix


def _gray(values_HW: NDArray[np.number]) -> draw.Array:
    return np.repeat(np.rint(values_HW).astype(np.uint8)[..., None], 3, axis=-1)
