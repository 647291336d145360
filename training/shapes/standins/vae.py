"""The VAE's stand-in: FLUX's autoencoder over pictures of the world, maps and drawings among them."""

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
from .fit import Objective, bytes_of, fast_math, pixels, psnr
from .parts import LATENT_CHANNELS, PAINTED, make_vae

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

REFERENCE_SHARE = 0.2
KL_WEIGHT = 1e-4  # enough to keep the latents near unit scale, too little to blur
PIECE = 64  # pixels a side
WHOLE_SHARE = 0.2
_FIRST_LOG_VARIANCE = -8.0
# Pictures whose colours are rare (overlays, boxes, inverted ones) come as often as all the plain ones.
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


# The decoder alone sees the marks of overlays more than all else: their colours lie between those of the palette, and an
# error that leaves a red square red makes a mark another colour.
MARKED_KINDS = (*_KINDS, *("segmentation",) * 6, "detection", "style", "recolour", "background")
# How far latents that are painted lie off those that are encoded, in shares of all latents' deviation.
_OFF = 0.1


def pictures(
    rng: np.random.Generator, count: int, side: int = PAINTED, kinds: tuple[str, ...] = _KINDS
) -> list[Image.Image]:
    """Targets of training tasks, and now and then a reference."""
    found: list[Image.Image] = []
    while len(found) < count:
        task = make_task(kinds[int(rng.integers(len(kinds)))], rng, "train", side)
        assert task.target is not None
        found.append(task.references[0] if rng.random() < REFERENCE_SHARE else task.target)
    return found


@dataclass(frozen=True)
class Pictures:
    """Draws (B, H, W, 3) bytes, and the noise (B, C, h, w) with which their latents are drawn.

    Most batches are cut out of pictures, two pieces of each, so that one step sees many; the others are whole ones, a
    quarter as many, for the attention in the middle.
    """

    batch: int
    kinds: tuple[str, ...] = _KINDS

    def __call__(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        if rng.random() < WHOLE_SHARE:
            shown = bytes_of(pictures(rng, max(1, self.batch // (PAINTED // PIECE) ** 2), kinds=self.kinds))
        else:
            drawn = bytes_of(pictures(rng, -(-self.batch // 2), kinds=self.kinds))
            shown = torch.stack([_piece(rng, drawn[number // 2]) for number in range(self.batch)])
        shape = FLUX_LATENTS.shape(len(shown), Size(*shown.shape[1:3]))
        return shown, torch.from_numpy(rng.standard_normal(shape, np.float32))


def _piece(rng: np.random.Generator, picture_HW3: Tensor) -> Tensor:
    top, left = (int(start) for start in rng.integers(0, PAINTED - PIECE + 1, 2))
    return picture_HW3[top : top + PIECE, left : left + PIECE]


class Autoencoding(Objective):
    """Squared and absolute error, and a little KL divergence."""

    ends = ("conv_in", "conv_out")

    def __init__(self, batch: int, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.vae: AutoencoderKL = make_vae()
        _narrow(self.vae)
        self.vae.to(device)  # type: ignore[arg-type]  # diffusers' decorator hides the method
        self.source, self.device = Pictures(batch), device

    def loss(self, drawn: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        x, noise = pixels(drawn[0], self.device), drawn[1].to(self.device)
        with fast_math(self.device):
            distribution = self.vae.encode(x).latent_dist
            y = self.vae.decode(distribution.mean + distribution.std * noise).sample
        divergence = distribution.kl().float().mean() / distribution.mean[0].numel()
        return _error(y, x) + KL_WEIGHT * divergence, {"psnr": psnr(y, x), "kl": divergence}


class Decoding(Objective):
    """The decoder alone, of a trained VAE whose latents stay what they are: squared and absolute error.

    It learns from latents that are a little off, as those are that a DiT paints.

    Attributes:
        vae: diffusers' AutoencoderKL; its encoder is left as it is.
    """

    ends = ("conv_in", "conv_out")

    def __init__(self, vae: VAE, batch: int, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.vae = vae.autoencoder.requires_grad_(False).to(device)
        self.vae.decoder.requires_grad_(True)
        self.off = _OFF / float(self.vae.config.scaling_factor)
        self.source, self.device = Pictures(batch, MARKED_KINDS), device

    def loss(self, drawn: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        x, noise = pixels(drawn[0], self.device), drawn[1].to(self.device)
        with fast_math(self.device):
            with torch.no_grad():
                latents = self.vae.encode(x).latent_dist.mean
            y = self.vae.decode(latents + self.off * noise).sample
        return _error(y, x), {"psnr": psnr(y, x)}


def _error(painted: Tensor, wanted: Tensor) -> Tensor:
    return F.mse_loss(painted.float(), wanted) + F.l1_loss(painted.float(), wanted)


def _narrow(vae: AutoencoderKL) -> None:
    """Let latents spread by next to nothing at first: the noise of deviation 1 would drown them for a long time."""
    with torch.no_grad():
        last = vae.encoder.conv_out
        assert last.bias is not None
        last.weight[LATENT_CHANNELS:] *= 0.1
        last.bias[LATENT_CHANNELS:] = _FIRST_LOG_VARIANCE


def fit_latents(vae: AutoencoderKL, device: torch.device | str, count: int = 256) -> LatentFormat:
    """The shift and scale with which latents of the world have mean 0 and deviation 1."""
    x = pixels(bytes_of(pictures(np.random.default_rng(0), count)), device)
    with torch.no_grad():
        z = torch.cat([vae.encode(part).latent_dist.mode() for part in x.split(16)])
    return replace(FLUX_LATENTS, shift=round(float(z.mean()), 4), scale=round(1 / float(z.std()), 4))
