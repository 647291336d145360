"""FLUX's transformer as the painter of FLUX.1 Kontext: the tokens of references follow those of the painted picture.

Shapes: B batch, C latent channels, h, w latent sides, N packed tokens of K values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ...backbones.flux_dit import DiT
from ...sampling.condition import Condition
from ...sampling.flow import Shift
from ...sampling.latents import LatentFormat
from ...sampling.packing import pack
from .references import reference_positions


class KontextDiT(DiT):
    """FLUX.1 Kontext's transformer as a `Painter`. It takes any number of references, also none.

    Args:
        transformer: diffusers' FluxTransformer2DModel.
        latent_format: format of the latents of the painted picture and of the references.
        shift: shift of the noise levels, which depends on the painted picture alone.
    """

    def __init__(self, transformer: Any, latent_format: LatentFormat, shift: Shift) -> None:
        super().__init__(transformer, latent_format)
        self.shift = shift

    def check(self, condition: Condition, shape: Sequence[int]) -> None:
        """Raise UniWorldError unless the model can paint latents of shape (B, C, h, w) under this condition."""
        # First, because its message about the conditioning of another family names the remedy.
        super().check(replace(condition, references=()), shape)
        for reference in condition.references:
            self.latent_format.size(reference.shape, "as a reference, the DiT")

    def packed_velocity(
        self,
        x_BNK: torch.Tensor,
        sigma: torch.Tensor | float,
        condition: Condition,
        guidance: float,
        positions_N3: torch.Tensor,
    ) -> torch.Tensor:
        """Compute the velocity of the painted picture's tokens (`DiT.packed_velocity`); differentiable.

        Args:
            condition: the condition, with B items. Its references become tokens behind those of `x_BNK`.
        """
        p, device = self.latent_format.pack, x_BNK.device
        tokens = [pack(latent.to(device), p) for latent in condition.references]
        grids = [(latent.shape[-2] // p, latent.shape[-1] // p) for latent in condition.references]
        velocity_BNK = super().packed_velocity(
            torch.cat([x_BNK, *tokens], dim=1),
            sigma,
            condition,
            guidance,
            torch.cat([positions_N3, reference_positions(grids, device)]),
        )
        return velocity_BNK[:, : x_BNK.shape[1]]
