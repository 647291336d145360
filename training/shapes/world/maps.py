"""The maps that perception tasks ask for, drawn from exact knowledge, as the core's heads read them.

    map_of("hed", scene)

Shapes: H = W = the picture's side in pixels; maps are uint8 (H, W, 3).
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
HED_BLUR = 1.6  # units; with it a soft edge is twice as wide as a hard one
# A straight edge keeps this of its height under that blur, and is brought back to white.
_HED_PEAK = 0.4545
LINE = 2.0  # units across a straight line
INK, LIGHT_TONE, DARK_TONE = 15, 226, 168  # gray of a sketch's outlines, and of the tones for white and for black
_SKETCH_BLUR = 0.5  # units
# The bevel: a blur of each object's mask by so much is the height, this many units high.
_BEVEL_BLUR, _BEVEL_HEIGHT = 2.0, 6.0
_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2

Floats = NDArray[np.float32]


def map_of(kind: str, scene: Scene, subject: Object | None = None) -> draw.Array:
    """The right map of a perception task.

    Args:
        kind: one of `tasks.PERCEPTIONS`.
        subject: what is segmented or detected, and nothing for the others.

    Raises:
        UniWorldError: a kind that is none of them, or a subject that is missing.
    """
    if kind in ("segmentation", "detection"):
        if subject is None:
            raise UniWorldError(f"A map of the kind '{kind}' needs a subject: name one of the scene's objects.")
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
    """Wide outlines, white in the middle and softly falling off, on black."""
    soft_HW = blurred(draw.edges(scene).astype(np.float32), HED_BLUR * scene.side / UNITS)
    return _gray(255 * (soft_HW / _HED_PEAK).clip(0, 1))


def straight_lines(scene: Scene) -> draw.Array:
    """White lines on black: the sides of polygons and the border of two grounds, as far as they are seen."""
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
        left, top = (round(place * scale - across / 2) * _OVERSAMPLE for place in thing.centre)
        big = across * _OVERSAMPLE
        if thing.shape == "circle":
            pen.ellipse((left, top, left + big - 1, top + big - 1), fill=0)
            continue
        points = [(left + (x + 1) / 2 * (big - 1), top + (y + 1) / 2 * (big - 1)) for x, y in draw.corners(thing.shape)]
        pen.polygon(points, fill=0)
        pen.line([*points, *points[:2]], fill=255, width=width, joint="curve")
    return _gray(np.asarray(canvas.reduce(_OVERSAMPLE)))


def sketch(scene: Scene) -> draw.Array:
    """Charcoal on white paper: dark, slightly soft outlines, and objects shaded by how dark their colours are.

    The shading stays above half of the outlines' contrast, where the core's head still tells lines from tones.
    """
    tone_HW = np.full((scene.side, scene.side), 255, np.float32)
    for thing, mask_HW in zip(scene.objects, draw.visible_masks(scene)):
        tone_HW[mask_HW] = tone_of(thing)
    soft_HW = blurred(draw.edges(scene).astype(np.float32), _SKETCH_BLUR * scene.side / UNITS)
    return _gray(tone_HW + soft_HW.clip(0, 1) * (INK - tone_HW))


def tone_of(thing: Object) -> float:
    """The gray with which a sketch shades an object."""
    return DARK_TONE + (LIGHT_TONE - DARK_TONE) * float(np.dot(_LUMA, rgb(thing.colour))) / 255


def normal_map(scene: Scene) -> draw.Array:
    """Colours of `normals`: (n + 1) / 2, as the core's head reads them."""
    return np.rint(255 * (normals(scene) + 1) / 2).astype(np.uint8)


def normals(scene: Scene) -> Floats:
    """Unit normals, float32 (H, W, 3): x to the right, y up, z towards the viewer.

    The ground is flat, and objects rise from it with round rims that lean outwards.
    """
    normal_HW3 = np.zeros((scene.side, scene.side, 3), np.float32)
    normal_HW3[..., 2] = 1
    for thing, seen_HW in zip(scene.objects, draw.visible_masks(scene)):
        normal_HW3[seen_HW] = _bevel(thing, scene.side)[seen_HW]
    return normal_HW3


@lru_cache(maxsize=64)
def _bevel(thing: Object, side: int) -> Floats:
    """Unit normals of one object's round rim, float32 (H, W, 3)."""
    scale = side / UNITS
    mask_HW = draw.full_mask(thing, side).astype(np.float32)
    down_HW, right_HW = np.gradient(_BEVEL_HEIGHT * scale * blurred(mask_HW, _BEVEL_BLUR * scale))
    slope_HW3 = np.stack([-right_HW, down_HW, np.ones_like(down_HW)], axis=-1)
    return slope_HW3 / np.linalg.norm(slope_HW3, axis=-1, keepdims=True)


def blurred(values_HW: Floats, sigma: float) -> Floats:
    """Blurred by a Gaussian of that many pixels; beyond the picture its rim goes on. Also of a stack (..., H, W).

    It is added up in float64, so that maps are the same to the last bit whatever adds them up.
    """
    down, right = (_blur_matrix(side, sigma) for side in values_HW.shape[-2:])
    return (down @ values_HW.astype(np.float64) @ right.T).astype(np.float32)


@cache
def _blur_matrix(side: int, sigma: float) -> NDArray[np.float64]:
    """The Gaussian blur of a line as a matrix, float64 (side, side); its rows add up to 1."""
    reach = int(np.ceil(3 * sigma))
    offsets = np.arange(-reach, reach + 1)
    kernel_K = np.exp(-0.5 * (offsets / sigma) ** 2)
    matrix = np.zeros((side, side))
    for offset, share in zip(offsets, kernel_K / kernel_K.sum()):
        matrix[np.arange(side), (np.arange(side) + offset).clip(0, side - 1)] += share
    return matrix


def _gray(values_HW: NDArray[np.number]) -> draw.Array:
    return np.repeat(np.rint(values_HW).astype(np.uint8)[..., None], 3, axis=-1)
