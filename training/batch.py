"""A sample once the frozen parts have read it, and the random numbers of its training step.

Shapes: L VLM tokens, D their width, T SigLIP tokens of S values, P pooled width, C latent channels, h, w latent sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

# Keeps the stream of a sample's numbers apart from those of its neighbours and of other seeds (64-bit golden ratio).
_STRIDE = 0x9E3779B97F4A7C15


class BadSample(ValueError):
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
class Encoded:
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

    def to(self, device: torch.device | str) -> Encoded:
        """The same on a device; dtypes stay."""

        def moved(value: object) -> object:
            if isinstance(value, Tensor):
                return value.to(device, non_blocking=True)
            return tuple(moved(item) for item in value) if isinstance(value, tuple) else value

        return Encoded(**{field.name: moved(getattr(self, field.name)) for field in fields(self)})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Draws:
    """The random numbers of a batch of B.

    Every sample draws from a generator of its own, which knows only the run's seed and the sample's place in the
    order of the data. So a run that was killed, a big batch cut into small ones, two processes instead of one, and
    cached instead of fresh data all see the same numbers, and there is no state to keep.

    Attributes:
        noise: (B, C, h, w) float32, standard normal.
        level: (B,) float32, standard normal: the noise level is its sigmoid, then shifted.
        chance: (B,) float32 in 0..1, for what is dropped now and then.
    """

    noise: Tensor
    level: Tensor
    chance: Tensor

    @classmethod
    def of(cls, seed: int, positions: Sequence[int], latent_shape: Sequence[int]) -> Draws:
        """The numbers of the samples at these places in the order of the data, for latents (C, h, w)."""
        noise, level, chance = [], [], []
        for position in positions:
            generator = torch.Generator("cpu").manual_seed((seed * _STRIDE + position) % 2**63)
            level.append(torch.randn((), generator=generator))
            chance.append(torch.rand((), generator=generator))
            noise.append(torch.randn(tuple(latent_shape), generator=generator))
        return cls(torch.stack(noise), torch.stack(level), torch.stack(chance))

    def to(self, device: torch.device | str) -> Draws:
        """The same on a device."""
        return Draws(self.noise.to(device), self.level.to(device), self.chance.to(device))
