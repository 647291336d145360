"""Qwen-Image's transformer as a velocity over latents, with reference latents and true classifier-free guidance.

Shapes: B batch, C latent channels, h, w latent sides, N packed tokens of K values, L text tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn

from ..errors import UniWorldError
from ..loading.meta import build
from ..loading.offload import explain_out_of_memory
from ..loading.parts import NetworkPart
from ..loading.settings import FLAG, HEADS, WIDTH, Rule, exactly, listed, take, whole
from ..loading.storage import ComputeModule
from ..loading.weights import Shards
from ..sampling.condition import Condition
from ..sampling.flow import Shift, Velocity
from ..sampling.guidance import true_cfg
from ..sampling.latents import LatentFormat
from ..sampling.packing import pack, unpack
from .block_cache import first_block_cache
from .flux_transformer import check_rope_axes
from .qwen_image_classes import diffusers_class
from .qwen_image_vae import QWEN_IMAGE_LATENTS

# (frames, rows, columns) of one picture in packed tokens.
Grid: TypeAlias = "tuple[int, int, int]"

# Qwen-Image's scheduler_config.json.
QWEN_IMAGE_SHIFT = Shift(base_tokens=256, max_tokens=8192, base_mu=0.5, max_mu=0.9, terminal=0.02)

# Rows of diffusers' table of rotary positions (QwenEmbedRope). Text follows half of the longest side of a picture.
_POSITIONS = 4096
# Working memory in bytes per token and per unit of the width, in bfloat16. Estimated, not measured: a block holds q, k, v and
# their concatenation over text and picture (6), the MLP (4), its input and output (2), and float32 copies of q and k.
_TOKEN_BYTES = (6 + 4 + 2 + 2 * 2) * 2

# Settings of diffusers' QwenImageTransformer2DModel; `_DEFAULTS` are those that a configuration may omit.
_RULES: dict[str, Rule] = {
    "patch_size": exactly(2, "the side of a token in Qwen-Image's latents"),
    "in_channels": WIDTH,
    "out_channels": WIDTH,
    "num_layers": whole(1, 128),
    "attention_head_dim": whole(2, 2**12),
    "num_attention_heads": HEADS,
    "joint_attention_dim": WIDTH,
    "guidance_embeds": exactly(False, "because Qwen-Image is guided by a negative prompt"),
    "axes_dims_rope": listed(whole(2, 2**12), 3, 3),
    "zero_cond_t": FLAG,
    "use_additional_t_cond": exactly(False, "because layered pictures are not supported"),
    "use_layer3d_rope": exactly(False, "because layered pictures are not supported"),
}
_DEFAULTS = {
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 60,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "joint_attention_dim": 3584,
    "axes_dims_rope": [16, 56, 56],
}
# Layers at the two ends, which are not quantized: under 1 % of the weights.
PRECISE = ("img_in", "txt_in", "time_text_embed.*", "norm_out.*", "proj_out")


def token_bytes(width: int) -> int:
    """Return the working memory in bytes of one token, of text or of a latent, in a transformer of this width."""
    return _TOKEN_BYTES * width


@dataclass(frozen=True, eq=False)
class _Run:
    """What is the same at all steps of a run.

    Attributes:
        condition: the condition with B items, on the device. Its references are packed in `references`.
        references: (B, M, K) packed tokens of all references, one after the other; M may be 0.
        grids: the grid of the painted picture, then those of the references.
        guidance: scale of the guidance.
    """

    condition: Condition
    references: torch.Tensor
    grids: list[Grid]
    guidance: float


class QwenImageDiT(ComputeModule):
    """Qwen-Image's transformer as a `Painter`. The tokens of the references follow those of the painted picture.

    Its guidance is true classifier-free guidance: above 1, each step takes a second forward with the negative condition.

    Attributes:
        latent_format: the given format, with the number of channels that the transformer takes.
        shift: the shift of the noise levels.
    """

    def __init__(
        self, transformer: Any, latent_format: LatentFormat = QWEN_IMAGE_LATENTS, shift: Shift = QWEN_IMAGE_SHIFT
    ) -> None:
        super().__init__()
        # Any: diffusers' type hints omit methods that are set at run time.
        self.transformer: Any = transformer
        self.latent_format = replace(
            latent_format, channels=int(transformer.config.in_channels) // latent_format.pack**2
        )
        self.shift = shift

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        return (self.transformer,)

    def caching(self, cache: str) -> AbstractContextManager[None]:
        """Skip blocks within it; see `first_block_cache`."""
        return first_block_cache(self.transformer, cache)

    def check(self, condition: Condition, shape: Sequence[int]) -> None:
        """Raise UniWorldError unless latents of shape (B, C, 1, h, w) can be painted under this condition."""
        size = self.latent_format.size(shape, "the transformer")
        if condition.pooled is not None:
            raise UniWorldError(
                "The conditioning has a pooled prompt, which Qwen-Image was not trained with: encode the prompt with the "
                "Qwen-Image model that the transformer belongs to."
            )
        sides = [size.height, size.width]
        for latent in condition.references:
            if not self.latent_format.fits(latent.shape):
                raise UniWorldError(
                    f"A reference latent has shape {list(latent.shape)}, which is not one of Qwen-Image: encode the prompt "
                    "with the model that the transformer belongs to."
                )
            sides += [side * self.latent_format.factor for side in latent.shape[-2:]]
        longest = max(sides) // self.latent_format.unit // 2
        width = self.transformer.config.joint_attention_dim
        for item in filter(None, (condition, condition.negative)):
            length = item.tokens.shape[1]
            if item.tokens.shape[-1] != width:
                raise UniWorldError(
                    f"The tokens of the conditioning are {item.tokens.shape[-1]} wide, and the transformer takes {width}: "
                    "encode the prompt with the model that the transformer belongs to."
                )
            if length + longest > _POSITIONS:
                raise UniWorldError(
                    f"The prompt with its pictures has {length} tokens, and the transformer reads at most "
                    f"{_POSITIONS - longest} with pictures of this size: shorten the prompt, or leave out references."
                )

    def velocity_for(self, condition: Condition, guidance: float, shape: Sequence[int]) -> Velocity:
        """Return the velocity function of one run over latents (B, C, 1, h, w); see `Painter.velocity_for`.

        Args:
            guidance: scale of the true guidance. Up to 1, or without a negative condition, each step is one forward.
        """
        h, w = shape[-2:]
        run = self._run(condition.to(self.device, self.dtype), guidance, shape)

        def velocity(latent_BC1hw: torch.Tensor, sigma: torch.Tensor | float) -> torch.Tensor:
            with explain_out_of_memory(self, "picture"):
                packed = self._guided(self._pack(latent_BC1hw), sigma, run, self.transformer.cache_context)
            return self._unpack(packed, h, w)

        return velocity

    def velocity(
        self, latent_BC1hw: torch.Tensor, sigma: torch.Tensor | float, condition: Condition, guidance: float = 1.0
    ) -> torch.Tensor:
        """Compute the velocity e - z (B, C, 1, h, w), float32, at noise level `sigma`; differentiable, for training.

        Args:
            latent_BC1hw: noisy normalized latent.
            sigma: one noise level, or (B,) one per item.
            condition: the condition, with one item or B.
            guidance: as in `velocity_for`; 1 in training.
        """
        run = self._run(condition.to(latent_BC1hw.device, self.dtype), guidance, latent_BC1hw.shape)
        packed = self._guided(self._pack(latent_BC1hw), sigma, run, lambda name: nullcontext())
        return self._unpack(packed, *latent_BC1hw.shape[-2:])

    def _run(self, condition: Condition, guidance: float, shape: Sequence[int]) -> _Run:
        batch, p = shape[0], self.latent_format.pack
        condition = condition.repeat(batch)
        packed = [self._pack(latent) for latent in condition.references]
        none = condition.tokens.new_zeros(batch, 0, self.latent_format.channels * p**2)
        grids = [(1, side[-2] // p, side[-1] // p) for side in (shape, *(item.shape for item in condition.references))]
        return _Run(condition, torch.cat([none, *packed], dim=1), grids, guidance)

    def _guided(self, x_BNK: torch.Tensor, sigma: torch.Tensor | float, run: _Run, context: Any) -> torch.Tensor:
        """Compute the velocity (B, N, K), float32.

        Args:
            context: makes the context of one of the two forwards from its name, as caches keep a state for each.
        """
        with context("positive"):
            positive = self._forward(x_BNK, sigma, run, run.condition)
        if run.guidance <= 1.0 or run.condition.negative is None:
            return positive
        with context("negative"):
            negative = self._forward(x_BNK, sigma, run, run.condition.negative)
        return true_cfg(positive, negative, run.guidance)

    def _forward(
        self, x_BNK: torch.Tensor, sigma: torch.Tensor | float, run: _Run, condition: Condition
    ) -> torch.Tensor:
        dtype, (batch, tokens, _) = self.dtype, x_BNK.shape
        level = torch.as_tensor(sigma, dtype=torch.float32, device=x_BNK.device).expand(batch)
        text = condition.tokens
        if torch.is_inference_mode_enabled():
            # diffusers caches rotary positions. Autograd rejects tensors made in inference mode, so they are made outside.
            with torch.inference_mode(False), torch.no_grad():
                self.transformer.pos_embed([run.grids], max_txt_seq_len=text.shape[1], device=x_BNK.device)
        out = self.transformer(
            hidden_states=torch.cat([x_BNK.to(dtype), run.references.to(x_BNK.device)], dim=1),
            encoder_hidden_states=text,
            encoder_hidden_states_mask=condition.mask,
            timestep=level.to(dtype),
            img_shapes=[run.grids] * batch,
            return_dict=False,
        )[0]
        return out[:, :tokens].float()

    def _pack(self, latent_BC1hw: torch.Tensor) -> torch.Tensor:
        return pack(latent_BC1hw[:, :, 0], self.latent_format.pack)

    def _unpack(self, x_BNK: torch.Tensor, h: int, w: int) -> torch.Tensor:
        return unpack(x_BNK, h, w, self.latent_format.pack)[:, :, None]


def qwen_transformer_settings(raw: Any, source: str) -> dict[str, Any]:
    """Return arguments of diffusers' QwenImageTransformer2DModel from its configuration.

    Args:
        source: name of the configuration in errors.

    Raises:
        UniWorldError: values are invalid or do not match.
    """
    settings: dict[str, Any] = _DEFAULTS | take(raw, _RULES, source)
    check_rope_axes(settings, source)
    channels = settings["in_channels"]
    if channels != QWEN_IMAGE_LATENTS.channels * QWEN_IMAGE_LATENTS.pack**2 or channels != 4 * settings["out_channels"]:
        raise UniWorldError(
            f"{source} has in_channels {channels} and out_channels {settings['out_channels']}; Qwen-Image has 64 and 16: "
            "copy it again."
        )
    return settings


def qwen_transformer_part(
    settings: dict[str, Any], shards: Shards, latent_format: LatentFormat, shift: Shift, source: str
) -> NetworkPart[QwenImageDiT]:
    """Open Qwen-Image's transformer without loading it.

    Args:
        settings: from `qwen_transformer_settings`.
        source: name of the configuration in errors.

    Raises:
        UniWorldError: the files store a different number of layers, or the installed diffusers is too old.
    """
    # Counted before the network is built, whose depth the configuration decides.
    shards.check_depth(settings["num_layers"], ("transformer_blocks.",), source)
    made = diffusers_class("QwenImageTransformer2DModel")
    return NetworkPart(
        partial(build, lambda: made.from_config(settings), source),
        shards,
        lambda transformer: QwenImageDiT(transformer, latent_format, shift),
        precise=PRECISE,
    )
