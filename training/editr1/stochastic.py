"""Stochastic solvers for rollouts: each step is a Gaussian around a mean. They make the pictures of a group differ more.

Published: flow_grpo/diffusers_patch/solver.py, with `deterministic = False` and `noise_level` as eta: "flow" (Flow-GRPO, arXiv
2505.05470), "dance" (DanceGRPO, arXiv 2505.07818) and "ddim" (arXiv 2010.02502, for flow matching). The loss needs only the
painted latents, so that every solver fits. "flow" and "dance" add noise in the last step, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ...uniworld_core.sampling import flow
from ...uniworld_core.sampling.solvers import Solver
from ..config.editr1 import STOCHASTIC
from .groups import step_noise_seed


@dataclass(frozen=True)
class NoisyStep:
    """The distribution of the latent after a step: a Gaussian with this mean (B, C, ...) and standard deviation."""

    mean: Tensor
    std: float


class NoisyRule(Protocol):
    """Computes a step.

    Args:
        x, v: the latent and its velocity.
        sigma, after: noise levels before and after the step.
        second: the second level of the schedule, which replaces a first level of 1 where that would divide by 0.
        eta: amount of noise; 0 for none.
    """

    def __call__(self, x: Tensor, v: Tensor, sigma: float, after: float, second: float, eta: float) -> NoisyStep: ...


def flow_rule(x: Tensor, v: Tensor, sigma: float, after: float, second: float, eta: float) -> NoisyStep:
    dt, rate = after - sigma, eta * math.sqrt(sigma / (1.0 - (second if sigma == 1.0 else sigma)))
    drift = rate**2 / (2.0 * sigma)
    mean = x * (1.0 + drift * dt) + v * (1.0 + drift * (1.0 - sigma)) * dt
    return NoisyStep(mean, rate * math.sqrt(-dt))


def dance_rule(x: Tensor, v: Tensor, sigma: float, after: float, second: float, eta: float) -> NoisyStep:
    dt = after - sigma
    score = -(x - (1.0 - sigma) * (x - sigma * v)) / sigma**2
    return NoisyStep(x + dt * (v - 0.5 * eta**2 * score), eta * math.sqrt(-dt))


def ddim_rule(x: Tensor, v: Tensor, sigma: float, after: float, second: float, eta: float) -> NoisyStep:
    clean = x - sigma * v
    share = after * (1.0 - sigma) / (sigma * (1.0 - after))
    std = eta * after * math.sqrt(1.0 - share**2)
    direction = (x - (1.0 - sigma) * clean) / sigma
    return NoisyStep((1.0 - after) * clean + math.sqrt(after**2 - std**2) * direction, std)


RULES: dict[str, NoisyRule] = dict(zip(STOCHASTIC, (flow_rule, dance_rule, ddim_rule), strict=True))


def stochastic_solver(rule: NoisyRule, eta: float, noise_of: Callable[[int, Tensor], Tensor]) -> Solver:
    """Return a solver that draws every step.

    Args:
        noise_of: (index of the step, latent) -> standard normal noise of the latent's shape.
    """

    def solve(
        velocity: flow.Velocity, x: Tensor, sigmas: Tensor, callback: Callable[[flow.Step], None] | None = None
    ) -> Tensor:
        second, index = flow.check_sigmas(sigmas)[1], -1

        def step(x: Tensor, v: Tensor, sigma: float, after: float) -> Tensor:
            nonlocal index
            index += 1
            one = rule(x, v, sigma, after, second, eta)
            return one.mean + one.std * noise_of(index, x)

        return flow.integrate(velocity, x, sigmas, callback, step)

    return solve


def seeded_solver(name: str, eta: float, seeds: Sequence[int]) -> Solver:
    """Return a stochastic solver whose noise depends on each picture's seed and the step alone.

    Args:
        name: one of `STOCHASTIC`.
        eta: amount of noise.
        seeds: one per picture.
    """

    def noise_of(index: int, x: Tensor) -> Tensor:
        generators = (torch.Generator("cpu").manual_seed(step_noise_seed(seed, index)) for seed in seeds)
        return torch.stack([torch.randn(x.shape[1:], generator=one) for one in generators]).to(x)

    return stochastic_solver(RULES[name], eta, noise_of)
