"""Scenes: objects with shape, color, size and place, on a ground of one or two colors; in pose tasks, people.

Lengths are in units of 1/64 of the picture's side, so that a scene does not depend on the resolution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from ....uniworld_core.errors import UniWorldError
from .figure import Combination, Figure

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross")
COLORS = {
    "red": (220, 30, 35),
    "green": (45, 175, 50),
    "blue": (40, 85, 235),
    "yellow": (250, 222, 40),
    "purple": (145, 40, 185),
    "orange": (250, 128, 15),
    "white": (255, 255, 255),
    "black": (8, 8, 8),
}
# Muted colors that no object has, so that objects are visible on every ground.
GROUNDS = {
    "gray": (128, 128, 128),
    "beige": (202, 186, 138),
    "brown": (112, 74, 46),
    "navy": (38, 50, 108),
    "teal": (24, 116, 128),
    "pink": (240, 152, 186),
}
SIZES = {"small": 14, "large": 20}  # diameter
# The nine places, row by row; their centers are 20 apart.
PLACES = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")
CENTERS = (12, 32, 52)
UNITS = 64
SIDE = 128  # default side of a picture in pixels: the size that nano paints
JITTER = {"small": 2, "large": 1}  # maximum offset of an object from the center of its place, in each direction
GAP = 2  # minimum distance of objects that do not overlap
SPLITS = ("plain", "left and right", "top and bottom")
# x of people's noses: of a single person by spot, and of two people side by side.
NOSES = {"left": 24, "center": 32, "right": 40}
NOSES_OF_TWO = {"left": 16, "right": 48}
NOSE_HEIGHT = 16

Option = TypeVar("Option")
Triple = tuple[str, str, str]


@dataclass(frozen=True)
class Object:
    """One object. `dx` and `dy` are its offset from the center of its place, in units, to the right and down."""

    shape: str
    color: str
    size: str
    place: str
    dx: int = 0
    dy: int = 0

    @property
    def center(self) -> tuple[int, int]:
        """x and y in units."""
        row, column = divmod(PLACES.index(self.place), 3)
        return CENTERS[column] + self.dx, CENTERS[row] + self.dy

    @property
    def triple(self) -> Triple:
        """Color, shape and place, by which the split holds out objects."""
        return self.color, self.shape, self.place


@dataclass(frozen=True)
class Ground:
    """A ground of one color, or of two halves, of which `first` is the left or top one."""

    first: str
    second: str = ""
    split: str = "plain"

    @property
    def colors(self) -> tuple[str, ...]:
        return (self.first, self.second) if self.second else (self.first,)


@dataclass(frozen=True)
class Scene:
    """A square picture of `side` pixels with objects, back to front, on a ground. People overlap nothing."""

    objects: tuple[Object, ...]
    ground: Ground
    side: int = UNITS
    figures: tuple[Figure, ...] = ()

    def without(self, removed: Object) -> Scene:
        return replace(self, objects=tuple(thing for thing in self.objects if thing != removed))

    def swapped(self, old: Object, new: Object) -> Scene:
        return replace(self, objects=tuple(new if thing == old else thing for thing in self.objects))

    def with_object(self, added: Object) -> Scene:
        return replace(self, objects=(*self.objects, added))


def rgb(color: str) -> tuple[int, int, int]:
    """Return the RGB value of a color of objects or grounds."""
    return COLORS[color] if color in COLORS else GROUNDS[color]


def pick(rng: np.random.Generator, options: Sequence[Option]) -> Option:
    """Return a uniformly random option."""
    return options[int(rng.integers(len(options)))]


def apart(one: Object, other: Object) -> bool:
    """Whether the bounding boxes of two objects are at least `GAP` apart."""
    (x0, y0), (x1, y1) = one.center, other.center
    return max(abs(x0 - x1), abs(y0 - y1)) >= (SIZES[one.size] + SIZES[other.size]) // 2 + GAP


def fits(scene: Scene, thing: Object) -> bool:
    """Whether an object can be added: its place is free, and it is apart from all others."""
    return all(thing.place != other.place and apart(thing, other) for other in scene.objects)


def random_object(rng: np.random.Generator, triple: Triple) -> Object:
    """Return an object with this color, shape and place, and a random size and jitter."""
    color, shape, place = triple
    size = pick(rng, tuple(SIZES))
    dx, dy = (int(step) for step in rng.integers(-JITTER[size], JITTER[size] + 1, 2))
    return Object(shape, color, size, place, dx, dy)


def random_ground(rng: np.random.Generator) -> Ground:
    """Return a plain ground or, with probability 1/3, a two-tone one."""
    names = tuple(GROUNDS)
    first = pick(rng, names)
    if rng.random() >= 1 / 3:
        return Ground(first)
    return Ground(first, pick(rng, [name for name in names if name != first]), pick(rng, SPLITS[1:]))


def random_scene(
    rng: np.random.Generator, count: int, triple: Callable[[np.random.Generator], Triple], side: int = UNITS
) -> Scene:
    """Return a scene of `count` objects (0 to 6) that do not overlap.

    Args:
        triple: samples an object's color, shape and place; this is where the split is enforced.
        side: side of the picture in pixels.
    """
    check_side(side)
    scene = Scene((), random_ground(rng), side)
    while len(scene.objects) < count:
        thing = random_object(rng, triple(rng))
        if fits(scene, thing):
            scene = scene.with_object(thing)
    return scene


def stacked_scene(
    rng: np.random.Generator, count: int, triple: Callable[[np.random.Generator], Triple], side: int = UNITS
) -> Scene:
    """Return a scene of `count` objects (at least 2), the last of which partly covers the one before it."""
    while True:
        scene = random_scene(rng, count - 1, triple, side)
        below, above = scene.objects[-1], random_object(rng, triple(rng))
        (row, column), (row_above, column_above) = (divmod(PLACES.index(thing.place), 3) for thing in (below, above))
        right, down = column_above - column, row_above - row
        # Two small objects would hardly overlap. With the same color, one could not see which is in front.
        if abs(right) + abs(down) != 1 or below.color == above.color or below.size == above.size == "small":
            continue
        near = 4 + int(rng.integers(2))
        below = replace(below, dx=near * right, dy=near * down)
        above = replace(above, dx=-near * right, dy=-near * down)
        rest = scene.objects[:-1]
        if all(apart(thing, other) and thing.place != other.place for thing in (below, above) for other in rest):
            return replace(scene, objects=(*rest, below, above))


def random_figure(rng: np.random.Generator, combination: Combination, noses: Mapping[str, int] = NOSES) -> Figure:
    """Return a person with this pose, spot and color, at a random offset."""
    pose, spot, color = combination
    arms, legs = pose.split()
    x = noses[spot] + int(rng.integers(-1, 2))
    return Figure(color, arms, legs, x, NOSE_HEIGHT + int(rng.integers(-3, 4)))


def figure_scene(
    rng: np.random.Generator,
    count: int,
    combination: Callable[[np.random.Generator], Combination],
    triple: Callable[[np.random.Generator], Triple],
    side: int = UNITS,
) -> Scene:
    """Return a scene of one person and, with probability 1/2, an object; or of two people.

    Args:
        count: number of people, 1 or 2.
        combination: samples a person's pose, spot and color.
        triple: samples an object's color, shape and place.
        side: side of the picture in pixels.
    """
    check_side(side)
    ground = random_ground(rng)
    while count == 2:
        pair = [combination(rng) for _ in range(2)]
        if tuple(spot for _, spot, _ in pair) == tuple(NOSES_OF_TWO) and not any("out" in pose for pose, *_ in pair):
            return Scene((), ground, side, tuple(random_figure(rng, one, NOSES_OF_TWO) for one in pair))
    with_object = rng.random() < 0.5
    while True:
        person = random_figure(rng, combination(rng))
        things = (random_object(rng, triple(rng)),) if with_object else ()
        if all(clear_of(person, thing) for thing in things):
            return Scene(things, ground, side, (person,))


def clear_of(person: Figure, thing: Object) -> bool:
    """Whether a person's and an object's bounding boxes are at least `GAP` apart."""
    (x, y), reach = thing.center, SIZES[thing.size] // 2 + GAP
    return all(
        x + reach <= left or right <= x - reach or y + reach <= top or bottom <= y - reach
        for left, top, right, bottom in person.boxes
    )


def check_side(side: int) -> None:
    """Raise UniWorldError if the side of a picture is invalid."""
    if side < 32 or side % 16:
        raise UniWorldError(f"The side of the pictures is {side}; it must be a multiple of 16 and at least 32 pixels.")
