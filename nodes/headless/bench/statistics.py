"""Confidence intervals by bootstrap over clusters: source pictures or prompts, whose items are not independent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .items import DRAW, BenchItem, BenchScores, Suite, Values

RESAMPLES = 1000
# Resamples of fewer clusters hardly differ from each other, so that an interval would be far too narrow.
MIN_CLUSTERS = 5
_SEED = 0
_LEVELS = (2.5, 97.5)
_OVERALL = "overall/"

Entries = Sequence[tuple[BenchItem, Values]]


def flat(scores: BenchScores) -> dict[str, float]:
    """Return all means by "group/column" and "overall/name"."""
    cells = {f"{group}/{column}": value for group, row in scores.groups.items() for column, value in row.items()}
    return {**cells, **{f"{_OVERALL}{name}": value for name, value in scores.overall.items()}}


def intervals(suite: Suite, entries: Entries) -> dict[str, tuple[float, float]]:
    """Return the 95% intervals of means: percentiles over resamples of the clusters, with the published formula.

    A mean of fewer than `MIN_CLUSTERS` clusters has none, nor has an overall score that depends on such a group.
    """
    allowed = _with_enough(suite, entries)
    found: dict[str, list[float]] = {}
    for (drawn,) in _resampled([entries]) if allowed else ():
        for name, value in _means(suite, drawn, allowed).items():
            found.setdefault(name, []).append(value)
    return {name: _interval(values) for name, values in found.items()}


@dataclass(frozen=True)
class Difference:
    """The difference of a mean between two runs, with its 95% interval if there are enough clusters for one."""

    value: float
    interval: tuple[float, float] | None

    @property
    def low(self) -> float | None:
        return None if self.interval is None else self.interval[0]

    @property
    def high(self) -> float | None:
        return None if self.interval is None else self.interval[1]


def differences(suite: Suite, first: Entries, second: Entries) -> dict[str, Difference]:
    """Return the differences of all means, first minus second, by a paired bootstrap.

    Args:
        first, second: entries of the same results in the same order.
    """
    allowed = _with_enough(suite, first) & _with_enough(suite, second)
    found: dict[str, list[float]] = {}
    for one, other in _resampled([first, second]) if allowed else ():
        means, others = _means(suite, one, allowed), _means(suite, other, allowed)
        for name in means.keys() & others.keys():
            found.setdefault(name, []).append(means[name] - others[name])
    if not first:
        return {}
    values, other_values = flat(suite.aggregate(first)), flat(suite.aggregate(second))
    return {
        name: Difference(value - other_values[name], _interval(found[name]) if name in found else None)
        for name, value in values.items()
        if name in other_values
    }


def _interval(values: Sequence[float]) -> tuple[float, float]:
    low, high = np.percentile(values, _LEVELS)
    return float(low), float(high)


def _with_enough(suite: Suite, entries: Entries) -> frozenset[str]:
    """Return the names of the means that have an interval.

    The clusters of a mean are those that give it a value on their own. An overall score that is a mean over groups needs
    enough clusters in each group.
    """
    by_part: dict[tuple[str, str], list[tuple[BenchItem, Values]]] = {}
    for item, values in entries:
        by_part.setdefault((item.group, item.cluster), []).append((item, values))
    clusters: dict[str, set[str]] = {}
    overall: dict[str, dict[str, set[str]]] = {}
    for (group, cluster), ones in by_part.items():
        for name in flat(suite.aggregate(ones)):
            clusters.setdefault(name, set()).add(cluster)
            overall.setdefault(name, {}).setdefault(group, set()).add(cluster)
    groups: dict[str, set[str]] = {}
    for group, cluster in by_part:
        groups.setdefault(group, set()).add(cluster)
    enough = {name for name, ones in clusters.items() if len(ones) >= MIN_CLUSTERS and not name.startswith(_OVERALL)}
    for name in suite.aggregate(entries).overall if entries else ():
        # A weighted sum of all groups is undefined for a single cluster.
        parts = overall.get(f"{_OVERALL}{name}", groups)
        least = (
            len(set().union(*parts.values()))
            if name in suite.pooled
            else min(len(parts.get(group, ())) for group in groups)
        )
        if least >= MIN_CLUSTERS:
            enough.add(f"{_OVERALL}{name}")
    return frozenset(enough)


def _means(suite: Suite, drawn: Entries, allowed: frozenset[str]) -> dict[str, float]:
    return {name: value for name, value in flat(suite.aggregate(drawn)).items() if name in allowed}


def _resampled(runs: Sequence[Entries]) -> Iterator[list[Entries]]:
    """Yield the entries of randomly drawn clusters, the same for each run.

    If a cluster is drawn again, its items carry the number of the draw, so that a suite which joins the results of an item
    joins those of one draw.
    """
    places: dict[str, list[int]] = {}
    for place, (item, _) in enumerate(runs[0]):
        places.setdefault(item.cluster, []).append(place)
    groups, rng = list(places.values()), np.random.default_rng(_SEED)
    copies: dict[tuple[int, int, int], tuple[BenchItem, Values]] = {}
    for row in rng.integers(len(groups), size=(RESAMPLES, len(groups))):
        draws: dict[int, int] = {}
        numbered = []
        for number in row.tolist():
            draw = draws[number] = draws.get(number, -1) + 1
            numbered += [(place, draw) for place in groups[number]]
        yield [[_copy(copies, runs, which, place, draw) for place, draw in numbered] for which in range(len(runs))]


def _copy(
    copies: dict[tuple[int, int, int], tuple[BenchItem, Values]],
    runs: Sequence[Entries],
    which: int,
    place: int,
    draw: int,
) -> tuple[BenchItem, Values]:
    if draw == 0:
        return runs[which][place]
    key = (which, place, draw)
    if key not in copies:
        item, values = runs[which][place]
        copies[key] = (replace(item, extra={**item.extra, DRAW: draw}), values)
    return copies[key]
