"""The page on the paper's claims: words, tables and plots, all of them from the numbers."""

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
from .rule import GROUPS, LEAST_SEEDS, MEASURES, RIGHT, Claim, Comparison, Measure, TaskScores, claims_of
from .train import FULL, KINDS, NO_SIGLIP, PUBLISHED_WEIGHT, RAW, SCHEDULE, STAGE1_ALONE, WEIGHTS, Variant

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAGE, NUMBERS = "REPORT.md", "claims.json"
REFERENCE_PLOT, WEIGHTS_PLOT = "claims_reference.png", "claims_weights.png"
_DPI = 80
_WIDTH = 120  # of the page's lines


@dataclass(frozen=True)
class ClaimsReport:
    """The scores of all variants, and the lengths they were made with (see `check_claims`)."""

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
        """The page, as Markdown."""
        claims = [part for number, claim in enumerate(self.claims, 1) for part in _claim(number, claim)]
        return "\n\n".join([_HEAD, self._summary(), self._method(), *claims, self._plots(), self._all_numbers()]) + "\n"

    def json(self) -> str:
        """All numbers by seed, and what follows from them."""
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
        """A measure of a variant on some tasks, by seed."""
        return [measure.of([one for one in some if GROUPS[group](one)]) for some in self.scores[variant].values()]

    def _summary(self) -> str:
        rows = [(str(number), claim.sentence, f"**{claim.verdict}**") for number, claim in enumerate(self.claims, 1)]
        return _table([("", "claim", "here"), *rows])

    def _method(self) -> str:
        return "\n\n".join(("## How", *(fill(part, _WIDTH) for part in (self._training(), self._examination(), _RULE))))

    def _training(self) -> str:
        seeds = ", ".join(map(str, self.seeds))
        return (
            f"All is trained with the package's own loop on {self.samples:,} tasks of the kinds that are examined, {self.batch} "
            f"a step: stage 1 for {self.stage1_steps} steps and then, from its averaged weights, stage 2 for "
            f"{self.trunk_steps + self.steps}. The first {self.trunk_steps} of these are one run, the trunk, without an edit "
            f"weight; from its averaged weights each variant branches off for each of the seeds {seeds} and takes the last "
            f'{self.steps} its own way. What is called "{NO_SIGLIP.label}" has a trunk of its own, without SigLIP too, and '
            f'"{STAGE1_ALONE.label}" is stage 1 all the way, {self.stage1_steps + self.trunk_steps} steps and the branch. '
            f"The settings are those of nano's recipe, but the rate does not fall (`{SCHEDULE}`, as in the published stage "
            "2): a falling rate does what averaging is there for. "
            "Weights are averaged (EMA; a branch's average begins anew and reaches back about a ninth of its steps), the "
            f"branches' edit weight is {PUBLISHED_WEIGHT}, and stage 2 is given SigLIP "
            "features, unless the variant says otherwise. A seed decides the order of the branches' data, their noise and the "
            "held-out tasks; all before is the same for all."
        )

    def _examination(self) -> str:
        some = next(iter(self.scores[FULL].values()))
        small, large = (sum(map(GROUPS[group], some)) for group in ("small edits", "large edits"))
        return (
            f"Every variant does {self.count} held-out tasks of each of {len(KINDS)} kinds ({', '.join(KINDS)}) in "
            f"{self.paint_steps} sampling steps, and the exact oracle judges them. An edit is small if it changes at most "
            f"{100 * SMALL:.1f}% of the picture's pixels ({small} of the first seed's edits are, and {large} are large): an "
            "object takes less than a tenth, a ground or a style nearly all, and few edits lie between."
        )

    def _plots(self) -> str:
        return (
            "## Plots\n\nBars are means over the seeds, dots the seeds.\n\n"
            f"![What holds on to the reference]({REFERENCE_PLOT})\n\n![The edit weights]({WEIGHTS_PLOT})"
        )

    def _all_numbers(self) -> str:
        columns = [(measure, "all") for measure in MEASURES] + [(RIGHT, "small edits"), (RIGHT, "large edits")]
        heads = ("variant", *(measure.name + ("" if group == "all" else f", {group}") for measure, group in columns))
        rows = [
            (variant.label, *(spread(self.values(variant, *column), column[0]) for column in columns))
            for variant in self.scores
        ]
        return f"## All numbers\n\nThe mean over the seeds (smallest to largest).\n\n{_table([heads, *rows])}"


_HEAD = """# The paper's claims, checked small

This page is written by `uniworld eval claims`, words included, from what it measured (`claims.json`). It says how
claims of the UniWorld-V1 paper (arXiv 2506.03147) stand in the world of shapes with nano, a few million parameters;
nothing here was tried at full size."""

_RULE = (
    "**The rule.** Two variants differ where the mean of their differences over the seeds is larger than the spread of these "
    "differences, the largest less the smallest, and at least 0.1 points or dB; all seeds then have the same sign. With "
    "three seeds and normal differences 4% of equal variants are called higher by chance, so of all comparisons here one "
    "may be. Sides that branch off different trunks, as those of the first two claims do, differ by what happened once in "
    "these too: the seeds tell nothing of how much another trunk would change. A claim holds where every "
    f"measure in bold is higher as claimed, and is not decided with fewer than {LEAST_SEEDS} seeds."
)


def need_matplotlib() -> None:
    """Raises UniWorldError if matplotlib, which draws the plots, is not installed."""
    if find_spec("matplotlib") is None:
        raise UniWorldError('Drawing needs matplotlib: pip install "uniworld[train]".')


def write_report(report: ClaimsReport, folder: Path) -> None:
    """Write the page, its plots and the numbers.

    Raises:
        UniWorldError: a file cannot be written.
    """
    write_atomic(folder / NUMBERS, report.json().encode())
    write_atomic(folder / REFERENCE_PLOT, _png(_reference_figure(report)))
    write_atomic(folder / WEIGHTS_PLOT, _png(_weights_figure(report)))
    write_atomic(folder / PAGE, report.text().encode())


def spread(values: Sequence[float | None], measure: Measure, difference: bool = False) -> str:
    """The mean over the seeds and, in brackets, the smallest and the largest, in per cent or dB; of differences of shares
    in percentage points.
    """
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
    rows = [_row(one, True) for one in claim.decisive] + [_row(one, False) for one in claim.besides]
    return f"## {number}. {claim.sentence}", fill(_verdict(claim), _WIDTH), _table([heads, *rows])


def _verdict(claim: Claim) -> str:
    """The verdict and its reasons, as sentences."""
    ours, theirs = claim.sides
    decisive, besides = ("; ".join(map(_reason, some)) for some in (claim.decisive, claim.besides))
    also = f" Besides, {besides}." if besides else ""
    return f"**{claim.verdict.capitalize()}.** With {ours} against {theirs}, {decisive}.{also}"


def _reason(one: Comparison) -> str:
    tasks = "" if one.group == "all" else f", of {one.group},"
    told = f"{one.measure.name}{tasks} {_OUTCOMES[one.outcome]}, {spread(one.differences, one.measure, True)}"
    if one.saturated and one.outcome == "no clear difference":
        return f"{told}, where both have nearly none or nearly all and no difference could show"
    return told


_OUTCOMES = {
    "higher": "is higher",
    "lower": "is lower",
    "no clear difference": "shows no difference beyond the spread over the seeds",
    "too few seeds": f"was measured with fewer than {LEAST_SEEDS} seeds",
    "not measured": "was not measured, as a seed has no such task",
}


def _row(one: Comparison, decisive: bool) -> tuple[str, ...]:
    name = f"**{one.measure.name}**" if decisive else one.measure.name
    sides = (spread(one.ours, one.measure), spread(one.theirs, one.measure))
    return name, one.group, *sides, spread(one.differences, one.measure, True), one.outcome


def _claim_numbers(claim: Claim) -> dict[str, object]:
    def numbers(one: Comparison, decisive: bool) -> dict[str, object]:
        sides = {"ours": one.ours, "theirs": one.theirs, "differences": one.differences}
        return {"measure": one.measure.name, "tasks": one.group, **sides, "outcome": one.outcome, "decisive": decisive}

    comparisons = [numbers(one, True) for one in claim.decisive] + [numbers(one, False) for one in claim.besides]
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
    from matplotlib.figure import Figure  # and not pyplot, which keeps a state and may want a screen

    return Figure(figsize=(width, height), layout="constrained")


def _png(figure: Figure) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=_DPI)
    return picture.getvalue()
