"""What reading one reply, or scoring one picture, can come to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from ....uniworld_core.errors import UniWorldError

# `published` computes what the published scripts compute wherever these give a value. `strict` takes only replies of the
# form that the judge was asked for.
Mode = Literal["published", "strict"]


@dataclass(frozen=True)
class Unscored:
    """No score: counted and named, never replaced by a number.

    Attributes:
        reason: what is wrong with the reply, for a report.
    """

    reason: str


@dataclass(frozen=True)
class Table:
    """Means of groups and what they are made of.

    Attributes:
        groups: mean of each group; a group without any score is left out.
        counts: how many items each of these means is made of.
        overall: the benchmark's overall scores by name; a name is missing where the benchmark gives none.
        unscored: items without a score, with the reason.
    """

    groups: dict[str, float]
    counts: dict[str, int]
    overall: dict[str, float]
    unscored: dict[str, str]


T = TypeVar("T")


def split(outcomes: Mapping[str, T | Unscored]) -> tuple[dict[str, T], dict[str, str]]:
    """The scored items, and the reason of each unscored one."""
    scored = {name: one for name, one in outcomes.items() if not isinstance(one, Unscored)}
    return scored, {name: one.reason for name, one in outcomes.items() if isinstance(one, Unscored)}


def mean(values: Iterable[float]) -> float:
    """The mean, added up from left to right as the published scripts do. Raises UniWorldError for no values."""
    listed = list(values)
    if not listed:
        raise UniWorldError("There is no mean of no values.")
    return sum(listed) / len(listed)
