"""What the sampler needs of a model that paints by following a velocity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from .condition import Condition
from .flow import Shift, Velocity
from .latents import LatentFormat


class Painter(Protocol):
    """A model that gives a velocity over latents. How it packs them, guides, and joins references is its own matter.

    Attributes:
        latent_format: of the latents that it paints.
        shift: of its noise levels.
        device, dtype: where and in what it computes.
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
        """Raises UniWorldError unless the model can paint latents of that shape (B, C, h, w) by that condition."""

    def velocity_for(self, condition: Condition, guidance: float, shape: Sequence[int]) -> Velocity:
        """The velocity of one run: what is the same at all its steps is prepared once.

        Args:
            condition: of one item, or of B.
            guidance: what the family calls so; FLUX embeds the number.
            shape: (B, C, h, w) of the latents, or (B, C, 1, h, w).

        Returns:
            From a noisy latent of that shape on the model's side, float32, and a noise level (one, or (B,) one for each
            item), to the velocity e - z, float32.

        Raises:
            UniWorldError: the condition has another number of items.
        """
