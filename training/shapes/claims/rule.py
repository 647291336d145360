"""The rule for claims: which measures are compared over the seeds, and when a claim holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from .exam import TaskScore, is_large, is_small
from .train import FULL, NO_SIGLIP, RAW, STAGE1_ALONE, WEIGHTS, Variant

MIN_SEEDS = 3
_MIN_DIFFERENCE = 0.1  # points or dB, the precision of the page; smaller differences count as none, however consistent
_SATURATION = 0.02  # distance from 0 or 1 within which a fraction is saturated

Outcome = Literal["higher", "lower", "no clear difference", "too few seeds", "not measured"]

# {variant: {seed: its scores}}
TaskScores = Mapping[Variant, Mapping[int, Sequence[TaskScore]]]


@dataclass(frozen=True)
class Measure:
    """A mean over tasks, of a fraction or of dB."""

    name: str
    value: Callable[[TaskScore], float | None]
    is_share: bool = True

    def of(self, scores: Sequence[TaskScore]) -> float | None:
        """Return the mean over the tasks that have a value, or None if there are none."""
        known = [value for value in map(self.value, scores) if value is not None]
        return fmean(known) if known else None


RIGHT = Measure("tasks done right", lambda score: float(score.right))
KEPT = Measure("objects kept", lambda score: score.kept)
PSNR = Measure("PSNR of the untouched area", lambda score: score.psnr, is_share=False)
MEASURES = (RIGHT, KEPT, PSNR)

# {group of tasks: whether a score belongs to it}
GROUPS: dict[str, Callable[[TaskScore], bool]] = {
    "all": lambda score: True,
    "small edits": is_small,
    "large edits": is_large,
}


@dataclass(frozen=True)
class Comparison:
    """A measure of two variants on a group of tasks, by seed in the same order; None if no task of a seed has it."""

    measure: Measure
    group: str
    ours: tuple[float | None, ...]
    theirs: tuple[float | None, ...]

    @property
    def differences(self) -> tuple[float, ...]:
        """Ours minus theirs, for seeds that have both."""
        pairs = zip(self.ours, self.theirs)
        return tuple(one - other for one, other in pairs if one is not None and other is not None)

    @property
    def saturated(self) -> bool:
        """Whether both sides are near 0, or both near 1, on every seed, so that no difference could show."""
        known = [value for value in (*self.ours, *self.theirs) if value is not None]
        return self.measure.is_share and (
            max(known, default=1.0) < _SATURATION or min(known, default=0.0) > 1 - _SATURATION
        )

    @property
    def outcome(self) -> Outcome:
        """Ours is higher or lower if the mean difference exceeds the range of the differences.

        All seeds then agree in sign. With three seeds and normally distributed differences, 4% of equal variants are
        called higher by chance. A difference between the trunks of the two sides is common to all seeds.
        """
        differences = self.differences
        if len(differences) < len(self.ours):
            return "not measured"
        if len(differences) < MIN_SEEDS:
            return "too few seeds"
        mean, spread = fmean(differences), max(differences) - min(differences)
        if abs(mean) <= spread or abs(mean) < (_MIN_DIFFERENCE / 100 if self.measure.is_share else _MIN_DIFFERENCE):
            return "no clear difference"
        return "higher" if mean > 0 else "lower"


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, and the comparisons that decide it.

    Attributes:
        name: short name, for files.
        sentence: the claim.
        ours, theirs: the variants that are compared.
        decisive: comparisons in which ours must be higher.
        secondary: further comparisons, which do not affect the verdict.
    """

    name: str
    sentence: str
    ours: Variant
    theirs: Variant
    decisive: tuple[Comparison, ...]
    secondary: tuple[Comparison, ...]

    @property
    def sides(self) -> tuple[str, str]:
        """Names of the two sides in tables."""
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
        return "the opposite holds" if set(outcomes) == {"lower"} else "does not hold"


def claims_of(scores: TaskScores) -> tuple[Claim, ...]:
    """Return the paper's claims, from the scores of all variants on the tasks of the same seeds."""

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
        sentence = f"The {weight.replace('_', ' ')} edit weight improves small edits."
        secondary = [*compared(ours, none, (RIGHT,), "large edits"), *compared(ours, none, (KEPT,))]
        return Claim(
            f"weight_{weight}",
            sentence,
            ours,
            none,
            tuple(compared(ours, none, (RIGHT,), "small edits")),
            tuple(secondary),
        )

    ema = tuple(compared(FULL, RAW, MEASURES))
    return (
        claim("stages", "Stage 1 alone cannot preserve the reference as stage 2 does.", STAGE1_ALONE),
        claim("siglip", "Without SigLIP features, consistency decreases.", NO_SIGLIP),
        *(weight_claim(weight) for weight in WEIGHTS if weight != "none"),
        Claim("ema", "Averaged weights (EMA) are better than the raw weights of the same run.", FULL, RAW, ema, ()),
    )
