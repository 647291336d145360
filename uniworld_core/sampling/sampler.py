"""The sampler: a condition and noise to a painted latent, over the DiT's velocity.

Shapes: B batch, C latent channels (16), h = H/8, w = W/8, N packed tokens of K = 4C values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ..backbones.flux_dit import PACK, VAE_FACTOR, DiT, image_positions, pack, unpack
from ..errors import UniWorldError
from ..families.uniworld_v1.condition import Condition
from ..images.sizes import check_size
from . import flow
from .seeds import check_seed


def make_noise(seeds: Sequence[int], height: int, width: int, channels: int = 16) -> torch.Tensor:
    """Starting noise (B, C, H/8, W/8), one generator per item on the CPU, so that an item is the same in any batch."""
    size = check_size(height, width)
    shape = (channels, size.height // VAE_FACTOR, size.width // VAE_FACTOR)
    return torch.stack(
        [torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed)) for seed in map(check_seed, seeds)]
    )


@torch.inference_mode()
def sample(
    dit: DiT,
    condition: Condition,
    noise_BChw: torch.Tensor,
    sigmas: torch.Tensor,
    guidance: float = flow.GUIDANCE,
    latent_BChw: torch.Tensor | None = None,
    keep_B1hw: torch.Tensor | None = None,
    callback: Callable[[flow.Step], None] | None = None,
) -> torch.Tensor:
    """Paint: follow the DiT's velocity over the schedule.

    Args:
        condition: of one item, or of as many as the noise.
        noise_BChw: starting noise.
        sigmas: schedule; below 1 at the start it needs `latent_BChw`.
        latent_BChw: the latent to start from, on the DiT's side.
        keep_B1hw: 1 where `latent_BChw` is to be kept, 0 where it is painted over.
        callback: sees latents (B, C, h, w) on the DiT's side.

    Returns:
        The latent (B, C, h, w) on the DiT's side, float32.

    Raises:
        UniWorldError: shapes that do not fit, sigmas that do not fall, values that are not finite (the step is named).
    """
    _check_latents(dit, noise_BChw, latent_BChw)
    _check_widths(dit, condition)
    if not 0 <= guidance < float("inf"):
        raise UniWorldError(f"guidance is {guidance}; it must be a number of at least 0, such as {flow.GUIDANCE}.")
    batch, _, h, w = noise_BChw.shape
    condition = condition.to(dit.device, dit.dtype).repeat(batch)
    positions = image_positions(h, w, dit.device)
    x = noise = pack(noise_BChw.to(dit.device, torch.float32))
    latent = keep = None
    if latent_BChw is not None:
        latent = pack(latent_BChw.to(dit.device, torch.float32))
        x = flow.add_noise(latent, noise, flow.check_sigmas(sigmas)[0])
        if keep_B1hw is not None:
            keep = pack(keep_B1hw.to(dit.device, torch.float32).expand_as(noise_BChw))

    def velocity(x_BNK: torch.Tensor, sigma: float) -> torch.Tensor:
        v = dit.packed_velocity(x_BNK, sigma, condition, guidance, positions)
        # Where the latent is kept, the velocity is the one that leads straight back to it.
        return v if keep is None or latent is None else torch.lerp(v, (x_BNK - latent) / sigma, keep)

    def report(step: flow.Step) -> None:
        if callback is not None:
            callback(flow.Step(step.index, step.total, step.sigma, unpack(step.x, h, w), unpack(step.denoised, h, w)))

    return unpack(flow.euler(velocity, x, sigmas, report if callback else None), h, w)


def _check_latents(dit: DiT, noise: torch.Tensor, latent: torch.Tensor | None) -> None:
    sides = noise.shape[2:]
    if noise.ndim != 4 or 0 in noise.shape or noise.shape[1] != dit.channels or any(side % PACK for side in sides):
        raise UniWorldError(
            f"The latent has shape {list(noise.shape)}; the DiT takes (batch, {dit.channels}, height/8, width/8) of "
            "pictures whose sides are multiples of 16."
        )
    if latent is not None and latent.shape != noise.shape:
        raise UniWorldError(
            f"The latent has shape {list(latent.shape)} and the noise {list(noise.shape)}; they must be the same."
        )


def _check_widths(dit: DiT, condition: Condition) -> None:
    config = dit.transformer.config
    for what, tensor, width in (
        ("tokens", condition.tokens, config.joint_attention_dim),
        ("pooled prompt", condition.pooled, config.pooled_projection_dim),
    ):
        if tensor.shape[-1] != width:
            raise UniWorldError(
                f"The {what} of the conditioning is {tensor.shape[-1]} wide, and the DiT takes {width}: "
                "encode the prompt with the checkpoint and the FLUX folder that the DiT belongs to."
            )
