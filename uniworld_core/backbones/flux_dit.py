"""The DiT: FLUX's transformer as a velocity over latents.

Shapes: B batch, C latent channels, h, w latent sides, N packed tokens of K values, L text tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..errors import UniWorldError
from ..loading.offload import explain_out_of_memory
from ..loading.storage import ComputeModule
from ..sampling.condition import Condition
from ..sampling.flow import Shift, Velocity
from ..sampling.latents import LatentFormat
from ..sampling.packing import grid_positions, pack, unpack
from .block_cache import first_block_cache
from .flux_latents import FLUX_LATENTS, FLUX_SHIFT

# Working memory in bytes per token and per unit of the DiT's width, in bfloat16. Estimated, not measured: a single block
# holds q, k, v (3), the MLP (4) and their concatenation (5), and float32 copies of q and k.
_TOKEN_BYTES = (3 + 4 + 5 + 2 * 2) * 2


def token_bytes(width: int) -> int:
    """Return the working memory in bytes of one token, of text or of a latent, in a DiT of this width."""
    return _TOKEN_BYTES * width


class DiT(ComputeModule):
    """FLUX's transformer as a `Painter`.

    Attributes:
        latent_format: the given format, with the number of channels that the transformer takes.
        shift: FLUX.1-dev's.
    """

    def __init__(self, transformer: Any, latent_format: LatentFormat = FLUX_LATENTS) -> None:
        super().__init__()
        # Any: diffusers' type hints omit methods that are set at run time.
        self.transformer: Any = transformer
        channels = int(transformer.config.in_channels) // latent_format.pack**2
        self.latent_format = replace(latent_format, channels=channels)
        self.shift: Shift = FLUX_SHIFT

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        return (self.transformer,)

    @contextmanager
    def caching(self, cache: str) -> Iterator[None]:
        """Skip blocks within it; see `first_block_cache`."""
        with first_block_cache(self.transformer, cache), self.transformer.cache_context("run"):
            yield

    def check(self, condition: Condition, shape: Sequence[int]) -> None:
        """Raise UniWorldError unless the DiT can paint latents of shape (B, C, h, w) under this condition."""
        self.latent_format.size(shape, "the DiT")
        if condition.references or condition.negative is not None:
            raise UniWorldError(
                "The conditioning has reference latents or a negative prompt, which this DiT was not trained with: "
                "leave them out."
            )
        if condition.pooled is None:
            raise UniWorldError(
                "The conditioning has no pooled prompt: encode the prompt with the FLUX folder's CLIP, or another FLUX "
                "text encoder."
            )
        config = self.transformer.config
        for what, tensor, width in (
            ("text", condition.tokens, config.joint_attention_dim),
            ("pooled prompt", condition.pooled, config.pooled_projection_dim),
        ):
            if tensor.shape[-1] != width:
                raise UniWorldError(
                    f"The {what} of the conditioning is {tensor.shape[-1]} wide, and the DiT takes {width}: "
                    "encode the prompt with the checkpoint and the FLUX folder that the DiT belongs to."
                )

    def velocity_for(self, condition: Condition, guidance: float, shape: Sequence[int]) -> Velocity:
        """Return the velocity function of one run over latents (B, C, h, w); see `Painter.velocity_for`.

        Args:
            guidance: FLUX's embedded guidance.
        """
        batch, _, h, w = shape
        p = self.latent_format.pack
        condition = condition.to(self.device, self.dtype).repeat(batch)
        positions = grid_positions(h // p, w // p, self.device)

        def velocity(latent_BChw: torch.Tensor, sigma: torch.Tensor | float) -> torch.Tensor:
            with explain_out_of_memory(self, "picture"):
                packed = self.packed_velocity(pack(latent_BChw, p), sigma, condition, guidance, positions)
            return unpack(packed, h, w, p)

        return velocity

    def velocity(
        self, latent_BChw: torch.Tensor, sigma: torch.Tensor | float, condition: Condition, guidance: float
    ) -> torch.Tensor:
        """Compute the velocity e - z (B, C, h, w), float32, at noise level `sigma`; differentiable, for training.

        Args:
            latent_BChw: noisy latent on the DiT's side.
            sigma: one noise level, or (B,) one per item.
            condition: the condition, with B items.
            guidance: FLUX's embedded guidance.
        """
        _, _, h, w = latent_BChw.shape
        p = self.latent_format.pack
        positions = grid_positions(h // p, w // p, latent_BChw.device)
        return unpack(self.packed_velocity(pack(latent_BChw, p), sigma, condition, guidance, positions), h, w, p)

    def packed_velocity(
        self,
        x_BNK: torch.Tensor,
        sigma: torch.Tensor | float,
        condition: Condition,
        guidance: float,
        positions_N3: torch.Tensor,
    ) -> torch.Tensor:
        """Compute the velocity of packed tokens at `positions_N3`; otherwise as `velocity`."""
        assert condition.pooled is not None, "FLUX takes a pooled prompt, which `check` verifies"
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
    # Padded text must be masked; the published trainer builds such a mask and then drops it. Without padding, no mask is
    # passed, so that attention can use its fast kernels.
    if mask_BL is None or bool(mask_BL.all()):
        return None
    mask = torch.cat([mask_BL.to(x_BNK.device), mask_BL.new_ones(x_BNK.shape[:2]).to(x_BNK.device)], dim=1)
    return {"attention_mask": mask[:, None, None, :]}
