"""When a claim holds: what is compared, over the seeds, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from .exam import TaskScore, is_large, is_small
from .train import FULL, NO_SIGLIP, RAW, STAGE1_ALONE, WEIGHTS, Variant

LEAST_SEEDS = 3
_LEAST = 0.1  # points or dB; a smaller difference is none, however steady: it is below what the page writes
_ENDS = 0.02  # a share this near to none or all

Outcome = Literal["higher", "lower", "no clear difference", "too few seeds", "not measured"]

# {variant: {seed: its scores}}
TaskScores = Mapping[Variant, Mapping[int, Sequence[TaskScore]]]


@dataclass(frozen=True)
class Measure:
    """A mean over tasks, of shares or of dB."""

    name: str
    value: Callable[[TaskScore], float | None]
    is_share: bool = True

    def of(self, scores: Sequence[TaskScore]) -> float | None:
        """The mean over the tasks that have it; None if none has."""
        known = [value for value in map(self.value, scores) if value is not None]
        return fmean(known) if known else None


RIGHT = Measure("tasks done right", lambda score: float(score.right))
KEPT = Measure("objects kept", lambda score: score.kept)
PSNR = Measure("PSNR of the untouched area", lambda score: score.psnr, is_share=False)
MEASURES = (RIGHT, KEPT, PSNR)

# {which tasks: whether a score is of them}
GROUPS: dict[str, Callable[[TaskScore], bool]] = {
    "all": lambda score: True,
    "small edits": is_small,
    "large edits": is_large,
}


@dataclass(frozen=True)
class Comparison:
    """A measure of two variants on some tasks, by seed in the same order; a number is None where no task has it."""

    measure: Measure
    group: str
    ours: tuple[float | None, ...]
    theirs: tuple[float | None, ...]

    @property
    def differences(self) -> tuple[float, ...]:
        """Ours less theirs, of the seeds that have both."""
        pairs = zip(self.ours, self.theirs)
        return tuple(one - other for one, other in pairs if one is not None and other is not None)

    @property
    def saturated(self) -> bool:
        """Whether both sides have all or nothing of a share on every seed, so that no difference could show."""
        known = [value for value in (*self.ours, *self.theirs) if value is not None]
        return self.measure.is_share and (max(known, default=1.0) < _ENDS or min(known, default=0.0) > 1 - _ENDS)

    @property
    def outcome(self) -> Outcome:
        """Ours is higher or lower where the mean difference is larger than the differences' spread, largest less
        smallest: then every seed says the same. Of equal variants with normal differences, three seeds call 4% higher;
        what the trunks of two sides differ by, all seeds have alike.
        """
        differences = self.differences
        if len(differences) < len(self.ours):
            return "not measured"
        if len(differences) < LEAST_SEEDS:
            return "too few seeds"
        mean, spread = fmean(differences), max(differences) - min(differences)
        if abs(mean) <= spread or abs(mean) < (_LEAST / 100 if self.measure.is_share else _LEAST):
            return "no clear difference"
        return "higher" if mean > 0 else "lower"


@dataclass(frozen=True)
class Claim:
    """Something that the paper says, and how it stands here.

    Attributes:
        name: short, for files.
        sentence: what is claimed.
        ours, theirs: the variants compared.
        decisive: comparisons in which ours has to be higher.
        besides: further ones, which decide nothing.
    """

    name: str
    sentence: str
    ours: Variant
    theirs: Variant
    decisive: tuple[Comparison, ...]
    besides: tuple[Comparison, ...]

    @property
    def sides(self) -> tuple[str, str]:
        """What tables call the two."""
        if self.ours.weight == self.theirs.weight:
            return self.ours.label, self.theirs.label
        ours, theirs = (f"{one.weight.replace('_', ' ')} weight" for one in (self.ours, self.theirs))
        return ours, theirs.replace("none", "no")

    @property
    def verdict(self) -> str:
        outcomes = [one.outcome for one in self.decisive]
        if "not measured" in outcomes or "too few seeds" in outcomes:
            return "not decided"
        if set(outcomes) == {"higher"}:
            return "holds"
        if "higher" in outcomes:
            return "holds in part"
        return "the other way round" if set(outcomes) == {"lower"} else "does not hold"


def claims_of(scores: TaskScores) -> tuple[Claim, ...]:
    """The paper's claims, of the scores of all variants on the tasks of the same seeds."""

    def compared(ours: Variant, theirs: Variant, measures: Sequence[Measure], group: str = "all") -> list[Comparison]:
        sides = [
            [[one for one in some if GROUPS[group](one)] for some in scores[side].values()] for side in (ours, theirs)
        ]
        return [Comparison(measure, group, *(tuple(map(measure.of, side)) for side in sides)) for measure in measures]

    def claim(name: str, sentence: str, theirs: Variant) -> Claim:
        decisive = tuple(compared(FULL, theirs, (KEPT, PSNR)))
        return Claim(name, sentence, FULL, theirs, decisive, tuple(compared(FULL, theirs, (RIGHT,))))

    def weight_claim(weight: str) -> Claim:
        ours, none = WEIGHTS[weight], WEIGHTS["none"]
        sentence = f"The {weight.replace('_', ' ')} edit weight gets more small edits right than no weight."
        besides = [*compared(ours, none, (RIGHT,), "large edits"), *compared(ours, none, (KEPT,))]
        return Claim(
            f"weight_{weight}",
            sentence,
            ours,
            none,
            tuple(compared(ours, none, (RIGHT,), "small edits")),
            tuple(besides),
        )

    ema = tuple(compared(FULL, RAW, MEASURES))
    return (
        claim("stages", "Stage 1 alone cannot hold on to the reference as stage 2 can.", STAGE1_ALONE),
        claim("siglip", "Without SigLIP features consistency falls.", NO_SIGLIP),
        *(weight_claim(weight) for weight in WEIGHTS if weight != "none"),
        Claim("ema", "Averaged weights (EMA) are better than the raw ones of the same run.", FULL, RAW, ema, ()),
    )
