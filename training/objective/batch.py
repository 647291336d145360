"""Encoded samples, the random numbers of their training step, and batches of both.

Shapes: L VLM tokens, D their width, T SigLIP tokens of S values, P pooled width, C latent channels, h, w latent sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ...uniworld_core.errors import UniWorldError
from ...uniworld_core.families.uniworld_v1.condition import splice

# 64-bit golden ratio: separates the random streams of neighbouring samples and of other seeds.
_STRIDE = 0x9E3779B97F4A7C15


class BadSample(UniWorldError):
    """A sample that cannot be trained on; it is reported, counted and skipped.

    Attributes:
        key: name of the sample.
        reason: what is wrong with it, as a sentence.
    """

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key}: {reason}")
        self.key, self.reason = key, reason

    def __reduce__(self) -> tuple[type[BadSample], tuple[str, str]]:
        return BadSample, (self.key, self.reason)


@dataclass(frozen=True)
class EncodedSample:
    """The frozen parts' outputs for one sample, as a cache stores them. Tensors are on the CPU.

    Attributes:
        key: name of the sample.
        hidden: (L, D) the VLM's last hidden states, without padding.
        ends: (L,) bool, True at each picture's `<|vision_end|>`.
        features: per reference (T, S) SigLIP features; empty without references or without SigLIP.
        pooled: (P,) CLIP's pooled prompt, or that of the empty string if T5 is not used.
        t5: (T5 length, D5), or None if T5 is not used.
        latent: (C, h, w) float32 target latent, scaled as the DiT expects it.
        weight: (h, w) float32 edit weight; None means 1 everywhere.
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

    Each sample has its own generator, seeded by the run's seed and the sample's position in the order of the data. A
    resumed run, gradient accumulation, several processes and cached data therefore all see the same numbers, and no
    random state needs to be saved.

    Attributes:
        noise: (B, C, h, w) float32, standard normal.
        level: (B,) float32, standard normal; the noise level is its sigmoid, then shifted.
        t5_dropout_u: (B,) float32, uniform in 0..1, for T5 dropout.
    """

    noise: Tensor
    level: Tensor
    t5_dropout_u: Tensor

    @classmethod
    def of(cls, seed: int, positions: Sequence[int], latent_shape: Sequence[int]) -> Draws:
        """Draw the numbers of the samples at these positions in the order of the data, for latents (C, h, w)."""
        noise, level, t5_dropout_u = [], [], []
        for position in positions:
            generator = torch.Generator("cpu").manual_seed((seed * _STRIDE + position) % 2**63)
            level.append(torch.randn((), generator=generator))
            t5_dropout_u.append(torch.rand((), generator=generator))
            noise.append(torch.randn(tuple(latent_shape), generator=generator))
        return cls(torch.stack(noise), torch.stack(level), torch.stack(t5_dropout_u))


@dataclass(frozen=True)
class Batch:
    """Collated samples of one latent size with their random numbers, in few tensors so that copies to a GPU are cheap.

    Attributes:
        hidden: (N, D) the VLM's hidden states of all samples, concatenated.
        features: (F, S) the SigLIP features of all references in order, or None if SigLIP is not used. F may be 0.
        index: (B, L) the row of hidden or features at each position (`condition.splice`); -1 is padding.
        pooled: (B, P).
        t5: per sample (T5 length, D5), or None if it is dropped; None if no sample has T5 tokens.
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
        """Collate samples.

        Args:
            items: the samples.
            draws: their random numbers.
            siglip_width: width of a SigLIP feature, needed for batches without references; None leaves SigLIP out.
            t5_drop: fraction of samples whose T5 tokens are dropped.

        Raises:
            UniWorldError: the latents differ in size.
        """
        shapes = {tuple(item.latent.shape) for item in items}
        if len(shapes) != 1:
            raise UniWorldError(f"A batch has latents of shapes {sorted(shapes)}; all samples must have the same size.")
        used = [item.features if siglip_width is not None else () for item in items]
        ends = [item.ends.nonzero().flatten().tolist() for item in items]
        counts: list[list[int | None]] = [
            [len(each) for each in some] or [None] * len(at) for some, at in zip(used, ends)
        ]
        flat = [each for some in used for each in some]
        features = None if siglip_width is None else torch.cat([torch.zeros(0, siglip_width), *flat])
        dropout_us = draws.t5_dropout_u.tolist()
        t5 = tuple(None if u < t5_drop else item.t5 for item, u in zip(items, dropout_us))
        ones_hw = torch.ones(items[0].latent.shape[1:])
        return cls(
            hidden=torch.cat([item.hidden for item in items]),
            features=features,
            index=splice([len(item.hidden) for item in items], ends, counts),
            pooled=torch.stack([item.pooled for item in items]),
            t5=t5 if any(tokens is not None for tokens in t5) else None,
            latent=torch.stack([item.latent for item in items]).float(),
            weight=torch.stack([ones_hw if item.weight is None else item.weight for item in items]),
            noise=draws.noise,
            level=draws.level,
        )

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on a device, with unchanged dtypes."""

        def moved(value: object) -> object:
            if isinstance(value, Tensor):
                return value.to(device, non_blocking=True)
            return tuple(moved(item) for item in value) if isinstance(value, tuple) else value

        return Batch(**{field.name: moved(getattr(self, field.name)) for field in fields(self)})  # type: ignore[arg-type]
