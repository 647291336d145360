"""The colours of previews: a small map from a cell of a latent to the mean colour of its pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ....uniworld_core.sampling.latents import RGB, LatentFormat
from .fit import bytes_of, pixels
from .parts import LATENT_CHANNELS
from .vae import MARKED_KINDS, pictures

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from PIL import Image

# With this VAE colour is not linear in the latent: a matrix alone, as FLUX's previews have, shows blue as teal.
HIDDEN = 64
STEPS = 3000
_STEPS_A_PICTURE = 4
_CELLS = 4096  # a step
_RATE = 3e-2
_OFF = 0.1  # of the latents' deviation: what a sampler predicts lies a little off what the encoder gives


def fit_colours(vae: AutoencoderKL, latent_format: LatentFormat, device: torch.device | str, steps: int = STEPS) -> RGB:
    """The map of a trained VAE, as `LatentFormat.rgb` has it, from pictures of training tasks.

    Args:
        vae: diffusers' AutoencoderKL.
        steps: of Adam.
    """
    rng = np.random.default_rng(0)
    x_NC, colour_N3 = cells(
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
        off = _OFF * torch.randn(_CELLS, LATENT_CHANNELS, generator=generator)
        error = net(x_NC[chosen] + off) - colour_N3[chosen]
        optimizer.zero_grad()
        (error.abs().mean() + error.square().mean()).backward()
        optimizer.step()
        schedule.step()
    return tuple(_rows(layer) for layer in net if isinstance(layer, nn.Linear))


def cells(
    vae: AutoencoderKL, latent_format: LatentFormat, shown: Sequence[Image.Image], device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cells (N, C) of pictures on the DiT's side, and their mean colours (N, 3) in -1..1, on the CPU."""
    parts = pixels(bytes_of(shown), device).split(16)
    with torch.no_grad():
        x = torch.cat([latent_format.to_model(vae.encode(part).latent_dist.mode()) for part in parts])
    colours = torch.cat([F.avg_pool2d(part, part.shape[-1] // x.shape[-1]) for part in parts])
    return tuple(one.movedim(1, -1).flatten(0, -2).float().cpu() for one in (x, colours))  # type: ignore[return-value]


def _rows(layer: nn.Linear) -> tuple[tuple[float, ...], ...]:
    table = torch.cat([layer.weight.T, layer.bias[None]]).tolist()
    return tuple(tuple(round(value, 4) for value in row) for row in table)
