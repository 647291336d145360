"""Flow matching, once for sampling and training: noising, the mu-shifted schedule, and Euler's steps.

The straight path x_s = (1 - s) z + s e from latent z (s = 0) to noise e (s = 1), whose velocity is e - z (FLUX; rectified
flow, arXiv 2209.03003). Published: utils/flux_pipeline.py, train_denoiser.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import torch

from ..errors import UniWorldError
from ..loading.dtypes import OVERFLOW

# (x, sigma) -> velocity, all of the shape of x; sigma is one level, or one for each item.
Velocity: TypeAlias = "Callable[[torch.Tensor, torch.Tensor | float], torch.Tensor]"

_MEND = f"{OVERFLOW}; else the condition or the weights are damaged"


@dataclass(frozen=True)
class Shift:
    """How a family shifts noise levels: the more tokens a picture has, the longer it stays noisy.

    Named in diffusers' scheduler_config.json: base_image_seq_len, max_image_seq_len, base_shift, max_shift, shift_terminal.

    Attributes:
        base_tokens, max_tokens: packed latent tokens of two pictures.
        base_mu, max_mu: their shifts; others lie on the line through both.
        terminal: the last level of a schedule before 0, to which the others are stretched; None leaves them.
    """

    base_tokens: int
    max_tokens: int
    base_mu: float
    max_mu: float
    terminal: float | None = None

    def mu(self, tokens: int) -> float:
        """The shift of a picture of so many *packed* latent tokens."""
        slope = (self.max_mu - self.base_mu) * (tokens - self.base_tokens)
        return self.base_mu + slope / (self.max_tokens - self.base_tokens)

    def apply(self, sigmas: torch.Tensor, tokens: int) -> torch.Tensor:
        """Noise levels in 0..1 shifted for a picture of so many packed tokens; `terminal` is of schedules alone."""
        return exponential_shift(sigmas, self.mu(tokens))


def exponential_shift(sigmas: torch.Tensor, mu: float) -> torch.Tensor:
    """Exponential time shift e^mu / (e^mu + 1/s - 1) of noise levels in 0..1 (arXiv 2403.03206, equation 23)."""
    e = math.exp(mu)
    return e * sigmas / (1.0 + (e - 1.0) * sigmas)


@dataclass(frozen=True, eq=False)
class Step:
    """One finished step, as a callback sees it.

    Attributes:
        index: from 0.
        total: number of steps.
        sigma: noise level before the step.
        x: the noisy latent after the step.
        denoised: the clean latent expected before the step, x - sigma * velocity.
    """

    index: int
    total: int
    sigma: float
    x: torch.Tensor
    denoised: torch.Tensor


def schedule(steps: int, tokens: int, shift: Shift, denoise: float = 1.0) -> torch.Tensor:
    """Noise levels (steps + 1), float32, from the first level down to 0.

    Args:
        steps: how many steps are taken.
        tokens: packed latent tokens of the picture.
        shift: of the family that paints.
        denoise: 1 starts from pure noise; less takes the last `steps` of a proportionally finer schedule, as ComfyUI does.

    Raises:
        UniWorldError: no steps, or denoise outside 0..1.
    """
    if steps < 1:
        raise UniWorldError(f"steps is {steps}; it must be at least 1.")
    if not 0.0 < denoise <= 1.0:
        raise UniWorldError(f"denoise is {denoise}; it must be above 0 and at most 1.")
    total = max(steps, int(steps / denoise))
    levels = shift.apply(torch.linspace(1.0, 1.0 / total, total, dtype=torch.float64), tokens)
    if shift.terminal is not None and total > 1:  # a single level is 1, where painting begins
        levels = 1.0 - (1.0 - levels) * ((1.0 - shift.terminal) / (1.0 - levels[-1]))
    return torch.cat([levels, levels.new_zeros(1)])[-(steps + 1) :].float()


def add_noise(latent: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor | float) -> torch.Tensor:
    """The point of the path at `sigma`: (1 - s) z + s e."""
    return (1.0 - sigma) * latent + sigma * noise


def euler(
    velocity: Velocity,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    callback: Callable[[Step], None] | None = None,
) -> torch.Tensor:
    """Follow the velocity from sigmas[0] to sigmas[-1] with Euler's steps.

    Args:
        x: the latent at sigmas[0], any shape, float32.
        callback: called after every step; what it raises ends the run.

    Raises:
        UniWorldError: the schedule does not fall, or the latent or the velocity is not finite; the step is named.
    """
    levels = check_sigmas(sigmas)
    total = len(levels) - 1
    for index, (sigma, after) in enumerate(pairwise(levels)):
        if index == 0:
            _check_finite(x, "starting latent", index, total, sigma, "look at what made the latent or the noise")
        v = velocity(x, sigma)
        _check_finite(v, "velocity", index, total, sigma, _MEND)
        denoised = x - sigma * v if callback is not None else x
        x = x + (after - sigma) * v
        if callback is not None:
            callback(Step(index, total, sigma, x, denoised))
    return x


def check_sigmas(sigmas: torch.Tensor) -> list[float]:
    """Noise levels as floats, if they can be followed. Raises UniWorldError unless at least two fall within 1..0."""
    levels = [float(level) for level in sigmas]
    if len(levels) < 2:
        raise UniWorldError(f"The sigmas hold {len(levels)} levels; at least 2 are needed for one step.")
    if not all(1.0 >= a > b >= 0.0 for a, b in pairwise(levels)):
        shown = ", ".join(f"{level:.3f}" for level in levels[:8])
        raise UniWorldError(
            f"The sigmas ({shown}, ...) must fall from at most 1 to at least 0: use a schedule made for flow matching."
        )
    return levels


def _check_finite(x: torch.Tensor, what: str, index: int, total: int, sigma: float, mend: str) -> None:
    finite = torch.isfinite(x)
    if not finite.all():
        bad = int((~finite).sum())
        raise UniWorldError(
            f"The {what} has {bad} of {x.numel()} values NaN or infinite at step {index + 1} of {total} (sigma {sigma:.4f}): "
            f"{mend}."
        )
