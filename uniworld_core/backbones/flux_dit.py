"""The DiT that paints: FLUX's transformer as a velocity over latents.

Shapes: B batch, C latent channels (16), h = H/8, w = W/8, N = h/2 * w/2 packed tokens of K = 4C values, L text tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..sampling.latents import LatentFormat

if TYPE_CHECKING:
    from ..families.uniworld_v1.condition import Condition

# Pixels per latent cell, and latent cells per packed token, a side.
VAE_FACTOR = 8
PACK = 2


def pack(latent_BChw: torch.Tensor) -> torch.Tensor:
    """Latents (B, C, h, w) as packed tokens (B, h/2 * w/2, 4C): each 2x2 cells are one token, channel first."""
    b, c, h, w = latent_BChw.shape
    cells = latent_BChw.reshape(b, c, h // PACK, PACK, w // PACK, PACK)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(b, (h // PACK) * (w // PACK), c * PACK * PACK)


def unpack(tokens_BNK: torch.Tensor, h: int, w: int) -> torch.Tensor:
    """Packed tokens (B, N, 4C) as latents (B, C, h, w)."""
    b, _, k = tokens_BNK.shape
    cells = tokens_BNK.reshape(b, h // PACK, w // PACK, k // PACK**2, PACK, PACK)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(b, k // PACK**2, h, w)


def token_count(height: int, width: int) -> int:
    """Packed tokens of a picture in pixels."""
    return (height // (VAE_FACTOR * PACK)) * (width // (VAE_FACTOR * PACK))


def image_positions(h: int, w: int, device: torch.device) -> torch.Tensor:
    """(N, 3) positions of packed tokens: 0, row, column."""
    rows, columns = torch.meshgrid(
        torch.arange(h // PACK, device=device), torch.arange(w // PACK, device=device), indexing="ij"
    )
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3).float()


class DiT(nn.Module):
    """FLUX's transformer, and the format of the latents that it paints."""

    def __init__(self, transformer: Any, latent_format: LatentFormat | None = None) -> None:
        super().__init__()
        # Any: diffusers' types do not show their own methods.
        self.transformer: Any = transformer
        self.latent_format = latent_format or LatentFormat()

    @property
    def device(self) -> torch.device:
        return next(self.transformer.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.transformer.parameters()).dtype

    @property
    def channels(self) -> int:
        """Latent channels C."""
        return int(self.transformer.config.in_channels) // PACK**2

    def velocity(
        self, latent_BChw: torch.Tensor, sigma: torch.Tensor | float, condition: Condition, guidance: float
    ) -> torch.Tensor:
        """The velocity e - z (B, C, h, w), float32, at noise level `sigma`.

        Args:
            latent_BChw: noisy latent on the DiT's side, (z - shift) * scale.
            sigma: one level, or (B,) one per item.
            condition: of B items.
            guidance: FLUX's embedded guidance.
        """
        _, _, h, w = latent_BChw.shape
        positions = image_positions(h, w, latent_BChw.device)
        return unpack(self.packed_velocity(pack(latent_BChw), sigma, condition, guidance, positions), h, w)

    def packed_velocity(
        self,
        x_BNK: torch.Tensor,
        sigma: torch.Tensor | float,
        condition: Condition,
        guidance: float,
        positions_N3: torch.Tensor,
    ) -> torch.Tensor:
        """As `velocity`, on packed tokens: what the sampler calls at every step and the trainers differentiate."""
        dtype, batch = self.dtype, x_BNK.shape[0]
        level = torch.as_tensor(sigma, dtype=torch.float32, device=x_BNK.device).expand(batch)
        embedded = x_BNK.new_full((batch,), guidance, dtype=torch.float32)
        text_positions = positions_N3.new_zeros(condition.tokens.shape[1], 3)
        out = self.transformer(
            hidden_states=x_BNK.to(dtype),
            encoder_hidden_states=condition.tokens.to(x_BNK.device, dtype),
            pooled_projections=condition.pooled.to(x_BNK.device, dtype),
            timestep=level.to(dtype),
            guidance=embedded if self.transformer.config.guidance_embeds else None,
            img_ids=positions_N3,
            txt_ids=text_positions,
            joint_attention_kwargs=_attention_mask(condition.mask, x_BNK),
            return_dict=False,
        )[0]
        return out.float()


def _attention_mask(mask_BL: torch.Tensor | None, x_BNK: torch.Tensor) -> dict[str, torch.Tensor] | None:
    # Padded text must not be attended to; without padding there is no mask, and attention may take its fast path.
    if mask_BL is None or bool(mask_BL.all()):
        return None
    mask = torch.cat([mask_BL.to(x_BNK.device), mask_BL.new_ones(x_BNK.shape[:2]).to(x_BNK.device)], dim=1)
    return {"attention_mask": mask[:, None, None, :]}
