"""The paper's claims (UniWorld-V1, arXiv 2506.03147), checked small: variants are trained, examined and compared.

report = check_claims(Path("runs/nano"), Path("runs/claims"))
report.claims[0].verdict
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...uniworld_core import flow
from .claims_exam import Exam, Mark, marks_of
from .claims_report import ClaimsReport, need_matplotlib, write_report
from .claims_rule import Marks
from .claims_train import VARIANTS, Runs, Variant
from .nano import Progress

SEEDS = (0, 1, 2)
STEPS = 2000
COUNT = 40


def check_claims(
    nano_run: Path,
    folder: Path,
    seeds: Sequence[int] = SEEDS,
    steps: int = STEPS,
    count: int = COUNT,
    device: str = "auto",
    progress: Progress | None = None,
    paint_steps: int = flow.STEPS,
) -> ClaimsReport:
    """Train what is to be compared, examine it, and write what is found. A killed check goes on where it was.

    Args:
        nano_run: the folder of a finished run of nano (`uniworld train nano`), which is only read.
        folder: gets `REPORT.md`, its plots and `claims.json`, and keeps `runs/` and `results/`.
        seeds: of the order of the data, the noise and the held-out tasks; fewer than three decide nothing.
        steps: of stage 2.
        count: held-out tasks of each kind.
        device: "cpu", "cuda", or "auto" for a GPU where there is one.
        progress: sees what is examined; with it, trainings show their own bars on a terminal.
        paint_steps: of the sampling.

    Raises:
        ValueError: the run is not finished, the folder holds claims of other settings or is in use, the disk is full,
            or a setting is out of range.
        KeyboardInterrupt: it was asked to stop; what was done is kept.
    """
    _check(seeds, steps, count, paint_steps)
    need_matplotlib()  # now, and not after a night of training
    runs = Runs(nano_run.resolve(), folder.resolve(), steps, device)
    runs.check()
    exam = Exam(count, paint_steps, _device(device))
    with runs.held():
        by_seed = {seed: _marks_of_seed(runs, seed, exam, progress) for seed in seeds}
        marks: Marks = {variant: {seed: by_seed[seed][variant] for seed in seeds} for variant in VARIANTS}
        report = ClaimsReport(marks, steps, runs.stage1_steps, count, paint_steps)
        write_report(report, runs.folder)
    return report


def _marks_of_seed(runs: Runs, seed: int, exam: Exam, progress: Progress | None) -> dict[Variant, tuple[Mark, ...]]:
    marks = {}
    for variant in VARIANTS:

        def told(done: int, total: int, name: str = f"seed {seed}: {variant.label}") -> None:
            if progress is not None:
                progress(name, done, total, {})

        marks[variant] = marks_of(runs, variant, seed, exam, told, train_bar=progress is not None)
    return marks


def _check(seeds: Sequence[int], steps: int, count: int, paint_steps: int) -> None:
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ValueError(f"The seeds are {list(seeds)}; give some, each once and 0 or more, such as 0,1,2.")
    for name, value in (("steps", steps), ("count", count), ("paint_steps", paint_steps)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1.")


def _device(name: str) -> str:
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
