"""The held-out split: a fixed tenth of all combinations of color, shape and place, and of pose, spot and color.

Training never contains them. They are selected by a hash of the words, so that they are the same on every machine and
with every version of the libraries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import Literal

import numpy as np

from ....uniworld_core.errors import UniWorldError
from ..world.figure import ARMS, LEGS, SPOTS, Combination, Figure
from ..world.scene import COLORS, PLACES, SHAPES, Object, Scene, Triple, pick

Split = Literal["train", "test"]
HELD_OUT_SHARE = 0.1


@cache
def held_out_triples() -> tuple[Triple, ...]:
    """Return the (color, shape, place) that occur only in test tasks."""
    return _tenth(_triples())


@cache
def trained_triples() -> tuple[Triple, ...]:
    """Return all other (color, shape, place)."""
    return tuple(triple for triple in _triples() if triple not in held_out_triples())


@cache
def held_out_combinations() -> tuple[Combination, ...]:
    """Return the (pose, spot, color) of people that occur only in test tasks."""
    return _tenth(_combinations())


@cache
def trained_combinations() -> tuple[Combination, ...]:
    """Return all other (pose, spot, color) of people."""
    return tuple(one for one in _combinations() if one not in held_out_combinations())


def is_held_out(thing: Object | Figure) -> bool:
    if isinstance(thing, Figure):
        return thing.combination in held_out_combinations()
    return thing.triple in _held_out_set()


def holds_held_out(scene: Scene) -> bool:
    """Whether any object or person of the scene has a held-out combination."""
    return any(map(is_held_out, scene.objects)) or any(map(is_held_out, scene.figures))


def draw_triple(rng: np.random.Generator, split: Split) -> Triple:
    """Sample a color, shape and place: never a held-out one for "train"; one with probability 1/2 or more for "test"."""
    if split == "train":
        return pick(rng, trained_triples())
    return pick(rng, held_out_triples() if rng.random() < 0.5 else _triples())


def draw_combination(rng: np.random.Generator, split: Split) -> Combination:
    """Sample a person's pose, spot and color, with held-out ones as in `draw_triple`."""
    if split == "train":
        return pick(rng, trained_combinations())
    return pick(rng, held_out_combinations() if rng.random() < 0.5 else _combinations())


def check_split(split: str) -> None:
    """Raise UniWorldError if the split is unknown."""
    if split not in ("train", "test"):
        raise UniWorldError(f"Unknown split '{split}'; choose train or test.")


@cache
def _triples() -> tuple[Triple, ...]:
    return tuple(product(COLORS, SHAPES, PLACES))


@cache
def _combinations() -> tuple[Combination, ...]:
    poses = [f"{arms} {legs}" for arms, legs in product(ARMS, LEGS)]
    return tuple(product(poses, SPOTS, COLORS))


def _tenth(everything: Sequence[Triple]) -> tuple[Triple, ...]:
    ranked = sorted(everything, key=lambda words: hashlib.sha256(" ".join(words).encode()).hexdigest())
    return tuple(ranked[: round(HELD_OUT_SHARE * len(ranked))])


@cache
def _held_out_set() -> frozenset[Triple]:
    return frozenset(held_out_triples())
