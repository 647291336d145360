"""Colors of latent previews: a small network from a latent cell to the mean color of its pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ....uniworld_core.sampling.latents import RGB, LatentFormat
from .fit import pixels, uint8_batch
from .parts import LATENT_CHANNELS
from .vae import MARKED_KINDS, pictures

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from PIL import Image

# Color is not linear in this VAE's latents: a single matrix, as in FLUX's previews, shows blue as teal.
HIDDEN = 64
STEPS = 3000
_STEPS_A_PICTURE = 4
_CELLS = 4096  # per step
_RATE = 3e-2
# Noise relative to the latents' standard deviation, because a sampler's predictions deviate from the encoder's latents.
_NOISE = 0.1


def fit_colors(vae: AutoencoderKL, latent_format: LatentFormat, device: torch.device | str, steps: int = STEPS) -> RGB:
    """Fit `LatentFormat.rgb` of a trained VAE on pictures of training tasks.

    Args:
        vae: the VAE.
        latent_format: its latent format.
        device: device of the VAE.
        steps: steps of Adam.
    """
    rng = np.random.default_rng(0)
    x_NC, color_N3 = cells(
        vae, latent_format, pictures(rng, max(16, steps // _STEPS_A_PICTURE), kinds=MARKED_KINDS), device
    )
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(LATENT_CHANNELS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 3))
    for parameter in net.parameters():
        bound = parameter.shape[-1] ** -0.5
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    optimizer = torch.optim.Adam(net.parameters(), _RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        chosen = torch.randint(len(x_NC), (_CELLS,), generator=generator)
        noise = _NOISE * torch.randn(_CELLS, LATENT_CHANNELS, generator=generator)
        error = net(x_NC[chosen] + noise) - color_N3[chosen]
        optimizer.zero_grad()
        (error.abs().mean() + error.square().mean()).backward()
        optimizer.step()
        schedule.step()
    return tuple(_rows(layer) for layer in net if isinstance(layer, nn.Linear))


def cells(
    vae: AutoencoderKL, latent_format: LatentFormat, shown: Sequence[Image.Image], device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return latent cells (N, C) of pictures, scaled as the DiT expects, and their mean colors (N, 3) in -1..1, on the CPU."""
    parts = pixels(uint8_batch(shown), device).split(16)
    with torch.no_grad():
        x = torch.cat([latent_format.to_model(vae.encode(part).latent_dist.mode()) for part in parts])
    colors = torch.cat([F.avg_pool2d(part, part.shape[-1] // x.shape[-1]) for part in parts])
    return tuple(one.movedim(1, -1).flatten(0, -2).float().cpu() for one in (x, colors))  # type: ignore[return-value]


def _rows(layer: nn.Linear) -> tuple[tuple[float, ...], ...]:
    table = torch.cat([layer.weight.T, layer.bias[None]]).tolist()
    return tuple(tuple(round(value, 4) for value in row) for row in table)
