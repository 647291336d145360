"""Rollouts: paint the groups of an epoch with the acting policy, and have the pictures scored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...uniworld_core import UniWorld
from ...uniworld_core.images.pictures import to_bytes
from ...uniworld_core.images.sizes import Size
from ...uniworld_core.sampling import flow
from ...uniworld_core.sampling.condition import Condition
from ...uniworld_core.sampling.sampler import make_noise, sample
from ...uniworld_core.sampling.solvers import Solver
from ..config.editr1 import STOCHASTIC, EditR1Config
from ..engine.precision import autocast
from .groups import Group
from .prompts import EditPrompt
from .reward.protocol import Reward, RewardItem, Score, checked_scores
from .stochastic import seeded_solver


@dataclass(frozen=True)
class Rollout:
    """A group with what it was painted from and to.

    Attributes:
        group: the group.
        prompt: its prompt and pictures.
        condition: one item, on the CPU.
        latents: (k, C, ...) normalized, float32, on the CPU.
        scores: one per picture.
        watched: {name of a reward that is only recorded: one score per picture}.
    """

    group: Group
    prompt: EditPrompt
    condition: Condition
    latents: Tensor
    scores: tuple[Score, ...]
    watched: Mapping[str, tuple[Score, ...]] = field(default_factory=dict)


def schedule(painter: Any, config: EditR1Config) -> Tensor:
    """Return the noise levels of a rollout (steps + 1). Raises UniWorldError if the painter cannot paint this size."""
    latents = painter.latent_format
    shape = latents.shape(1, Size(config.editr1.side, config.editr1.side))
    return flow.schedule(config.editr1.steps, latents.token_count(shape), painter.shift)


def encode(model: UniWorld, prompt: EditPrompt, config: EditR1Config) -> Condition:
    """Encode a prompt to a condition of one item, on the CPU. Raises UniWorldError if the model cannot read it."""
    settings = config.model
    with torch.no_grad(), _own_random(model.device):
        references = model.reference(list(prompt.references), settings.use_siglip) if prompt.references else None
        use_t5 = settings.t5_length > 0
        extra = {"t5_length": settings.t5_length} if use_t5 else {}
        # Up to a guidance of 1, the published setting for Qwen-Image-Edit, no painter uses a negative prompt.
        negative = "" if config.editr1.guidance > 1 else None
        condition = model.encode(prompt.prompt, references, use_t5=use_t5, negative=negative, **extra)
    return outside_inference(condition)


def outside_inference(condition: Condition) -> Condition:
    """Return a copy on the CPU of tensors that autograd accepts: it rejects those made in inference mode."""

    def plain(value: object) -> object:
        if isinstance(value, Tensor):
            return value.detach().cpu().clone()
        if isinstance(value, Condition):
            return outside_inference(value)
        return tuple(map(plain, value)) if isinstance(value, tuple) else value

    return replace(condition, **{field.name: plain(getattr(condition, field.name)) for field in fields(condition)})


def paint_group(
    painter: Any, condition: Condition, seeds: Sequence[int], sigmas: Tensor, config: EditR1Config, dtype: torch.dtype
) -> Tensor:
    """Paint the pictures of a group. Return normalized latents (k, C, ...), float32, on the CPU.

    Every picture has a seed of its own. The size of the micro-batches does not depend on what is already painted, so that a
    resumed run gets the same numbers.
    """
    settings, micro = config.editr1, config.run.micro_batch_size
    shape = painter.latent_format.shape(len(seeds), Size(settings.side, settings.side))
    noise = make_noise(list(seeds), shape[1:])
    painted = []
    with torch.no_grad(), autocast(painter.device, dtype):
        for start in range(0, len(seeds), micro):
            some = slice(start, start + micro)
            solver: str | Solver = settings.solver
            if settings.solver in STOCHASTIC:
                solver = seeded_solver(settings.solver, settings.eta, seeds[some])
            painted.append(sample(painter, condition, noise[some], sigmas, settings.guidance, solver=solver))
    return torch.cat([latents.float().cpu() for latents in painted]).clone()


def pictures_of(model: UniWorld, latents: Tensor, micro: int) -> list[Image.Image]:
    """Decode normalized latents to pictures."""
    z = model.latent_format.from_model(latents)
    with torch.no_grad(), _own_random(model.device):
        parts = [to_bytes(model.decode(z[start : start + micro])).cpu() for start in range(0, len(z), micro)]
    return [Image.fromarray(picture.numpy()) for part in parts for picture in part]


@contextmanager
def _own_random(device: torch.device | str) -> Iterator[None]:
    """Restore the random state after the block: parts that it loads draw numbers, and a resumed run loads them again."""
    with torch.random.fork_rng([device] if torch.device(device).type == "cuda" else []):
        yield


def score_group(reward: Reward, prompt: EditPrompt, pictures: Sequence[Image.Image]) -> list[Score]:
    """Score the pictures of a group. Raises UniWorldError if the reward cannot be used at all."""
    items = [
        RewardItem(prompt.prompt, prompt.references, picture, prompt.requirement, prompt.task) for picture in pictures
    ]
    return checked_scores(reward, items)
