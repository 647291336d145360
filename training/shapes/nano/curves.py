"""Plot the logs of all of nano's trainings as one picture."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from ....uniworld_core.errors import UniWorldError
from ...files import write_atomic
from ...run.metrics import read_lines
from ...run.plot import METRICS_FILE, smoothed

# {training: (its log in nano's folder, the metric to plot below its loss)}
_LOGS = {
    "VAE": ("standins/vae.jsonl", "psnr"),
    "VAE's decoder": ("standins/decoder.jsonl", "psnr"),
    "VLM": ("standins/vlm.jsonl", "tokens right"),
    "SigLIP": ("standins/siglip.jsonl", "psnr"),
    "FLUX": ("standins/flux.jsonl", "steps_per_second"),
    "stage 1": (f"stage1/{METRICS_FILE}", "samples_per_second"),
    "stage 2": (f"stage2/{METRICS_FILE}", "samples_per_second"),
}
_SMOOTHING = 0.05


def draw_curves(folder: Path, to: Path) -> None:
    """Plot the loss and one more metric of every training of nano into one PNG.

    Args:
        folder: nano's folder; trainings without a log are left out.
        to: the PNG file, written atomically.

    Raises:
        UniWorldError: there are no logs yet, or matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UniWorldError('Plotting needs matplotlib: pip install "uniworld[train]".') from error
    logs = {name: (_by_step(folder / file), also) for name, (file, also) in _LOGS.items() if (folder / file).is_file()}
    if not logs:
        raise UniWorldError(f"{folder} contains no training logs: give the folder of `uniworld train nano`.")
    figure = Figure(figsize=(4 * len(logs), 6), layout="constrained")
    grid = figure.subplots(2, len(logs), squeeze=False)
    for column, (name, (rows, also)) in enumerate(logs.items()):
        for axes, key in zip(grid[:, column], ("loss", also)):
            steps = [row["step"] for row in rows if key in row]
            values = [row[key] for row in rows if key in row]
            axes.plot(steps, values, color="C0", alpha=0.25, linewidth=0.8)
            axes.plot(steps, smoothed(values, _SMOOTHING * len(values)), color="C0", linewidth=1.5)
            axes.set(title=f"{name}: {key.replace('_', ' ')}", xlabel="step")
            axes.grid(alpha=0.3)
        grid[0, column].set_yscale("log")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=80)
    write_atomic(to, picture.getvalue())


def _by_step(file: Path) -> list[dict[str, Any]]:
    """Return the lines of a log in order of steps. Of a step that a killed training repeated, the later line counts."""
    rows = {int(row["step"]): row for row in read_lines(file)}
    return [rows[step] for step in sorted(rows)]
