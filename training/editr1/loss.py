"""The loss of DiffusionNFT: implicit positive and negative policies around the old one, weighted by the advantage.

Likelihood-free: it needs rollouts and their advantages, but no probabilities of the sampler's steps. Published:
scripts/train_nft_kontext.py and NVlabs/DiffusionNFT; paper: arXiv 2509.16117. Shapes: B samples of any shape.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config.editr1 import LossSettings

# Least weight of the adaptive normalization, as published.
_MIN_WEIGHT = 1e-5


@dataclass(frozen=True, eq=False)
class LossTerms:
    """The terms of the loss of B samples, without masking.

    Attributes:
        positive, negative: (B,) float64 losses of the implicit policies, divided by their adaptive weights.
        positive_weight, negative_weight: (B, 1, ...) float64.
        policy: (B,) float64: clip (r positive + (1 - r) negative) / beta.
        kl: (B,) mean squared distance of the velocity from the reference's.
    """

    positive: Tensor
    negative: Tensor
    positive_weight: Tensor
    negative_weight: Tensor
    policy: Tensor
    kl: Tensor


def optimality(advantages_B: Tensor, settings: LossSettings) -> Tensor:
    """Return the probability r in 0..1 that a sample counts as positive, from its advantage (B,)."""
    clipped = advantages_B.clamp(-settings.clip, settings.clip)
    if settings.mode == "positive_only":
        clipped = clipped.clamp(min=0)
    elif settings.mode == "negative_only":
        clipped = clipped.clamp(max=0)
    elif settings.mode == "one_only":
        clipped = torch.where(clipped > 0, torch.ones_like(clipped), torch.zeros_like(clipped))
    elif settings.mode == "binary":
        clipped = clipped.sign()
    return (clipped / settings.clip / 2 + 0.5).clamp(0, 1)


def loss_terms(
    v: Tensor,
    v_old: Tensor,
    v_reference: Tensor,
    x0: Tensor,
    xt: Tensor,
    sigma_B: Tensor,
    r_B: Tensor,
    settings: LossSettings,
) -> LossTerms:
    """Compute the terms of the loss.

    Args:
        v: velocity of the trained policy; only it gets a gradient.
        v_old: velocity of the policy that painted x0.
        v_reference: velocity of the reference policy.
        x0: painted latents, clean.
        xt: the same, noised to `sigma_B`.
        sigma_B: noise level of each sample.
        r_B: `optimality` of each sample, float64.
    """
    beta, sigma = settings.beta, sigma_B.reshape(-1, *(1,) * (x0.ndim - 1))
    v_old = v_old.detach()
    positive, positive_weight = _implicit(xt - sigma * (beta * v + (1 - beta) * v_old), x0)
    negative, negative_weight = _implicit(xt - sigma * ((1 + beta) * v_old - beta * v), x0)
    policy = (r_B * positive / beta + (1.0 - r_B) * negative / beta) * settings.clip
    kl = ((v - v_reference.detach()) ** 2).mean(dim=tuple(range(1, v.ndim)))
    return LossTerms(positive, negative, positive_weight, negative_weight, policy, kl)


def _implicit(predicted: Tensor, x0: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss of an implicit policy's estimate of x0, (B,), and its adaptive weight (B, 1, ...)."""
    over = tuple(range(1, x0.ndim))
    with torch.no_grad():
        weight = (predicted.double() - x0.double()).abs().mean(dim=over, keepdim=True).clamp(min=_MIN_WEIGHT)
    return ((predicted - x0) ** 2 / weight).mean(dim=over), weight


def masked_mean(losses_B: Tensor, valid_B: Tensor) -> Tensor:
    """Return the mean over the valid samples of a micro-batch as published: 0, with gradient 0, if none is valid."""
    count = valid_B.sum()
    return (losses_B * valid_B).sum() / count if count > 0 else (losses_B * valid_B).sum() * 0.0
