"""What a painted map is most like: of all maps of a scene, and of those in which an object has another shape or size.

Lines are compared with a pixel's tolerance, in which small shapes are much alike; the nearest map tells them apart.

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

# Maps that a picture is held against, each also as soft as a decoder makes it.
_RIVALS = ("edge", "hed", "mlsd", "sketch", "normal", "depth")
_ALIKE = {"mlsd": "edge", "edge": "mlsd"}  # but for what is round
_SOFTNESS = (0.0, 0.9)
_REACH = 13  # units around an object's centre that hold its outline, a soft one too
_ALL = slice(None)
_SHIFTS = tuple((down, right) for down in (-1, 0, 1) for right in (-1, 0, 1))


def nearest_map(kind: str, scene: Scene, picture_HW3: Pixels) -> str:
    """The kind of map of the scene that a picture is nearest to, "outline" for the drawing in black lines."""
    rivals = {rival: _gray(map_of(rival, scene)) for rival in _RIVALS}
    rivals["outline"] = 255 - rivals["edge"]
    if kind in _ALIKE and all(thing.shape != "circle" for thing in scene.objects):
        del rivals[_ALIKE[kind]]  # has the same lines
    errors = _errors(_gray(picture_HW3), list(rivals.values()))
    return list(rivals)[int(errors.argmin())]


def mistaken_objects(kind: str, scene: Scene, picture_HW3: Pixels) -> list[str]:
    """What is wrong where a map is nearer to one in which an object had another shape or the other size."""
    reasons = []
    seen_CHW = _channels(kind, picture_HW3)
    for thing in scene.objects:
        others = [replace(thing, shape=shape) for shape in SHAPES] + [replace(thing, size=size) for size in SIZES]
        # Itself comes first: of maps that are alike the first is the nearest.
        things = list(dict.fromkeys([thing, *others]))
        maps = [_channels(kind, map_of(kind, scene.swapped(thing, other))) for other in things]
        x, y = thing.centre
        rows, columns = (slice(max(at - _REACH, 0), min(at + _REACH, UNITS)) for at in (y, x))
        likest = things[int(_errors(seen_CHW, maps, rows, columns).argmin())]
        if likest != thing:
            reasons.append(f"the {thing.size} {thing.colour} {thing.shape} looks like a {likest.size} {likest.shape}")
    return reasons


def _channels(kind: str, picture_HW3: NDArray[np.number]) -> Floats:
    """What a map says at each pixel, float32 (C, H, W): colour in a normal map, gray in all others."""
    return np.moveaxis(picture_HW3, -1, 0).astype(np.float32) if kind == "normal" else _gray(picture_HW3)


def _gray(picture_HW3: NDArray[np.number]) -> Floats:
    return picture_HW3.mean(-1, dtype=np.float32)[None]


def _errors(picture_CHW: Floats, maps: Sequence[Floats], rows: slice = _ALL, columns: slice = _ALL) -> Floats:
    """The least mean square between each map, sharp or soft, and the picture in a part of it, float32 (M,).

    The picture may be displaced by up to a pixel; the part's rim, which then comes in, is left out.
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
