"""What a painted map is most like: of all maps of a scene, and of those in which an object has another shape or size.

Lines are compared with a pixel's tolerance, in which small shapes are much alike; the nearest map tells them apart.

Shapes: H = W = 64, C channels, S shifts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from .maps import Floats, blurred, map_of
from .oracle import Pixels
from .world import SHAPES, SIZES, UNITS, Scene

# Maps that a picture is held against, each also as soft as a decoder makes it.
_RIVALS = ("edge", "hed", "mlsd", "sketch", "normal", "depth")
_ALIKE = {"mlsd": "edge", "edge": "mlsd"}  # but for what is round
_SOFTNESS = (0.0, 0.9)
_REACH = 13  # units around an object's centre that hold its outline, a soft one too
_SHIFTS = tuple((down, right) for down in (-1, 0, 1) for right in (-1, 0, 1))


def nearest_map(kind: str, scene: Scene, picture_HW3: Pixels) -> str:
    """The kind of map of the scene that a picture is nearest to, "outline" for the drawing in black lines."""
    rivals = {rival: _gray(map_of(rival, scene)) for rival in _RIVALS}
    rivals["outline"] = 255 - rivals["edge"]
    if kind in _ALIKE and all(thing.shape != "circle" for thing in scene.objects):
        del rivals[_ALIKE[kind]]  # has the same lines
    moved = _moved(_gray(picture_HW3))
    errors = {rival: _error(moved, map_1HW) for rival, map_1HW in rivals.items()}
    return min(errors, key=lambda rival: errors[rival])


def mistaken_objects(kind: str, scene: Scene, picture_HW3: Pixels) -> list[str]:
    """What is wrong where a map is nearer to one in which an object had another shape or the other size."""
    reasons = []
    seen_CHW = _channels(kind, picture_HW3)
    truth_CHW = _channels(kind, map_of(kind, scene))
    for thing in scene.objects:
        x, y = thing.centre
        around = slice(None), *(slice(max(at - _REACH, 0), min(at + _REACH, UNITS)) for at in (y, x))
        moved = _moved(seen_CHW[around])
        errors = {thing: _error(moved, truth_CHW[around])}
        for other in (
            *(replace(thing, shape=shape) for shape in SHAPES),
            *(replace(thing, size=size) for size in SIZES),
        ):
            if other != thing:
                errors[other] = _error(moved, _channels(kind, map_of(kind, scene.swapped(thing, other)))[around])
        likest = min(errors, key=lambda one: errors[one])
        if errors[likest] < errors[thing]:
            reasons.append(f"the {thing.size} {thing.colour} {thing.shape} looks like a {likest.size} {likest.shape}")
    return reasons


def _channels(kind: str, picture_HW3: NDArray[np.number]) -> Floats:
    """What a map says at each pixel, float32 (C, H, W): colour in a normal map, gray in all others."""
    return np.moveaxis(picture_HW3, -1, 0).astype(np.float32) if kind == "normal" else _gray(picture_HW3)


def _gray(picture_HW3: NDArray[np.number]) -> Floats:
    return picture_HW3.mean(-1, dtype=np.float32)[None]


def _moved(picture_CHW: Floats) -> Sequence[Floats]:
    """The picture displaced by up to a pixel, without the rim that then comes in."""
    return [np.roll(picture_CHW, shift, (1, 2))[:, 1:-1, 1:-1] for shift in _SHIFTS]


def _error(moved: Sequence[Floats], map_CHW: Floats) -> float:
    """The least mean square between a map, sharp or soft, and a picture that may be displaced."""
    softened = [np.stack([blurred(map_HW, soft) if soft else map_HW for map_HW in map_CHW]) for soft in _SOFTNESS]
    return min(float(((seen - wanted[:, 1:-1, 1:-1]) ** 2).mean()) for wanted in softened for seen in moved)
