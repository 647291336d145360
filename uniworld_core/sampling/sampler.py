"""The sampler: paint a latent from a condition and noise, by integrating a painter's velocity.

Shapes: B batch, C latent channels, h, w latent sides; five-dimensional latents are (B, C, 1, h, w).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from ..errors import UniWorldError
from ..images.sizes import Size
from . import flow
from .cache import CACHES, caching
from .condition import Condition
from .latents import LatentFormat
from .painter import Painter
from .seeds import check_seed
from .solvers import SOLVERS, Solver, solver_named


def paint(
    painter: Painter,
    condition: Condition,
    size: Size,
    noise: torch.Tensor | Sequence[int],
    steps: int,
    guidance: float,
    *,
    denoise: float = 1.0,
    sigmas: torch.Tensor | None = None,
    latent: torch.Tensor | None = None,
    keep_B1hw: torch.Tensor | None = None,
    callback: Callable[[flow.Step], None] | None = None,
    solver: str = SOLVERS[0],
    cache: str = CACHES[0],
) -> torch.Tensor:
    """Paint latents: make schedule and noise, run the sampler, and convert the result to VAE latents.

    Args:
        condition: one item, or one per picture.
        size: size of the pictures in pixels.
        noise: one seed per picture, or starting noise (B, C, h, w) at the scale of normalized latents.
        steps: number of steps of the painter's schedule.
        guidance: the painter's guidance.
        denoise: share of the schedule to run. Values below 1 need `latent`.
        sigmas: schedule (steps + 1) to use instead of `steps` and `denoise`.
        latent: unscaled VAE latents to start from.
        keep_B1hw: 1 where `latent` is kept, 0 where it is repainted.
        callback: called after every step with normalized latents. An exception from it ends the run.
        solver: one of `SOLVERS`.
        cache: one of `CACHES`.

    Returns:
        Unscaled VAE latents (B, C, h, w), float32.

    Raises:
        UniWorldError: sizes, shapes, seeds, schedule, solver or cache are invalid or do not match, or a value is not finite
            (the message names the step).
    """
    latents = painter.latent_format
    shape = latents.shape(len(noise), size)
    if not isinstance(noise, torch.Tensor):
        noise = make_noise(noise, shape[1:])
    elif tuple(noise.shape[-2:]) != shape[-2:]:
        wanted = ", ".join(map(str, shape[1:]))
        raise UniWorldError(
            f"The noise has shape {list(noise.shape)}; a picture of {size.width}x{size.height} needs (batch, {wanted})."
        )
    if sigmas is None:
        sigmas = flow.schedule(steps, latents.token_count(shape), painter.shift, denoise)
    start = None if latent is None else latents.to_model(latent)
    with caching(painter, cache):
        painted = sample(painter, condition, noise, sigmas, guidance, start, keep_B1hw, callback, solver)
    return latents.from_model(painted)


def sequence_length(condition: Condition, latents: LatentFormat, shape: Sequence[int]) -> int:
    """Return the number of tokens that the painter's blocks attend over for one item: of text, references and picture.

    Args:
        latents: the painter's latent format.
        shape: shape of the painted latents. It is not checked; `Painter.check` does that.
    """
    cells = [shape[-2:], *(reference.shape[-2:] for reference in condition.references)]
    return int(condition.tokens.shape[1]) + sum(math.prod(side // latents.pack for side in sides) for sides in cells)


def make_noise(seeds: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
    """Draw starting noise (B, *shape), where `shape` is the shape of one item, such as (C, h, w).

    Every item has its own generator, so that a seed gives the same picture in any batch. The generators are on the CPU,
    because a GPU's draw different numbers.
    """
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in map(check_seed, seeds)]
    return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in generators])


@torch.inference_mode()
def sample(
    painter: Painter,
    condition: Condition,
    noise: torch.Tensor,
    sigmas: torch.Tensor,
    guidance: float,
    latent: torch.Tensor | None = None,
    keep_B1hw: torch.Tensor | None = None,
    callback: Callable[[flow.Step], None] | None = None,
    solver: str | Solver = SOLVERS[0],
) -> torch.Tensor:
    """Integrate the painter's velocity over a schedule. All latents are normalized.

    Args:
        condition: one item, or one per item of the noise.
        noise: starting noise (B, C, h, w).
        sigmas: the schedule. If it starts below 1, `latent` is needed.
        guidance: the painter's guidance.
        latent: the latent to start from.
        keep_B1hw: 1 where `latent` is kept, 0 where it is repainted.
        callback: called after every step.
        solver: one of `SOLVERS`, or a solver.

    Returns:
        The latent (B, C, h, w), float32.

    Raises:
        UniWorldError: shapes do not match, the solver is unknown, the sigmas are not decreasing, or a value is not finite (the message names the
            step).
    """
    integrate = solver_named(solver) if isinstance(solver, str) else solver
    painter.check(condition, noise.shape)
    if latent is not None and latent.shape != noise.shape:
        raise UniWorldError(
            f"The latent has shape {list(latent.shape)} and the noise {list(noise.shape)}; both must have the same shape."
        )
    if not 0 <= guidance < float("inf"):
        raise UniWorldError(f"guidance is {guidance}; it must be a number of at least 0.")
    velocity = painter.velocity_for(condition, guidance, noise.shape)
    x = noise = noise.to(painter.device, torch.float32)
    if latent is not None:
        latent = latent.to(painter.device, torch.float32)
        x = flow.add_noise(latent, noise, flow.check_sigmas(sigmas)[0])
        if keep_B1hw is not None:
            velocity = _inpaint(velocity, latent, keep_B1hw.to(painter.device, torch.float32))
    return integrate(velocity, x, sigmas, callback)


def _inpaint(velocity: flow.Velocity, latent: torch.Tensor, keep_B1hw: torch.Tensor) -> flow.Velocity:
    """Replace the velocity, where the latent is kept, by the one that leads straight back to it: (x - latent) / sigma."""
    frames = (1,) * (latent.ndim - keep_B1hw.ndim)
    keep = keep_B1hw.reshape(*keep_B1hw.shape[:2], *frames, *keep_B1hw.shape[2:])

    def inpainting(x: torch.Tensor, sigma: torch.Tensor | float) -> torch.Tensor:
        return torch.lerp(velocity(x, sigma), (x - latent) / sigma, keep)

    return inpainting
