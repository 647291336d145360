"""The noise levels at which a rollout is trained: some of the sampler's own, in random order.

Published: scripts/train_nft_kontext.py trains int(0.99 * steps) of the rollout's levels, that is all but one.
"""

from __future__ import annotations

import torch
from torch import Tensor


def draw_times(steps: int, count: int, seed: int) -> list[int]:
    """Return `count` different indices of a schedule with this many steps, in random order."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randperm(steps, generator=generator)[:count].tolist()


def published_times(samples: int, steps: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw the published order: of the samples (N,), and of the levels of each (N, steps). It trains all but the last column."""
    order = torch.randperm(samples, generator=generator)
    return order, torch.stack([torch.randperm(steps, generator=generator) for _ in range(samples)])


def published_count(steps: int, fraction: float = 0.99) -> int:
    """Return how many levels of a rollout with this many steps the published trainer uses."""
    return int(steps * fraction)
