"""The report on the paper's claims: text, tables and plots, all generated from the scores."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from textwrap import fill
from typing import TYPE_CHECKING

from ....uniworld_core.errors import UniWorldError
from ...files import write_atomic
from .exam import SMALL
from .rule import GROUPS, MEASURES, MIN_SEEDS, RIGHT, Claim, Comparison, Measure, TaskScores, claims_of
from .train import FULL, KINDS, NO_SIGLIP, PUBLISHED_WEIGHT, RAW, SCHEDULE, STAGE1_ALONE, WEIGHTS, Variant

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAGE, NUMBERS = "REPORT.md", "claims.json"
REFERENCE_PLOT, WEIGHTS_PLOT = "claims_reference.png", "claims_weights.png"
_DPI = 80
_WIDTH = 120  # characters per line of the page


@dataclass(frozen=True)
class ClaimsReport:
    """The scores of all variants, and the settings of their training and evaluation (see `check_claims`)."""

    scores: TaskScores
    stage1_steps: int
    trunk_steps: int
    steps: int
    batch: int
    samples: int
    count: int
    paint_steps: int

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(self.scores[FULL])

    @cached_property
    def claims(self) -> tuple[Claim, ...]:
        return claims_of(self.scores)

    def text(self) -> str:
        """Return the page as Markdown."""
        claims = [part for number, claim in enumerate(self.claims, 1) for part in _claim(number, claim)]
        return "\n\n".join([_HEAD, self._summary(), self._method(), *claims, self._plots(), self._all_numbers()]) + "\n"

    def json(self) -> str:
        """Return settings, verdicts and all scores by seed as JSON."""
        settings = {
            "stage1_steps": self.stage1_steps,
            "trunk_steps": self.trunk_steps,
            "steps": self.steps,
            "batch": self.batch,
            "samples": self.samples,
            "count": self.count,
            "paint_steps": self.paint_steps,
            "seeds": self.seeds,
            "small": SMALL,
        }
        variants = {
            variant.name: {
                group: {measure.name: self.values(variant, measure, group) for measure in MEASURES} for group in GROUPS
            }
            for variant in self.scores
        }
        claims = [_claim_numbers(claim) for claim in self.claims]
        return json.dumps({"settings": settings, "claims": claims, "variants": variants}, indent=1) + "\n"

    def values(self, variant: Variant, measure: Measure, group: str = "all") -> list[float | None]:
        """Return a measure of a variant on a group of tasks, one value per seed."""
        return [measure.of([one for one in some if GROUPS[group](one)]) for some in self.scores[variant].values()]

    def _summary(self) -> str:
        rows = [(str(number), claim.sentence, f"**{claim.verdict}**") for number, claim in enumerate(self.claims, 1)]
        return _table([("", "claim", "verdict"), *rows])

    def _method(self) -> str:
        return "\n\n".join(
            ("## Method", *(fill(part, _WIDTH) for part in (self._training(), self._examination(), _RULE)))
        )

    def _training(self) -> str:
        seeds = ", ".join(map(str, self.seeds))
        return (
            f"All variants are trained with the package's own loop on {self.samples:,} tasks of the evaluated kinds, with a "
            f"batch size of {self.batch}. Stage 1 takes {self.stage1_steps} steps. Stage 2 starts from its averaged weights "
            f"and takes {self.trunk_steps + self.steps}. The first {self.trunk_steps} of these, the trunk, are one run "
            "without an edit weight. From the trunk's averaged weights, each variant branches off for each of the seeds "
            f'{seeds} and trains the last {self.steps} steps with its own settings. The variant "{NO_SIGLIP.label}" has its '
            f'own trunk, also without SigLIP. The variant "{STAGE1_ALONE.label}" is stage 1 throughout, '
            f"{self.stage1_steps + self.trunk_steps} steps and the branch. The settings are those of nano's recipe, except that the learning rate is constant "
            f"(`{SCHEDULE}`, as in the published stage 2), because a decaying rate has the same effect as averaging. "
            "Unless a variant says otherwise, its weights are averaged (EMA; the average of a branch starts from scratch and "
            f"covers about the last ninth of its steps), its edit weight is {PUBLISHED_WEIGHT}, and stage 2 uses SigLIP "
            "features. A seed determines the branches' data order, their noise, and the held-out tasks; everything before "
            "the branches is shared."
        )

    def _examination(self) -> str:
        some = next(iter(self.scores[FULL].values()))
        small, large = (sum(map(GROUPS[group], some)) for group in ("small edits", "large edits"))
        return (
            f"Every variant is evaluated on {self.count} held-out tasks of each of {len(KINDS)} kinds ({', '.join(KINDS)}) "
            f"with {self.paint_steps} sampling steps. An exact oracle judges the results. An edit is small if it changes at "
            f"most {100 * SMALL:.1f}% of the pixels; of the first seed's edits, {small} are small and {large} are large. An "
            "object takes less than a tenth of a picture, a background or a style nearly all of it, and few edits are in "
            "between."
        )

    def _plots(self) -> str:
        return (
            "## Plots\n\nBars are means over the seeds; dots are single seeds.\n\n"
            f"![Preserving the reference]({REFERENCE_PLOT})\n\n![Edit weights]({WEIGHTS_PLOT})"
        )

    def _all_numbers(self) -> str:
        columns = [(measure, "all") for measure in MEASURES] + [(RIGHT, "small edits"), (RIGHT, "large edits")]
        heads = ("variant", *(measure.name + ("" if group == "all" else f", {group}") for measure, group in columns))
        rows = [
            (variant.label, *(mean_and_range(self.values(variant, *column), column[0]) for column in columns))
            for variant in self.scores
        ]
        return f"## All scores\n\nThe mean over the seeds (smallest to largest).\n\n{_table([heads, *rows])}"


_HEAD = """# The paper's claims, checked at small scale

`uniworld eval claims` generates this page, including its text, from its measurements (`claims.json`). It checks claims of
the UniWorld-V1 paper (arXiv 2506.03147) in the world of shapes with nano, a model of a few million parameters. Nothing
here was tested at full size."""

_RULE = (
    "**The rule.** Two variants differ if the mean of their differences over the seeds is larger than the range of these "
    "differences (largest minus smallest), and at least 0.1 points or dB. All seeds then have the same sign. With three "
    "seeds and normally distributed differences, the rule calls 4% of equal variants higher by chance, so one comparison on "
    "this page may be wrong. Variants on different trunks, as in the first two claims, also differ by the randomness of a "
    "single trunk, which the seeds do not measure. A claim holds if every measure in bold is higher, as claimed. It is not "
    f"decided with fewer than {MIN_SEEDS} seeds."
)


def need_matplotlib() -> None:
    """Check that matplotlib is installed. Raises UniWorldError otherwise."""
    if find_spec("matplotlib") is None:
        raise UniWorldError('Plotting needs matplotlib: pip install "uniworld[train]".')


def write_report(report: ClaimsReport, folder: Path) -> None:
    """Write the page, its plots and the scores.

    Raises:
        UniWorldError: a file cannot be written.
    """
    write_atomic(folder / NUMBERS, report.json().encode())
    write_atomic(folder / REFERENCE_PLOT, _png(_reference_figure(report)))
    write_atomic(folder / WEIGHTS_PLOT, _png(_weights_figure(report)))
    write_atomic(folder / PAGE, report.text().encode())


def mean_and_range(values: Sequence[float | None], measure: Measure, difference: bool = False) -> str:
    """Format the mean over the seeds and, in brackets, the range: in percent or dB, or percentage points for differences."""
    known = [_scaled(value, measure) for value in values if value is not None]
    if not known:
        return "none"
    sign = "+" if difference else ""
    mean, least, most = (f"{value:{sign}.1f}" for value in (fmean(known), min(known), max(known)))
    return f"{mean} {_unit(measure, difference)} ({least} to {most})"


def _unit(measure: Measure, difference: bool = False) -> str:
    return ("points" if difference else "%") if measure.is_share else "dB"


def _scaled(value: float, measure: Measure) -> float:
    return 100 * value if measure.is_share else value


def _claim(number: int, claim: Claim) -> tuple[str, str, str]:
    heads = ("measure", "tasks", *claim.sides, "difference", "outcome")
    rows = [_row(one, True) for one in claim.decisive] + [_row(one, False) for one in claim.secondary]
    return f"## {number}. {claim.sentence}", fill(_verdict(claim), _WIDTH), _table([heads, *rows])


def _verdict(claim: Claim) -> str:
    """Return the verdict and its reasons, as sentences."""
    ours, theirs = claim.sides
    decisive, secondary = ("; ".join(map(_reason, some)) for some in (claim.decisive, claim.secondary))
    also = f" In addition, {secondary}." if secondary else ""
    return f"**{claim.verdict.capitalize()}.** {ours[0].upper()}{ours[1:]} compared with {theirs}: {decisive}.{also}"


def _reason(one: Comparison) -> str:
    tasks = "" if one.group == "all" else f" ({one.group})"
    result = f"{one.measure.name}{tasks} {_OUTCOMES[one.outcome]}, {mean_and_range(one.differences, one.measure, True)}"
    if one.saturated and one.outcome == "no clear difference":
        return f"{result}; both values are near 0 or 100%, so no difference could show"
    return result


_OUTCOMES = {
    "higher": "is higher",
    "lower": "is lower",
    "no clear difference": "shows no difference beyond the range over the seeds",
    "too few seeds": f"was measured with fewer than {MIN_SEEDS} seeds",
    "not measured": "was not measured, because a seed has no such task",
}


def _row(one: Comparison, decisive: bool) -> tuple[str, ...]:
    name = f"**{one.measure.name}**" if decisive else one.measure.name
    sides = (mean_and_range(one.ours, one.measure), mean_and_range(one.theirs, one.measure))
    return name, one.group, *sides, mean_and_range(one.differences, one.measure, True), one.outcome


def _claim_numbers(claim: Claim) -> dict[str, object]:
    def numbers(one: Comparison, decisive: bool) -> dict[str, object]:
        sides = {"ours": one.ours, "theirs": one.theirs, "differences": one.differences}
        return {"measure": one.measure.name, "tasks": one.group, **sides, "outcome": one.outcome, "decisive": decisive}

    comparisons = [numbers(one, True) for one in claim.decisive] + [numbers(one, False) for one in claim.secondary]
    words = {"name": claim.name, "sentence": claim.sentence, "verdict": claim.verdict}
    return {**words, "ours": claim.ours.name, "theirs": claim.theirs.name, "comparisons": comparisons}


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def _reference_figure(report: ClaimsReport) -> Figure:
    figure = _figure(12, 3.6)
    variants = {"stage 1\nalone": STAGE1_ALONE, "without\nSigLIP": NO_SIGLIP, "raw\nweights": RAW, "stage 2": FULL}
    for axes, measure in zip(figure.subplots(1, len(MEASURES)), MEASURES):
        _bars(axes, {name: report.values(variant, measure) for name, variant in variants.items()}, measure)
        axes.set(title=measure.name, ylabel=_unit(measure))
    return figure


def _weights_figure(report: ClaimsReport) -> Figure:
    figure = _figure(12, 3.6)
    for axes, group in zip(figure.subplots(1, 2), ("small edits", "large edits")):
        values = {name.replace("_", "\n"): report.values(variant, RIGHT, group) for name, variant in WEIGHTS.items()}
        _bars(axes, values, RIGHT)
        axes.set(title=f"{group}: {RIGHT.name}", ylabel=_unit(RIGHT))
    return figure


def _bars(axes: Axes, values: dict[str, list[float | None]], measure: Measure) -> None:
    for place, (name, some) in enumerate(values.items()):
        known = [_scaled(value, measure) for value in some if value is not None]
        axes.bar([name], [fmean(known) if known else 0.0], color="C0", alpha=0.4)
        axes.plot([place] * len(known), known, "o", color="C0", markersize=4)
    axes.grid(axis="y", alpha=0.3)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure  # not pyplot, which has global state and may need a display

    return Figure(figsize=(width, height), layout="constrained")


def _png(figure: Figure) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=_DPI)
    return picture.getvalue()
