"""The sampler: a condition and noise to a painted latent, over a painter's velocity.

Shapes: B batch, C latent channels, h, w latent sides; latents of five dimensions are (B, C, 1, h, w).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ..errors import UniWorldError
from ..images.sizes import Size
from . import flow
from .condition import Condition
from .painter import Painter
from .seeds import check_seed


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
) -> torch.Tensor:
    """Paint pictures of a size: schedule, noise, the sampler, and back to the VAE's side.

    Args:
        condition: of one item, or of as many as are painted.
        size: in pixels.
        noise: one seed for each item, or starting noise (B, C, h, w) on the model's side.
        steps: of the painter's own schedule.
        guidance: as the painter takes it.
        denoise: the share of that schedule that is followed; under 1 it needs `latent`.
        sigmas: (steps + 1) a schedule to follow instead of `steps` and `denoise`.
        latent: the VAE's own, to start from.
        keep_B1hw: 1 where `latent` is to be kept, 0 where it is painted over.
        callback: called after every step with latents on the model's side; what it raises ends the run.

    Returns:
        The VAE's own latents (B, C, h, w), float32.

    Raises:
        UniWorldError: sizes, shapes, seeds or schedules that do not fit, or values that are not finite (the step is named).
    """
    latents = painter.latent_format
    shape = latents.shape(len(noise), size)
    if not isinstance(noise, torch.Tensor):
        noise = make_noise(noise, shape[1:])
    elif tuple(noise.shape[-2:]) != shape[-2:]:
        wanted = ", ".join(map(str, shape[1:]))
        raise UniWorldError(
            f"The noise has shape {list(noise.shape)}; a picture of {size.width}x{size.height} takes (batch, {wanted})."
        )
    if sigmas is None:
        sigmas = flow.schedule(steps, latents.token_count(shape), painter.shift, denoise)
    start = None if latent is None else latents.to_model(latent)
    return latents.from_model(sample(painter, condition, noise, sigmas, guidance, start, keep_B1hw, callback))


def make_noise(seeds: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
    """Starting noise (B, *shape) of items of that shape, such as (C, h, w).

    Each item has a generator of its own on the CPU, so that it is the same in any batch.
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
) -> torch.Tensor:
    """Follow the painter's velocity over a schedule; all latents are on the model's side.

    Args:
        condition: of one item, or of as many as the noise.
        noise: (B, C, h, w) starting noise.
        sigmas: schedule; below 1 at the start it needs `latent`.
        latent: the latent to start from.
        keep_B1hw: 1 where `latent` is to be kept, 0 where it is painted over.
        callback: called after every step.

    Returns:
        The latent (B, C, h, w), float32.

    Raises:
        UniWorldError: shapes that do not fit, sigmas that do not fall, values that are not finite (the step is named).
    """
    painter.check(condition, noise.shape)
    if latent is not None and latent.shape != noise.shape:
        raise UniWorldError(
            f"The latent has shape {list(latent.shape)} and the noise {list(noise.shape)}; they must be the same."
        )
    if not 0 <= guidance < float("inf"):
        raise UniWorldError(f"guidance is {guidance}; it must be a number of at least 0.")
    follow = painter.velocity_for(condition, guidance, noise.shape)
    x = noise = noise.to(painter.device, torch.float32)
    if latent is not None:
        latent = latent.to(painter.device, torch.float32)
        x = flow.add_noise(latent, noise, flow.check_sigmas(sigmas)[0])
        if keep_B1hw is not None:
            follow = _keeping(follow, latent, keep_B1hw.to(painter.device, torch.float32))
    return flow.euler(follow, x, sigmas, callback)


def _keeping(velocity: flow.Velocity, latent: torch.Tensor, keep_B1hw: torch.Tensor) -> flow.Velocity:
    """The velocity, but where the latent is kept the one that leads straight back to it."""
    frames = (1,) * (latent.ndim - keep_B1hw.ndim)
    keep = keep_B1hw.reshape(*keep_B1hw.shape[:2], *frames, *keep_B1hw.shape[2:])

    def kept(x: torch.Tensor, sigma: torch.Tensor | float) -> torch.Tensor:
        return torch.lerp(velocity(x, sigma), (x - latent) / sigma, keep)

    return kept
