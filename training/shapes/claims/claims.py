"""Check the paper's claims (UniWorld-V1, arXiv 2506.03147) at small scale: train, evaluate and compare variants.

report = check_claims(Path("runs/nano"), Path("runs/claims"))
report.claims[0].verdict
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ....uniworld_core.errors import UniWorldError
from ....uniworld_core.families.uniworld_v1 import painting
from ...engine.precision import resolve_device
from ..nano.jobs import Job, Progress, run_jobs
from .exam import EXPORTED, Exam, saved_scores, scores_of
from .report import ClaimsReport, need_matplotlib, write_report
from .rule import TaskScores
from .train import NO_SIGLIP_TRUNK, STAGE1_TRUNK, STAGE2_TRUNK, VARIANTS, Runs, Variant

SEEDS = (0, 1, 2)
STEPS = 500
TRUNK_STEPS = 4000
COUNT = 40


def check_claims(
    nano_run: Path,
    folder: Path,
    seeds: Sequence[int] = SEEDS,
    steps: int = STEPS,
    count: int = COUNT,
    device: str = "auto",
    progress: Progress | None = None,
    paint_steps: int = painting.STEPS,
    batch: int | None = None,
    processes: int = 1,
    trunk_steps: int = TRUNK_STEPS,
) -> ClaimsReport:
    """Train the variants, evaluate them, and write the report. A killed check resumes where it was.

    Args:
        nano_run: the folder of a run of `uniworld train nano` with its stand-ins and starting checkpoint; read only.
        folder: gets `REPORT.md`, its plots and `claims.json`, as well as `data/`, `cache/`, `runs/` and `results/`.
        seeds: seeds of the branches' data order, noise and held-out tasks; a verdict needs three.
        steps: steps of each branch.
        count: held-out tasks per kind.
        device: "cpu", "cuda", or "auto" for a GPU if there is one.
        progress: called as work proceeds; with it and one process, trainings show their own progress bars.
        paint_steps: sampling steps.
        batch: batch size; None means that of nano's recipe.
        processes: variants to train and evaluate in parallel, sharing the cores.
        trunk_steps: steps of stage 2 before the branches, shared by all seeds and edit weights.

    Raises:
        UniWorldError: nano's run is incomplete, the folder has claims of other settings or is in use, the disk is full,
            or a setting is invalid.
        KeyboardInterrupt: interrupted; finished work is kept.
    """
    _check(
        seeds, batch, steps=steps, trunk_steps=trunk_steps, count=count, paint_steps=paint_steps, processes=processes
    )
    need_matplotlib()  # fail now, not after a night of training
    target = resolve_device(device)
    runs = Runs(nano_run.resolve(), folder.resolve(), steps, trunk_steps, batch, target)
    runs.check()
    exam = Exam(count, paint_steps, target)
    with runs.lock():
        shutil.rmtree(runs.folder / EXPORTED, ignore_errors=True)  # remains of killed evaluations
        runs.make_data(processes, progress or _silent)
        _do_missing(runs, exam, seeds, processes, progress)
        shutil.rmtree(runs.folder / EXPORTED, ignore_errors=True)
        scores: TaskScores = {
            variant: {seed: scores_of(runs, variant, seed, exam) for seed in seeds} for variant in VARIANTS
        }
        report = ClaimsReport(
            scores,
            stage1_steps=runs.stage1_steps,
            trunk_steps=trunk_steps,
            steps=steps,
            batch=runs.recipe.stage2.batch,
            samples=runs.samples,
            count=count,
            paint_steps=paint_steps,
        )
        write_report(report, runs.folder)
    return report


def _do_missing(runs: Runs, exam: Exam, seeds: Sequence[int], processes: int, progress: Progress | None) -> None:
    """Train and evaluate every variant without saved scores."""
    pairs = [(seed, variant) for seed in seeds for variant in VARIANTS]
    missing = [(seed, variant) for seed, variant in pairs if saved_scores(runs, variant, seed, exam) is None]
    if processes > 1:
        run_jobs(_jobs(runs, exam, missing), processes, partial(_report_done, progress or _silent))
        return
    for seed, variant in missing:
        _do(runs, variant, seed, exam, progress)


def _do(runs: Runs, variant: Variant, seed: int, exam: Exam, progress: Progress | None) -> None:
    def report(done: int, total: int) -> None:
        if progress is not None:
            progress(f"seed {seed}: {variant.label}", done, total, {})

    scores_of(runs, variant, seed, exam, report, train_bar=progress is not None)


def _jobs(runs: Runs, exam: Exam, missing: Sequence[tuple[int, Variant]]) -> list[Job]:
    """Return the jobs of the needed trunks and of the branches; variants of the same run share a job."""
    names = dict.fromkeys(variant.trunk for _, variant in missing)
    # The longest first, for balance: stage 2 trains the most parameters, stage 1 the fewest.
    trunks = sorted(names, key=[STAGE2_TRUNK, NO_SIGLIP_TRUNK, STAGE1_TRUNK].index)
    jobs = [Job("stage 1", runs.train_stage1, ())] if set(trunks) - {STAGE1_TRUNK} else []
    for trunk in trunks:
        after = () if trunk == STAGE1_TRUNK else ("stage 1",)
        jobs.append(Job(_trunk_name(trunk), runs.train_trunk, (trunk,), after))
    of_runs: dict[tuple[int, str], list[tuple[int, Variant]]] = {}
    for seed, variant in missing:
        of_runs.setdefault((seed, variant.run), []).append((seed, variant))
    for (seed, _), some in of_runs.items():
        name = f"seed {seed}: {', '.join(one.label for _, one in some)}"
        jobs.append(Job(name, _do_some, (runs, exam, some), (_trunk_name(some[0][1].trunk),)))
    return jobs


def _trunk_name(trunk: str) -> str:
    return f"trunk {trunk.replace('_', ' ')}"


def _do_some(runs: Runs, exam: Exam, some: Sequence[tuple[int, Variant]]) -> None:
    for seed, variant in some:
        _do(runs, variant, seed, exam, None)


def _report_done(progress: Progress, done: int, total: int, last: str) -> None:
    progress("variants", done, total, {"last": last})


def _silent(*_: object) -> None:
    pass


def _check(seeds: Sequence[int], batch: int | None, **numbers: int) -> None:
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UniWorldError(f"The seeds are {list(seeds)}; give distinct integers of 0 or more, such as 0,1,2.")
    for name, value in {**numbers, **({} if batch is None else {"batch": batch})}.items():
        if value < 1:
            raise UniWorldError(f"{name} is {value}; it must be at least 1.")
