"""The interface between the sampler and a denoiser: a model that predicts a velocity. This package calls it a painter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from .condition import Condition
from .flow import Shift, Velocity
from .latents import LatentFormat


class Painter(Protocol):
    """A model that predicts a velocity over latents. Packing, guidance and reference latents are its own concern.

    Attributes:
        latent_format: format of the painted latents.
        shift: shift of the noise levels.
        device, dtype: device and dtype of the computation.
    """

    @property
    def latent_format(self) -> LatentFormat: ...

    @property
    def shift(self) -> Shift: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def check(self, condition: Condition, shape: Sequence[int]) -> None:
        """Raise UniWorldError unless the model can paint latents of shape (B, C, h, w) under this condition."""

    def velocity_for(self, condition: Condition, guidance: float, shape: Sequence[int]) -> Velocity:
        """Return the velocity function of one run. Whatever is the same at all steps is computed here, once.

        Args:
            condition: one item, or B items.
            guidance: the family's guidance; FLUX embeds this number.
            shape: shape of the latents, (B, C, h, w) or (B, C, 1, h, w).

        Returns:
            A function of a noisy normalized latent, float32, and a noise level (a number, or (B,) one per item). It returns
            the velocity e - z, float32.

        Raises:
            UniWorldError: the number of items in the condition is neither 1 nor B.
        """
