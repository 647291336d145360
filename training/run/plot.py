"""Plot the metrics of runs from their `metrics.jsonl`."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...uniworld_core.errors import UniWorldError
from ..files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METRICS_FILE = "metrics.jsonl"


@dataclass(frozen=True)
class _Panel:
    """A subplot: its title, whether its axis is logarithmic, and whether its values need smoothing."""

    title: str
    logarithmic: bool = False
    noisy: bool = True


# {key in metrics.jsonl: panel}
_PANELS: dict[str, _Panel] = {
    "loss": _Panel("loss", logarithmic=True),
    "learning_rate": _Panel("learning rate", noisy=False),
    "gradient_norm": _Panel("gradient norm before clipping", logarithmic=True),
    "samples_per_second": _Panel("samples per second"),
}
# The same for runs with rewards.
_REWARD_PANELS: dict[str, _Panel] = {
    "reward": _Panel("mean reward"),
    "best": _Panel("mean of each group's best reward"),
    "trained": _Panel("fraction of pictures that passed the filter"),
    "loss": _Panel("policy loss"),
    "kl": _Panel("squared distance from the reference", noisy=False),
    "gradient_norm": _Panel("gradient norm before clipping", logarithmic=True),
}
# Rewards that are only recorded have keys of this form, and a panel each.
_WATCHED = "watched/"
# Window of the smoothed curve, as a fraction of the run.
_SMOOTHING = 0.02


@dataclass(frozen=True)
class Curves:
    """The metrics of a run.

    Attributes:
        steps: the steps in order, without duplicates.
        values: {name: one value per step}, NaN if a step has none.
    """

    steps: tuple[int, ...]
    values: Mapping[str, tuple[float, ...]]


def read_curves(run: Path) -> Curves:
    """Read a run's `metrics.jsonl`.

    A truncated last line, which a kill leaves, is ignored. If a step appears twice, because the run resumed from an
    earlier checkpoint, the later line counts.

    Raises:
        UniWorldError: the file is missing or has no steps, or a line before the last is damaged.
    """
    file = run / METRICS_FILE
    if not file.is_file():
        raise UniWorldError(f"{run} has no {METRICS_FILE}: give the folder of a run with at least one step.")
    rows: dict[int, dict[str, object]] = {}
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            rows[int(row["step"])] = row
        except (ValueError, TypeError, KeyError):
            if number < len(lines):
                raise UniWorldError(f"Line {number} of {file} is damaged: remove it to plot the rest.") from None
    if not rows:
        raise UniWorldError(f"{file} has no steps yet: wait until the run has finished one.")
    steps = sorted(rows)
    watched = sorted({key for row in rows.values() for key in row if key.startswith(_WATCHED)})
    names = dict.fromkeys((*_PANELS, *_REWARD_PANELS, *watched))
    return Curves(tuple(steps), {name: tuple(_number(rows[step].get(name)) for step in steps) for name in names})


def smoothed(values: Sequence[float], window: float) -> list[float]:
    """Return an exponential moving average over about `window` values, with bias correction; NaN is skipped.

    As in Adam (arXiv 1412.6980, section 3), the sum is divided by the sum of the weights so far.
    """
    keep = 1 - 1 / max(window, 1.0)
    total = weight = 0.0
    means = []
    for value in values:
        if math.isfinite(value):
            total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        means.append(total / weight if weight else math.nan)
    return means


def plot(runs: Mapping[str, Path], to: Path) -> None:
    """Plot loss, learning rate, gradient norm and throughput of runs, or rewards instead, into one PNG.

    Args:
        runs: {label in the legend: run folder}.
        to: the PNG file, written atomically.

    Raises:
        UniWorldError: as `read_curves`, matplotlib is not installed, or only some of the runs have rewards.
    """
    curves = {name: read_curves(folder) for name, folder in runs.items()}
    rewarded = [name for name, curve in curves.items() if not all(map(math.isnan, curve.values["reward"]))]
    if rewarded and len(rewarded) < len(curves):
        raise UniWorldError(f"Only {', '.join(rewarded)} has rewards: plot runs with rewards and others separately.")
    panels = _with_values(_reward_panels(curves.values()) if rewarded else _PANELS, curves.values())
    try:
        from matplotlib.figure import Figure  # not pyplot, which has global state and may need a display
        from matplotlib.ticker import LogFormatter, MaxNLocator
    except ImportError as error:
        raise UniWorldError('Plotting needs matplotlib: pip install "uniworld[train]".') from error
    columns = (len(panels) + 1) // 2
    figure = Figure(figsize=(6 * columns, 8), layout="constrained")
    places = figure.subplots(2, columns).flat
    for (key, panel), axes in zip(panels.items(), places):
        for index, (name, curve) in enumerate(curves.items()):
            if key in curve.values:
                _draw(axes, curve.steps, curve.values[key], panel.noisy, name, f"C{index % 10}")
        axes.set(title=panel.title, xlabel="step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if panel.logarithmic and any(value > 0 for curve in curves.values() for value in curve.values.get(key, ())):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(LogFormatter())
            # Label minor ticks only if the curve spans few powers of ten.
            axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))
        axes.grid(alpha=0.3)
    for axes in places:  # those left over
        axes.set_visible(False)
    if len(curves) > 1:
        figure.axes[0].legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=100)
    write_atomic(to, picture.getvalue())


def _reward_panels(curves: Iterable[Curves]) -> dict[str, _Panel]:
    watched = dict.fromkeys(key for curve in curves for key in curve.values if key.startswith(_WATCHED))
    panels = {key: _Panel(f"{key.removeprefix(_WATCHED)}, not trained on") for key in watched}
    return {"reward": _REWARD_PANELS["reward"], **panels, **_REWARD_PANELS}


def _with_values(panels: Mapping[str, _Panel], curves: Collection[Curves]) -> Mapping[str, _Panel]:
    """Leave out panels for which no run has a value, such as the loss of a run in which nothing trained."""
    known = {key for curve in curves for key, values in curve.values.items() if any(map(math.isfinite, values))}
    return {key: panel for key, panel in panels.items() if key in known} or panels


def _draw(axes: Axes, steps: Sequence[int], values: Sequence[float], noisy: bool, name: str, color: str) -> None:
    curve = smoothed(values, _SMOOTHING * len(values)) if noisy else values
    axes.plot(steps, curve, color=color, linewidth=1.5, label=name)
    if noisy:
        axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan
