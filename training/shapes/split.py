"""What training never sees: a fixed tenth of all combinations of colour, shape and place.

The tenth is chosen by a hash of the words, so that it is the same in every version and on every machine.
"""

from __future__ import annotations

import hashlib
from functools import cache
from itertools import product
from typing import Literal

import numpy as np

from .world import COLOURS, PLACES, SHAPES, Object, Scene, Triple, pick

Split = Literal["train", "test"]
HELD_OUT_SHARE = 0.1


@cache
def held_out_triples() -> tuple[Triple, ...]:
    """The (colour, shape, place) that only test tasks hold."""
    ranked = sorted(_triples(), key=lambda triple: hashlib.sha256(" ".join(triple).encode()).hexdigest())
    return tuple(ranked[: round(HELD_OUT_SHARE * len(ranked))])


@cache
def trained_triples() -> tuple[Triple, ...]:
    """All the others."""
    return tuple(triple for triple in _triples() if triple not in held_out_triples())


def is_held_out(thing: Object) -> bool:
    return thing.triple in _held_out_set()


def holds_held_out(scene: Scene) -> bool:
    """Whether any object of the scene is of a held-out combination."""
    return any(is_held_out(thing) for thing in scene.objects)


def draw_triple(rng: np.random.Generator, split: Split) -> Triple:
    """A colour, shape and place: never a held-out one for training; for testing, every other time one."""
    if split == "train":
        return pick(rng, trained_triples())
    return pick(rng, held_out_triples() if rng.random() < 0.5 else _triples())


def check_split(split: str) -> None:
    """Raises ValueError for a split of another name."""
    if split not in ("train", "test"):
        raise ValueError(f"The split '{split}' is not known; choose train or test.")


@cache
def _triples() -> tuple[Triple, ...]:
    return tuple(product(COLOURS, SHAPES, PLACES))


@cache
def _held_out_set() -> frozenset[Triple]:
    return frozenset(held_out_triples())
