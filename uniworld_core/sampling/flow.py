"""Flow matching for sampling and training: noising, the mu-shifted schedule, and solvers.

The path x_s = (1 - s) z + s e is straight from latent z (s = 0) to noise e (s = 1), and its velocity is e - z (FLUX;
rectified flow, arXiv 2209.03003). Published: utils/flux_pipeline.py, train_denoiser.py.
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

# (x, sigma) -> velocity of the same shape as x; sigma is one noise level, or one per item.
Velocity: TypeAlias = "Callable[[torch.Tensor, torch.Tensor | float], torch.Tensor]"

_NONFINITE_FIX = f"{OVERFLOW}; otherwise the condition or the weights are damaged"


@dataclass(frozen=True)
class Shift:
    """How a family shifts noise levels: the more tokens a picture has, the longer it stays noisy.

    In diffusers' scheduler_config.json the fields are base_image_seq_len, max_image_seq_len, base_shift, max_shift and
    shift_terminal. Note that diffusers' Euler scheduler ignores mu unless `use_dynamic_shifting` is set.

    Attributes:
        base_tokens, max_tokens: numbers of packed latent tokens.
        base_mu, max_mu: the shifts at these numbers. Others are interpolated or extrapolated linearly.
        terminal: last noise level of a schedule before 0, to which the levels are stretched; None to leave them.
    """

    base_tokens: int
    max_tokens: int
    base_mu: float
    max_mu: float
    terminal: float | None = None

    def mu(self, tokens: int) -> float:
        """Return the shift for a number of *packed* latent tokens, (H/16)(W/16) for FLUX, not of latent cells or channels."""
        slope = (self.max_mu - self.base_mu) * (tokens - self.base_tokens)
        return self.base_mu + slope / (self.max_tokens - self.base_tokens)

    def apply(self, sigmas: torch.Tensor, tokens: int) -> torch.Tensor:
        """Shift noise levels in 0..1 for a number of packed tokens. `terminal` applies only to schedules."""
        return exponential_shift(sigmas, self.mu(tokens))


def exponential_shift(sigmas: torch.Tensor, mu: float) -> torch.Tensor:
    """Apply the exponential time shift e^mu / (e^mu + 1/s - 1) to noise levels in 0..1 (arXiv 2403.03206, equation 23)."""
    e = math.exp(mu)
    return e * sigmas / (1.0 + (e - 1.0) * sigmas)


@dataclass(frozen=True, eq=False)
class Step:
    """A finished step, passed to callbacks.

    Attributes:
        index: number of the step, from 0.
        total: number of steps.
        sigma: noise level before the step.
        x: noisy latent after the step.
        denoised: estimate of the clean latent before the step, x - sigma * velocity.
    """

    index: int
    total: int
    sigma: float
    x: torch.Tensor
    denoised: torch.Tensor


def schedule(steps: int, tokens: int, shift: Shift, denoise: float = 1.0) -> torch.Tensor:
    """Return noise levels (steps + 1), float32, from the first level down to 0.

    Args:
        steps: number of steps.
        tokens: number of packed latent tokens of the picture.
        shift: the family's shift.
        denoise: 1 starts from pure noise. A smaller value takes the last `steps` of a proportionally longer schedule, as
            ComfyUI does.

    Raises:
        UniWorldError: `steps` is less than 1, or `denoise` is outside 0..1.
    """
    if steps < 1:
        raise UniWorldError(f"steps is {steps}; it must be at least 1.")
    if not 0.0 < denoise <= 1.0:
        raise UniWorldError(f"denoise is {denoise}; it must be above 0 and at most 1.")
    total = max(steps, int(steps / denoise))
    levels = shift.apply(torch.linspace(1.0, 1.0 / total, total, dtype=torch.float64), tokens)
    if shift.terminal is not None and total > 1:  # a single level is 1, pure noise, and cannot be stretched
        levels = 1.0 - (1.0 - levels) * ((1.0 - shift.terminal) / (1.0 - levels[-1]))
    return torch.cat([levels, levels.new_zeros(1)])[-(steps + 1) :].float()


def add_noise(latent: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor | float) -> torch.Tensor:
    """Return the point of the path at `sigma`: (1 - s) z + s e."""
    return (1.0 - sigma) * latent + sigma * noise


def euler(
    velocity: Velocity,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    callback: Callable[[Step], None] | None = None,
) -> torch.Tensor:
    """Integrate the velocity from sigmas[0] to sigmas[-1] with Euler steps.

    Args:
        x: the latent at sigmas[0], any shape, float32; one of lower precision keeps its dtype, as in the published rollouts.
        callback: called after every step. An exception from it ends the run.

    Raises:
        UniWorldError: the schedule is not decreasing, or the latent or the velocity is not finite. The message names the
            step.
    """
    return integrate(velocity, x, sigmas, callback, lambda x, v, sigma, after: x + (after - sigma) * v)


def dpm2(
    velocity: Velocity,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    callback: Callable[[Step], None] | None = None,
) -> torch.Tensor:
    """Integrate the velocity with the second-order multistep DPM-Solver++ (arXiv 2211.01095, algorithm 2).

    It evaluates the velocity once per step, as `euler` does, and extrapolates the estimate of the clean latent from the step
    before. The first and the last step are of first order, as in the rollouts of UniWorld-V2 (flow_grpo/diffusers_patch/
    solver.py). So is the second step of a schedule that starts at 1, where log((1 - s) / s) is infinite. Arguments and
    errors are those of `euler`.
    """
    last = float(sigmas[-1]) if len(sigmas) else 0.0
    before: tuple[float, torch.Tensor] | None = None  # noise level and clean estimate of the step before

    def step(x: torch.Tensor, v: torch.Tensor, sigma: float, after: float) -> torch.Tensor:
        nonlocal before
        earlier, denoised = before, x - sigma * v
        before = sigma, denoised
        x = x + (after - sigma) * v  # the first-order exponential step equals Euler's
        if earlier is None or earlier[0] == 1.0 or after == last:
            return x
        h, h_before = _log_snr(after) - _log_snr(sigma), _log_snr(sigma) - _log_snr(earlier[0])
        return x + (1.0 - after) * -math.expm1(-h) * 0.5 * (h / h_before) * (denoised - earlier[1])

    return integrate(velocity, x, sigmas, callback, step)


def _log_snr(sigma: float) -> float:
    return math.log((1.0 - sigma) / sigma)


def integrate(
    velocity: Velocity,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    callback: Callable[[Step], None] | None,
    step: Callable[[torch.Tensor, torch.Tensor, float, float], torch.Tensor],
) -> torch.Tensor:
    """Apply `step` (latent, velocity, noise level, next noise level) along a schedule, with the checks and the callback.

    Steps are computed in float32. A latent of lower precision is rounded to its own dtype after each of them.
    """
    levels = check_sigmas(sigmas)
    total = len(levels) - 1
    for index, (sigma, after) in enumerate(pairwise(levels)):
        if index == 0:
            _check_finite(
                x, "starting latent", index, total, sigma, "check the step that produced the latent or the noise"
            )
        v = velocity(x, sigma)
        _check_finite(v, "velocity", index, total, sigma, _NONFINITE_FIX)
        exact, v = (one.to(torch.promote_types(one.dtype, torch.float32)) for one in (x, v))
        denoised = exact - sigma * v if callback is not None else x
        x = step(exact, v, sigma, after).to(x.dtype)
        if callback is not None:
            callback(Step(index, total, sigma, x, denoised))
    return x


def check_sigmas(sigmas: torch.Tensor) -> list[float]:
    """Check a schedule and return its noise levels as floats.

    Raises:
        UniWorldError: there are fewer than two levels, they are not decreasing, or they are outside 1..0.
    """
    levels = [float(level) for level in sigmas]
    if len(levels) < 2:
        raise UniWorldError(f"The sigmas hold {len(levels)} levels; at least 2 are needed for one step.")
    if not all(1.0 >= a > b >= 0.0 for a, b in pairwise(levels)):
        shown = ", ".join(f"{level:.3f}" for level in levels[:8])
        raise UniWorldError(
            f"The sigmas ({shown}, ...) must decrease from at most 1 to at least 0: use a schedule for flow matching."
        )
    return levels


def _check_finite(x: torch.Tensor, what: str, index: int, total: int, sigma: float, fix: str) -> None:
    finite = torch.isfinite(x)
    if not finite.all():
        bad = int((~finite).sum())
        raise UniWorldError(
            f"The {what} has {bad} of {x.numel()} values NaN or infinite at step {index + 1} of {total} (sigma {sigma:.4f}): "
            f"{fix}."
        )
