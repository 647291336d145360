"""The VAE's stand-in: FLUX's autoencoder over pictures of the world, maps and drawings among them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..tasks import KINDS, make_task
from .fit import fast_math, pixels, psnr
from .parts import make_vae

BATCH = 16
KL_WEIGHT = 1e-4  # enough to keep the latents near unit scale, too little to blur
L1_WEIGHT = 1.0
_PAINTED = tuple(kind for kind in KINDS if kind != "question")


def pictures(rng: np.random.Generator, count: int) -> list[np.ndarray]:
    """Targets and references of training tasks of all kinds."""
    found: list[np.ndarray] = []
    while len(found) < count:
        task = make_task(_PAINTED[int(rng.integers(len(_PAINTED)))], rng, "train")
        shown = [task.target, *task.references]
        found.append(np.asarray(shown[int(rng.integers(len(shown)))]))
    return found


class Autoencoding(nn.Module):
    """The training objective: squared and absolute error, and a little KL divergence."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.vae: Any = make_vae().to(device)
        self.device = device

    def loss(self, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        x = pixels(pictures(rng, BATCH), self.device)
        with fast_math(self.device):
            distribution = self.vae.encode(x).latent_dist
            seed = torch.Generator("cpu").manual_seed(int(rng.integers(2**31)))
            noise = torch.randn(distribution.mean.shape, generator=seed).to(self.device)
            y = self.vae.decode(distribution.mean + distribution.std * noise).sample
        error = F.mse_loss(y.float(), x) + L1_WEIGHT * F.l1_loss(y.float(), x)
        divergence = distribution.kl().float().mean() / distribution.mean[0].numel()
        return error + KL_WEIGHT * divergence, {"psnr": round(psnr(y, x), 2), "kl": round(divergence.item(), 3)}


def fit_latents(vae: Any, device: torch.device | str, count: int = 512) -> dict[str, float]:
    """The shift and scale with which latents of the world have mean 0 and deviation 1, as FLUX's config says them."""
    x = pixels(pictures(np.random.default_rng(0), count), device)
    with torch.no_grad():
        z = torch.cat([vae.encode(part).latent_dist.mode() for part in x.split(64)])
    return {"shift_factor": round(float(z.mean()), 4), "scaling_factor": round(1 / float(z.std()), 4)}
