"""Confidence intervals by bootstrap over clusters: source pictures or prompts, whose items are not independent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .items import BenchItem, BenchScores, Suite, Values

RESAMPLES = 1000
_SEED = 0
_LEVELS = (2.5, 97.5)

Entries = Sequence[tuple[BenchItem, Values]]


def flat(scores: BenchScores) -> dict[str, float]:
    """Return all means by "group/column" and "overall/name"."""
    cells = {f"{group}/{column}": value for group, row in scores.groups.items() for column, value in row.items()}
    return {**cells, **{f"overall/{name}": value for name, value in scores.overall.items()}}


def intervals(suite: Suite, entries: Entries) -> dict[str, tuple[float, float]]:
    """Return the 95% intervals of all means: percentiles over resamples of the clusters, with the published formula.

    A mean that some resamples lack, such as that of a group with a single cluster, has the interval of the others.
    """
    found: dict[str, list[float]] = {}
    for chosen in _resampled([item.cluster for item, _ in entries]):
        for name, value in flat(suite.aggregate([entries[place] for place in chosen])).items():
            found.setdefault(name, []).append(value)
    return {name: _interval(values) for name, values in found.items()}


@dataclass(frozen=True)
class Difference:
    """The difference of a mean between two runs, with its 95% interval."""

    value: float
    low: float
    high: float


def differences(suite: Suite, first: Entries, second: Entries) -> dict[str, Difference]:
    """Return the differences of all means, first minus second, by a paired bootstrap.

    Args:
        first, second: entries of the same results in the same order.
    """

    def difference(chosen: Sequence[int]) -> dict[str, float]:
        one, other = (flat(suite.aggregate([run[place] for place in chosen])) for run in (first, second))
        return {name: one[name] - other[name] for name in one if name in other}

    found: dict[str, list[float]] = {}
    for chosen in _resampled([item.cluster for item, _ in first]):
        for name, value in difference(chosen).items():
            found.setdefault(name, []).append(value)
    values = difference(range(len(first))) if first else {}
    return {name: Difference(value, *_interval(found.get(name, [value]))) for name, value in values.items()}


def _interval(values: Sequence[float]) -> tuple[float, float]:
    low, high = np.percentile(values, _LEVELS)
    return float(low), float(high)


def _resampled(clusters: Sequence[str]) -> Sequence[list[int]]:
    """Return the places of the entries of randomly drawn clusters; none for fewer than two clusters."""
    places: dict[str, list[int]] = {}
    for place, cluster in enumerate(clusters):
        places.setdefault(cluster, []).append(place)
    if len(places) < 2:
        return []
    groups, rng = list(places.values()), np.random.default_rng(_SEED)
    drawn = rng.integers(len(groups), size=(RESAMPLES, len(groups)))
    return [[place for number in row for place in groups[number]] for row in drawn]
