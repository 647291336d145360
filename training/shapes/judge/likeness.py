"""Nearest-map matching: among all maps of a scene, and among maps in which an object has another shape or size.

The other checks compare lines with a tolerance of one pixel, at which small shapes look alike. The nearest map
distinguishes them.

Shapes: H = W = 64, C channels, S shifts, M maps, each sharp and soft; h and w of a part of the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..world.maps import Floats, blurred, map_of
from ..world.scene import SHAPES, SIZES, UNITS, Scene
from .oracle import Pixels

# Maps that a picture is compared with. Each is also tried with the softness of a VAE decoder's output (_SOFTNESS).
_RIVALS = ("edge", "hed", "mlsd", "sketch", "normal", "depth")
_ALIKE = {"mlsd": "edge", "edge": "mlsd"}  # the same lines, except for circles
_SOFTNESS = (0.0, 0.9)
_REACH = 13  # units around an object's center that contain its outline, even a soft one
_ALL = slice(None)
_SHIFTS = tuple((down, right) for down in (-1, 0, 1) for right in (-1, 0, 1))


def nearest_map(kind: str, scene: Scene, picture_HW3: Pixels) -> str:
    """Return the kind of the scene's map that is nearest to the picture; "outline" for the drawing in black lines."""
    rivals = {rival: _gray(map_of(rival, scene)) for rival in _RIVALS}
    rivals["outline"] = 255 - rivals["edge"]
    if kind in _ALIKE and all(thing.shape != "circle" for thing in scene.objects):
        del rivals[_ALIKE[kind]]  # without circles, both maps have the same lines
    errors = _errors(_gray(picture_HW3), list(rivals.values()))
    return list(rivals)[int(errors.argmin())]


def mistaken_objects(kind: str, scene: Scene, picture_HW3: Pixels) -> list[str]:
    """Return a reason for each object with which the map is nearer to one with another shape or size."""
    reasons = []
    seen_CHW = _channels(kind, picture_HW3)
    for thing in scene.objects:
        others = [replace(thing, shape=shape) for shape in SHAPES] + [replace(thing, size=size) for size in SIZES]
        # The correct object comes first: `argmin` returns the first of equal maps.
        things = list(dict.fromkeys([thing, *others]))
        maps = [_channels(kind, map_of(kind, scene.swapped(thing, other))) for other in things]
        x, y = thing.center
        rows, columns = (slice(max(at - _REACH, 0), min(at + _REACH, UNITS)) for at in (y, x))
        nearest = things[int(_errors(seen_CHW, maps, rows, columns).argmin())]
        if nearest != thing:
            reasons.append(f"the {thing.size} {thing.color} {thing.shape} looks like a {nearest.size} {nearest.shape}")
    return reasons


def _channels(kind: str, picture_HW3: NDArray[np.number]) -> Floats:
    """Return a map's channels, float32 (C, H, W): RGB of a normal map, gray of all others."""
    return np.moveaxis(picture_HW3, -1, 0).astype(np.float32) if kind == "normal" else _gray(picture_HW3)


def _gray(picture_HW3: NDArray[np.number]) -> Floats:
    return picture_HW3.mean(-1, dtype=np.float32)[None]


def _errors(picture_CHW: Floats, maps: Sequence[Floats], rows: slice = _ALL, columns: slice = _ALL) -> Floats:
    """Return the mean squared error between the picture and each map in a region, float32 (M,).

    Minimized over sharp and soft maps and over shifts of up to one pixel. The region's border is excluded, since shifts
    wrap around.
    """
    shown_Chw = picture_CHW[:, rows, columns]
    moved_SChw = np.stack([np.roll(shown_Chw, shift, (1, 2)) for shift in _SHIFTS])[..., 1:-1, 1:-1]
    sharp_MCHW = np.stack(maps)
    least = []
    for soft in _SOFTNESS:
        wanted_MCHW = blurred(sharp_MCHW, soft) if soft else sharp_MCHW
        wanted_MChw = wanted_MCHW[:, :, rows, columns][..., 1:-1, 1:-1]
        least.append(((moved_SChw - wanted_MChw[:, None]) ** 2).mean((2, 3, 4)).min(1))
    return np.minimum(*least)
