"""The VAE's stand-in: FLUX's autoencoder, trained on pictures, maps and drawings of the world of shapes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ....uniworld_core.backbones.flux_latents import FLUX_LATENTS
from ....uniworld_core.backbones.flux_vae import VAE
from ....uniworld_core.images.sizes import Size
from ....uniworld_core.sampling.latents import LatentFormat
from ..tasks.tasks import make_task
from .fit import Objective, fast_math, pixels, psnr, uint8_batch
from .parts import LATENT_CHANNELS, PAINTED, make_vae

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

REFERENCE_SHARE = 0.2
KL_WEIGHT = 1e-4  # enough to keep latents near unit scale, too little to blur
PIECE = 64  # side of a crop in pixels
WHOLE_SHARE = 0.2
_FIRST_LOG_VARIANCE = -8.0
# Pictures with rare colors (overlays, boxes, inverted ones) are as frequent as all plain ones.
_KINDS = (
    "reconstruct",
    "remove",
    "compose",
    "extract",
    "segmentation",
    "segmentation",
    "detection",
    "style",
    "edge",
    "depth",
    "hed",
    "mlsd",
    "normal",
    "sketch",
    "openpose",
)


# The decoder's training shows overlays most often: their colors are between those of the palette, so an error that would
# leave a red square red changes the color of a mark.
MARKED_KINDS = (*_KINDS, *("segmentation",) * 6, "detection", "style", "recolour", "background")
# Distance of painted latents from encoded ones, relative to the latents' standard deviation.
_NOISE = 0.1


def pictures(
    rng: np.random.Generator, count: int, side: int = PAINTED, kinds: tuple[str, ...] = _KINDS
) -> list[Image.Image]:
    """Return targets of training tasks, and sometimes a reference instead."""
    found: list[Image.Image] = []
    while len(found) < count:
        task = make_task(kinds[int(rng.integers(len(kinds)))], rng, "train", side)
        assert task.target is not None
        found.append(task.references[0] if rng.random() < REFERENCE_SHARE else task.target)
    return found


@dataclass(frozen=True)
class PictureBatches:
    """Draws (B, H, W, 3) bytes, and the noise (B, C, h, w) of their latents.

    Most batches are crops, two from each picture, for variety. The others are complete pictures, a quarter as many, for
    the attention in the middle block.
    """

    batch: int
    kinds: tuple[str, ...] = _KINDS

    def __call__(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        if rng.random() < WHOLE_SHARE:
            shown = uint8_batch(pictures(rng, max(1, self.batch // (PAINTED // PIECE) ** 2), kinds=self.kinds))
        else:
            drawn = uint8_batch(pictures(rng, -(-self.batch // 2), kinds=self.kinds))
            shown = torch.stack([_piece(rng, drawn[number // 2]) for number in range(self.batch)])
        shape = FLUX_LATENTS.shape(len(shown), Size(*shown.shape[1:3]))
        return shown, torch.from_numpy(rng.standard_normal(shape, np.float32))


def _piece(rng: np.random.Generator, picture_HW3: Tensor) -> Tensor:
    top, left = (int(start) for start in rng.integers(0, PAINTED - PIECE + 1, 2))
    return picture_HW3[top : top + PIECE, left : left + PIECE]


class VAEObjective(Objective):
    """Trains the VAE: squared and absolute error, and a small KL divergence."""

    ends = ("conv_in", "conv_out")

    def __init__(self, batch: int, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.vae: AutoencoderKL = make_vae()
        _init_log_variance(self.vae)
        self.vae.to(device)  # type: ignore[arg-type]  # diffusers' decorator hides the method
        self.source, self.device = PictureBatches(batch), device

    def loss(self, drawn: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        x, noise = pixels(drawn[0], self.device), drawn[1].to(self.device)
        with fast_math(self.device):
            distribution = self.vae.encode(x).latent_dist
            y = self.vae.decode(distribution.mean + distribution.std * noise).sample
        divergence = distribution.kl().float().mean() / distribution.mean[0].numel()
        return _error(y, x) + KL_WEIGHT * divergence, {"psnr": psnr(y, x), "kl": divergence}


class DecoderObjective(Objective):
    """Trains only the decoder of a trained VAE, so that its latents do not change: squared and absolute error.

    The latents are slightly noisy, like those that a DiT paints.

    Attributes:
        vae: diffusers' AutoencoderKL; its encoder is frozen.
    """

    ends = ("conv_in", "conv_out")

    def __init__(self, vae: VAE, batch: int, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.vae = vae.autoencoder.requires_grad_(False).to(device)
        self.vae.decoder.requires_grad_(True)
        self.noise = _NOISE / float(self.vae.config.scaling_factor)
        self.source, self.device = PictureBatches(batch, MARKED_KINDS), device

    def loss(self, drawn: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        x, noise = pixels(drawn[0], self.device), drawn[1].to(self.device)
        with fast_math(self.device):
            with torch.no_grad():
                latents = self.vae.encode(x).latent_dist.mean
            y = self.vae.decode(latents + self.noise * noise).sample
        return _error(y, x), {"psnr": psnr(y, x)}


def _error(painted: Tensor, wanted: Tensor) -> Tensor:
    return F.mse_loss(painted.float(), wanted) + F.l1_loss(painted.float(), wanted)


def _init_log_variance(vae: AutoencoderKL) -> None:
    """Initialize the latents' variance near 0: noise of standard deviation 1 would drown them for a long time."""
    with torch.no_grad():
        last = vae.encoder.conv_out
        assert last.bias is not None
        last.weight[LATENT_CHANNELS:] *= 0.1
        last.bias[LATENT_CHANNELS:] = _FIRST_LOG_VARIANCE


def fit_latents(vae: AutoencoderKL, device: torch.device | str, count: int = 256) -> LatentFormat:
    """Return the latent format whose shift and scale give latents of the world mean 0 and standard deviation 1."""
    x = pixels(uint8_batch(pictures(np.random.default_rng(0), count)), device)
    with torch.no_grad():
        z = torch.cat([vae.encode(part).latent_dist.mode() for part in x.split(16)])
    return replace(FLUX_LATENTS, shift=round(float(z.mean()), 4), scale=round(1 / float(z.std()), 4))
