"""Common types of the benchmarks: a missing score, a table, and means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from .....uniworld_core.errors import UniWorldError

# `published` returns the value of the published script wherever that has one. `strict` accepts only replies in the format
# that the judge was asked for.
Mode = Literal["published", "strict"]
MODES: tuple[Mode, Mode] = ("published", "strict")


# The published scripts read numbers of any size. Means and products of larger ones could overflow; they are unscored.
LARGEST = 1e100


@dataclass(frozen=True)
class Unscored:
    """A missing score. It is reported, never replaced by a number.

    Attributes:
        reason: what is wrong with the reply.
    """

    reason: str


@dataclass(frozen=True)
class Table:
    """Mean scores of groups.

    Attributes:
        groups: mean of each group; groups without scores are omitted.
        counts: number of items in each mean.
        overall: the benchmark's overall scores by name; undefined ones are omitted.
        unscored: items without a score, with the reason.
    """

    groups: dict[str, float]
    counts: dict[str, int]
    overall: dict[str, float]
    unscored: dict[str, str]


T = TypeVar("T")


def split(outcomes: Mapping[str, T | Unscored]) -> tuple[dict[str, T], dict[str, str]]:
    """Split into the scored items and the reasons of the unscored ones."""
    scored = {name: one for name, one in outcomes.items() if not isinstance(one, Unscored)}
    return scored, {name: one.reason for name, one in outcomes.items() if isinstance(one, Unscored)}


def mean(values: Iterable[float]) -> float:
    """Return the mean. Raises UniWorldError if there are no values.

    Summed from left to right like in the published scripts, so that results are equal to the last digit.
    """
    items = list(values)
    if not items:
        raise UniWorldError("The mean of zero values is undefined. Score at least one item.")
    return sum(items) / len(items)
