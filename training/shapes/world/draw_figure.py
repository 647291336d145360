"""Render people, and their skeletons in OpenPose's colors.

Shapes: H = W = side of the picture in pixels.
"""

from __future__ import annotations

import colorsys
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ....uniworld_core.perception.heads import JOINTS
from .figure import BONES, Figure, Point, joints_of
from .scene import UNITS

_OVERSAMPLE = 4
_HEAD, _LIMB = 4.5, 4.0  # radius of the head, width of arms and legs
# Wide enough for the core's pose head to read them at 64 pixels: smaller discs lose their color in the VAE.
DISC, BONE = 2.75, 2.0  # radius of a joint's disc, width of a bone
BONE_LEVEL = 0.6  # ControlNet's annotator dims bones to this fraction
_HUE = 20  # degrees from one joint to the next

Gray = NDArray[np.float32]


def person_cover(person: Figure, side: int) -> Gray:
    """Return a person's coverage of each pixel: float32 (H, W) in 0..1."""
    return _cover(person.arms, person.legs, person.x, person.y, side)


@lru_cache(maxsize=1024)
def _cover(arms: str, legs: str, x: int, y: int, side: int) -> Gray:
    canvas = _Canvas(Image.new("L", (side * _OVERSAMPLE,) * 2))
    at = {name: (x + right, y + down) for name, (right, down) in joints_of(arms, legs).items()}
    for one, other in BONES:
        # Only arms, legs and neck are drawn as limbs; the trunk is a polygon.
        if one != "neck" or other == "nose":
            canvas.bone(at[one], at[other], _LIMB, 255)
    trunk = [at[name] for name in ("left shoulder", "right shoulder", "right hip", "left hip")]
    for here, there in zip(trunk, (*trunk[1:], trunk[0])):
        canvas.bone(here, there, _LIMB, 255)
    canvas.polygon(trunk, 255)
    canvas.disc(at["nose"], _HEAD, 255)
    cover_HW = canvas.reduced().astype(np.float32) / np.float32(255)
    cover_HW.setflags(write=False)
    return cover_HW


def skeletons(figures: tuple[Figure, ...], side: int) -> NDArray[np.uint8]:
    """Render skeletons on black: discs at joints over dimmed bones, each with its own hue. uint8 (H, W, 3)."""
    canvas = _Canvas(Image.new("RGB", (side * _OVERSAMPLE,) * 2))
    for person in figures:
        at = person.joints()
        for number, (one, other) in enumerate(BONES):
            canvas.bone(at[one], at[other], BONE, hue(number, BONE_LEVEL))
        for name, center in at.items():
            canvas.disc(center, DISC, hue(JOINTS.index(name)))
    return canvas.reduced()


def hue(number: int, level: float = 1.0) -> tuple[int, int, int]:
    """Return the color of a joint or bone by its number."""
    red, green, blue = colorsys.hsv_to_rgb(_HUE * number / 360, 1, level)
    return round(255 * red), round(255 * green), round(255 * blue)


class _Canvas:
    """Draws on an oversampled picture, with lengths in units."""

    def __init__(self, image: Image.Image) -> None:
        self._image, self._pen, self._scale = image, ImageDraw.Draw(image), image.width / UNITS

    def disc(self, center: Point, radius: float, color: int | tuple[int, int, int]) -> None:
        x, y, r = (value * self._scale for value in (*center, radius))
        self._pen.ellipse((x - r, y - r, x + r - 1, y + r - 1), fill=color)

    def bone(self, one: Point, other: Point, width: float, color: int | tuple[int, int, int]) -> None:
        """Draw a line with round ends."""
        ends = [(x * self._scale, y * self._scale) for x, y in (one, other)]
        self._pen.line(ends, fill=color, width=round(width * self._scale))
        for end in (one, other):
            self.disc(end, width / 2, color)

    def polygon(self, corners: list[Point], color: int) -> None:
        self._pen.polygon([(x * self._scale, y * self._scale) for x, y in corners], fill=color)

    def reduced(self) -> NDArray[np.uint8]:
        """Return the picture at its final size."""
        return np.asarray(self._image.reduce(_OVERSAMPLE))
