"""Architectures of the stand-ins: small configurations of the public models' classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ....uniworld_core.backbones.flux_latents import FLUX_LATENTS
from ..world import scene as world

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
    from transformers import (
        CLIPTextModel,
        Qwen2_5_VLForConditionalGeneration,
        SiglipVisionModel,
        T5EncoderModel,
    )

SIDE = 64  # side of the VLM's input pictures in pixels
# Side of painted pictures in pixels: twice as large, so that a latent cell contains hardly more than one edge.
PAINTED = world.SIDE
# SigLIP sees pictures at full size, with one patch per DiT token: fewer tokens would lose the references' outlines.
SIGLIP_SIDE, PATCH = PAINTED, 16
VLM_PATCH, VLM_MERGE = 8, 2  # a picture token covers 16 pixels a side, too
VLM_WIDTH = 192
JOINT = 192  # T5's width and that of the DiT's text tokens
POOLED = 128
SIGLIP_WIDTH = 192
LATENT_CHANNELS = FLUX_LATENTS.channels
LATENT_SIDE = PAINTED // FLUX_LATENTS.factor


def make_vae() -> AutoencoderKL:
    """Build FLUX's autoencoder: 8x8 pixels per cell, 16 channels."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 128),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=PAINTED,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=True,
    )


def make_flux() -> FluxTransformer2DModel:
    """Build FLUX's transformer with two double and four single blocks."""
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=FLUX_LATENTS.pack**2 * LATENT_CHANNELS,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=32,
        num_attention_heads=6,
        joint_attention_dim=JOINT,
        pooled_projection_dim=POOLED,
        guidance_embeds=True,
        axes_dims_rope=(8, 12, 12),
    )


def make_siglip() -> SiglipVisionModel:
    """Build SigLIP's vision tower; its last hidden states are the features of references."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    return SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=SIGLIP_WIDTH,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=6,
            image_size=SIGLIP_SIDE,
            patch_size=PATCH,
        )
    )


def make_clip(vocabulary: int, begin: int, end: int) -> CLIPTextModel:
    """Build CLIP's text encoder."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=POOLED,
            intermediate_size=256,
            projection_dim=POOLED,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=77,
            bos_token_id=begin,
            eos_token_id=end,
            pad_token_id=end,
        )
    )


def make_t5(vocabulary: int) -> T5EncoderModel:
    """Build T5's encoder."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=vocabulary,
            d_model=JOINT,
            d_kv=32,
            d_ff=384,
            num_layers=3,
            num_heads=6,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            pad_token_id=0,
            eos_token_id=1,
        )
    )


def make_qwen(vocabulary: int, tokens: dict[str, int]) -> Qwen2_5_VLForConditionalGeneration:
    """Build Qwen2.5-VL; `tokens` are the special token ids of its configuration."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    rope = {"rope_type": "default", "type": "default", "mrope_section": [4, 6, 6]}
    text: dict[str, object] = {
        "vocab_size": vocabulary,
        "hidden_size": VLM_WIDTH,
        "intermediate_size": 512,
        "num_hidden_layers": 5,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_scaling": rope,
        "rope_parameters": rope | {"rope_theta": 1000000.0},
        "use_sliding_window": False,
        "bos_token_id": tokens["bos_token_id"],
        "eos_token_id": tokens["eos_token_id"],
        "tie_word_embeddings": False,
    }
    vision: dict[str, object] = {
        "depth": 4,
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_heads": 4,
        "out_hidden_size": VLM_WIDTH,
        "patch_size": VLM_PATCH,
        "spatial_patch_size": VLM_PATCH,
        "spatial_merge_size": VLM_MERGE,
        "temporal_patch_size": 2,
        "window_size": SIDE,
        "fullatt_block_indexes": [1, 3],
        "in_channels": 3,
        "in_chans": 3,
    }
    pictures: dict[str, Any] = {
        name: value for name, value in tokens.items() if name.startswith(("image", "video", "vision"))
    }
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **pictures)
    config._attn_implementation = "eager"  # the fastest for short bfloat16 sequences on a CPU, by a fifth
    return Qwen2_5_VLForConditionalGeneration(config)


def seeded(seed: int) -> None:
    """Seed the initialization of the weights that are built next."""
    torch.manual_seed(seed)
