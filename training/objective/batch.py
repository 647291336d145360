"""Samples once the frozen parts have read them, the random numbers of their training step, and batches of both.

Shapes: L VLM tokens, D their width, T SigLIP tokens of S values, P pooled width, C latent channels, h, w latent sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ...uniworld_core.errors import UniWorldError
from ...uniworld_core.families.uniworld_v1.condition import splice

# Keeps the stream of a sample's numbers apart from those of its neighbours and of other seeds (64-bit golden ratio).
_STRIDE = 0x9E3779B97F4A7C15


class BadSample(UniWorldError):
    """A sample that cannot be trained on: it is named, counted and left out.

    Attributes:
        key: what the sample is called.
        reason: what is wrong with it, as a sentence.
    """

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key}: {reason}")
        self.key, self.reason = key, reason

    def __reduce__(self) -> tuple[type[BadSample], tuple[str, str]]:
        return BadSample, (self.key, self.reason)


@dataclass(frozen=True)
class EncodedSample:
    """What the frozen parts compute of one sample; it is what a cache keeps. Tensors are on the CPU.

    Attributes:
        key: what the sample is called.
        hidden: (L, D) the VLM's last hidden states, without padding.
        ends: (L,) bool, True at each picture's `<|vision_end|>`.
        features: per reference (T, S) SigLIP features; empty where there are no references, or SigLIP is not used.
        pooled: (P,) CLIP's pooled prompt, or that of the empty string where T5 is not used.
        t5: (T5 length, D5), or None where T5 is not used.
        latent: (C, h, w) float32, the target on the DiT's side.
        weight: (h, w) float32 edit weight; None stands for 1 everywhere.
    """

    key: str
    hidden: Tensor
    ends: Tensor
    features: tuple[Tensor, ...]
    pooled: Tensor
    t5: Tensor | None
    latent: Tensor
    weight: Tensor | None


@dataclass(frozen=True)
class Draws:
    """The random numbers of a batch of B.

    Every sample draws from a generator of its own, which knows only the run's seed and the sample's place in the
    order of the data. So a run that was killed, a big batch cut into small ones, two processes instead of one, and
    cached instead of fresh data all see the same numbers, and there is no state to keep.

    Attributes:
        noise: (B, C, h, w) float32, standard normal.
        level: (B,) float32, standard normal: the noise level is its sigmoid, then shifted.
        t5_dropout_u: (B,) float32 in 0..1, for what is dropped now and then.
    """

    noise: Tensor
    level: Tensor
    t5_dropout_u: Tensor

    @classmethod
    def of(cls, seed: int, positions: Sequence[int], latent_shape: Sequence[int]) -> Draws:
        """The numbers of the samples at these places in the order of the data, for latents (C, h, w)."""
        noise, level, t5_dropout_u = [], [], []
        for position in positions:
            generator = torch.Generator("cpu").manual_seed((seed * _STRIDE + position) % 2**63)
            level.append(torch.randn((), generator=generator))
            t5_dropout_u.append(torch.rand((), generator=generator))
            noise.append(torch.randn(tuple(latent_shape), generator=generator))
        return cls(torch.stack(noise), torch.stack(level), torch.stack(t5_dropout_u))


@dataclass(frozen=True)
class Batch:
    """Samples of one latent size put together, with their random numbers: few tensors, so that a GPU gets them at once.

    Attributes:
        hidden: (N, D) the VLM's states of all samples, one sample after the other.
        features: (F, S) the SigLIP features of all references in order, or None where SigLIP is not used. F may be 0.
        index: (B, L) which row of hidden and features stands where (`condition.splice`); -1 is padding.
        pooled: (B, P).
        t5: per sample (T5 length, D5), or None where it is dropped; None if no sample has any.
        latent: (B, C, h, w) float32.
        weight: (B, h, w) float32.
        noise: (B, C, h, w) and `level` (B,), as in `Draws`.
    """

    hidden: Tensor
    features: Tensor | None
    index: Tensor
    pooled: Tensor
    t5: tuple[Tensor | None, ...] | None
    latent: Tensor
    weight: Tensor
    noise: Tensor
    level: Tensor

    @classmethod
    def of(
        cls, items: Sequence[EncodedSample], draws: Draws, siglip_width: int | None = None, t5_drop: float = 1.0
    ) -> Batch:
        """Put samples together.

        Args:
            siglip_width: of a feature, for batches without any; None leaves SigLIP out.
            t5_drop: share of samples without their T5 tokens.

        Raises:
            UniWorldError: latents of different sizes.
        """
        shapes = {tuple(item.latent.shape) for item in items}
        if len(shapes) != 1:
            raise UniWorldError(f"A batch holds latents of shapes {sorted(shapes)}; batches are made of one size each.")
        used = [item.features if siglip_width is not None else () for item in items]
        ends = [item.ends.nonzero().flatten().tolist() for item in items]
        counts: list[list[int | None]] = [
            [len(each) for each in some] or [None] * len(at) for some, at in zip(used, ends)
        ]
        flat = [each for some in used for each in some]
        features = None if siglip_width is None else torch.cat([torch.zeros(0, siglip_width), *flat])
        dropout_us = draws.t5_dropout_u.tolist()
        kept = tuple(None if u < t5_drop else item.t5 for item, u in zip(items, dropout_us))
        ones_hw = torch.ones(items[0].latent.shape[1:])
        return cls(
            hidden=torch.cat([item.hidden for item in items]),
            features=features,
            index=splice([len(item.hidden) for item in items], ends, counts),
            pooled=torch.stack([item.pooled for item in items]),
            t5=kept if any(one is not None for one in kept) else None,
            latent=torch.stack([item.latent for item in items]).float(),
            weight=torch.stack([ones_hw if item.weight is None else item.weight for item in items]),
            noise=draws.noise,
            level=draws.level,
        )

    def to(self, device: torch.device | str) -> Batch:
        """The same on a device; dtypes stay."""

        def moved(value: object) -> object:
            if isinstance(value, Tensor):
                return value.to(device, non_blocking=True)
            return tuple(moved(item) for item in value) if isinstance(value, tuple) else value

        return Batch(**{field.name: moved(getattr(self, field.name)) for field in fields(self)})  # type: ignore[arg-type]
