"""The gain of a run with rewards: paired differences on equal tasks and noise, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_RESAMPLES = 10_000
LEVEL = 0.95


@dataclass(frozen=True)
class Gain:
    """A difference of means in points (percent), after minus before, with its interval.

    Attributes:
        before, after: means in percent.
        low, high: ends of the interval of the difference.
        count: tasks.
    """

    before: float
    after: float
    low: float
    high: float
    count: int

    @property
    def points(self) -> float:
        return self.after - self.before


def paired_gain(
    before: Mapping[str, Sequence[float]], after: Mapping[str, Sequence[float]], seed: int = 0, level: float = LEVEL
) -> Gain:
    """Return the gain in the mean over kinds. Tasks are resampled within their kind, before and after together.

    Args:
        before, after: {kind: one value in 0..1 per task}, with the same kinds and tasks.
        seed: seed of the resampling.
        level: level of the interval.
    """
    rng = np.random.default_rng(seed)
    differences = np.zeros(_RESAMPLES)
    for kind, values in before.items():
        pairs: NDArray[np.float64] = np.asarray(after[kind], dtype=np.float64) - np.asarray(values, dtype=np.float64)
        chosen = rng.integers(0, len(pairs), (_RESAMPLES, len(pairs)))
        differences += pairs[chosen].mean(axis=1) / len(before)
    tail = 50 * (1 - level)
    low, high = np.percentile(100 * differences, [tail, 100 - tail])
    means = [100 * float(np.mean([np.mean(side[kind]) for kind in before])) for side in (before, after)]
    return Gain(means[0], means[1], float(low), float(high), sum(map(len, before.values())))
