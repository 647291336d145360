"""Measure what a run with rewards has gained: held-out tasks before and after, with equal tasks and noise.

Every (weights, sampler, kind) is a file, which is kept: an interrupted measurement continues, and a later one reuses it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ....uniworld_core import UniWorld
from ....uniworld_core.errors import UniWorldError
from ....uniworld_core.images.pictures import to_bytes
from ....uniworld_core.images.sizes import Size
from ....uniworld_core.sampling import flow
from ....uniworld_core.sampling.sampler import make_noise, sample
from ...config.editr1 import EditR1Config
from ...editr1.loop import open_base_model
from ...editr1.policy import Policy, open_policy
from ...editr1.reward.protocol import Reward, RewardFailure, RewardItem, Score, checked_scores
from ...engine import checkpoints
from ...engine.parallel import World
from ...engine.precision import autocast, resolve_device
from ...files import read_saved, write_atomic
from ...publish.export import find_checkpoint
from ...run.folder import read_any_config
from ..exam.exam import exam_tasks
from ..judge.judge import judge
from ..tasks.tasks import PAINTED_KINDS, ShapesTask
from .provide import ORACLE, providers, shaped

START = "start"
MEASURED = "measured"


@dataclass(frozen=True)
class ExamSampler:
    """A way to paint in a measurement."""

    solver: str
    steps: int

    @property
    def name(self) -> str:
        return f"{self.solver}-{self.steps}"


# The sampler of nano's published levels, and that of the rollouts.
SAMPLERS = (ExamSampler("euler", 28), ExamSampler("dpm2", 6))


@dataclass(frozen=True)
class TaskResult:
    """The result of a task.

    Attributes:
        right: whether the oracle accepts the picture completely.
        reward: the oracle's shaped reward.
        scores: {another reward that the run trains on or watches: its score, None if it failed}.
    """

    right: bool
    reward: float
    scores: Mapping[str, float | None] = field(default_factory=dict)


def read_results(folder: Path, weights: str, sampler: ExamSampler, kind: str) -> list[TaskResult] | None:
    """Return the results of a kind, or None if it is not measured. Raises UniWorldError if the file is damaged."""
    file = _file(folder, weights, sampler, kind)
    if not file.is_file():
        return None
    return read_saved(file, lambda path: [TaskResult(**row) for row in json.loads(path.read_text())])


def _file(folder: Path, weights: str, sampler: ExamSampler, kind: str) -> Path:
    return folder / weights / sampler.name / f"{kind}.json"


def trained_kinds(config: EditR1Config) -> tuple[str, ...]:
    """Return the kinds of tasks that a run is to improve, each once: those it trains on, without those to preserve."""
    return tuple(kind for kind in dict.fromkeys(config.data.shapes) if kind not in config.preserve.kinds)


def judges(config: EditR1Config) -> tuple[str, ...]:
    """Return the names of the rewards that a run trains on or watches, without the oracle."""
    return tuple(dict.fromkeys(name for name in (*config.reward.name, *config.reward.watch) if name != ORACLE))


def read_run(run: Path) -> EditR1Config:
    """Read the configuration of a run with rewards. Raises UniWorldError if it is another run."""
    config = read_any_config(run)
    if not isinstance(config, EditR1Config):
        raise UniWorldError(
            f"{run} is not a run with rewards: use `uniworld eval shapes` with its exported checkpoint."
        )
    return config


def measure(
    run: Path,
    step: int | None = None,
    raw: bool = False,
    count: int = 200,
    kinds: Sequence[str] | None = None,
    samplers: Sequence[ExamSampler] = SAMPLERS,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
    oracle_only: bool = False,
) -> str:
    """Measure a run's start and one of its checkpoints on held-out tasks.

    Args:
        run: the run's folder.
        step: epoch of a saved checkpoint; None takes the newest.
        raw: measure the raw weights instead of their EMA.
        count: tasks per kind; those of a smaller count are the first of a larger one.
        kinds: kinds of tasks; None takes all that the run paints.
        samplers: the samplers.
        seed: seed of tasks and noise.
        progress: called with what is measured, its finished tasks and their total.
        oracle_only: leave out the run's other rewards, for example because their server is not running.

    Returns:
        The name of the checkpoint's folder below `measured/` in the run's folder; the other is `START`.

    Raises:
        UniWorldError: the run has no checkpoint or no rewards, a kind is unknown or not painted, or a reward of the run
            cannot be used.
    """
    config = read_run(run)
    kinds = tuple(dict.fromkeys(config.data.shapes)) if kinds is None else kinds
    names = () if oracle_only else judges(config)
    _check(run, kinds, count)
    checkpoint = find_checkpoint(run, step)
    name = f"{checkpoint.name}{'-raw' if raw else ''}"
    todo = [(weights, sampler, kind) for weights in (START, name) for sampler in samplers for kind in kinds]
    missing = [one for one in todo if not _is_measured(read_results(run / MEASURED, *one), count, names)]
    if not missing:
        return name
    world = World(0, 1, torch.device(resolve_device(config.run.device)), "data")
    with ExitStack() as stack:
        rewards = _open_judges(config, names, stack)
        model = open_base_model(config, world.device)
        policy = open_policy(config, model, world)
        loaded = START
        for weights, sampler, kind in missing:
            if weights != loaded:
                _load(policy, checkpoint, checkpoints.WEIGHTS if raw else checkpoints.EMA)
                loaded = weights
            tasks = exam_tasks(kind, count, seed, "test", config.editr1.side)
            label = f"{weights} {sampler.name} {kind}"
            results = _solve(model, policy.painter, config, tasks, sampler, seed, rewards, label, progress)
            content = json.dumps([asdict(one) for one in results]).encode()
            write_atomic(_file(run / MEASURED, weights, sampler, kind), content)
    return name


def _check(run: Path, kinds: Sequence[str], count: int) -> None:
    unknown = [kind for kind in kinds if kind not in PAINTED_KINDS]
    if not kinds:
        raise UniWorldError(f"{run} did not train on tasks of the world of shapes: name the kinds to measure.")
    if unknown:
        raise UniWorldError(
            f"The kinds of tasks {unknown} cannot be measured; choose some of {', '.join(PAINTED_KINDS)}."
        )
    if count < 1:
        raise UniWorldError(f"The count is {count}; it must be at least 1.")


def _is_measured(results: Sequence[TaskResult] | None, count: int, names: Sequence[str]) -> bool:
    return results is not None and len(results) >= count and all(set(names) <= set(one.scores) for one in results)


def _open_judges(config: EditR1Config, names: Sequence[str], stack: ExitStack) -> dict[str, Reward]:
    """Open rewards by name, until the end of the stack."""
    known, opened = providers(), {}
    for name in names:
        opened[name] = known.rewards[name](config)
        stack.callback(opened[name].close)
    return opened


def _load(policy: Policy, checkpoint: Path, prefix: str) -> None:
    tensors = checkpoints.read_tensors(checkpoint, prefix)
    with torch.no_grad():
        for name, parameter in policy.trained.items():
            parameter.copy_(tensors[name])


def _solve(
    model: UniWorld,
    painter: Any,
    config: EditR1Config,
    tasks: Sequence[ShapesTask],
    sampler: ExamSampler,
    seed: int,
    rewards: Mapping[str, Reward],
    label: str,
    progress: Callable[[str, int, int], None] | None,
    batch: int = 20,
) -> list[TaskResult]:
    results: list[TaskResult] = []
    for start in range(0, len(tasks), batch):
        some = tasks[start : start + batch]
        pictures = _paint(model, painter, config, some, sampler, [seed + start + number for number in range(len(some))])
        items = [RewardItem(task.prompt, task.references, picture, task=task) for task, picture in zip(some, pictures)]
        scores = {name: checked_scores(reward, items) for name, reward in rewards.items()}
        for index, (task, picture) in enumerate(zip(some, pictures)):
            verdict = judge(task, picture)
            mine = {name: _number(rows[index]) for name, rows in scores.items()}
            results.append(TaskResult(verdict.right, shaped(verdict), mine))
        if progress is not None:
            progress(label, len(results), len(tasks))
    return results


def _number(score: Score) -> float | None:
    return None if isinstance(score, RewardFailure) else score


def _paint(
    model: UniWorld,
    painter: Any,
    config: EditR1Config,
    tasks: Sequence[ShapesTask],
    sampler: ExamSampler,
    seeds: Sequence[int],
) -> list[Image.Image]:
    side, settings = config.editr1.side, config.model
    references = [model.reference(list(task.references), settings.use_siglip) for task in tasks]
    shape = painter.latent_format.shape(len(tasks), Size(side, side))
    sigmas = flow.schedule(sampler.steps, painter.latent_format.token_count(shape), painter.shift)
    with torch.inference_mode(), autocast(painter.device, model.dtype):
        condition = model.encode([task.prompt for task in tasks], references, use_t5=settings.t5_length > 0)
        noise = make_noise(list(seeds), shape[1:])
        latents = sample(painter, condition, noise, sigmas, config.editr1.guidance, solver=sampler.solver)
        pixels = to_bytes(model.decode(painter.latent_format.from_model(latents)))
    return [Image.fromarray(picture.numpy()) for picture in pixels.cpu()]
