"""The `config.json` of a UniWorld-V1 checkpoint: widths, token ids, and the configurations of the parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...backbones.flux_transformer import transformer_settings
from ...backbones.qwen_config import QwenVLConfig
from ...errors import UniWorldError, shown
from ...loading.settings import OBJECT, WIDTH, Rule, optional, read_json, take

MODEL_TYPE = "univa_qwen2p5vl"

# The VLM gets every picture at this number of pixels, as minimum and maximum (published: serve/cli.py).
VLM_PIXELS = 448 * 448

# Width of SigLIP2 so400m, hard-coded in the published modeling_univa_denoise_tower.py. The published config.json does not
# have it, so the width of the checkpoint's tensors takes precedence.
SIGLIP_WIDTH = 1152

# FLUX.1-dev's, which configurations leave out whose DiT was split off.
_FLUX_DEV = {
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
    "axes_dims_rope": [16, 56, 56],
}

_TOWER: dict[str, Rule] = {
    "denoiser_config": OBJECT,
    "output_hidden_size": WIDTH,
    "vae_input_hidden_size": WIDTH,
    "siglip_hidden_size": optional(WIDTH),
}


@dataclass(frozen=True)
class UniWorldConfig:
    """A checkpoint's configuration, read from its flat `config.json`.

    Attributes:
        vlm: configuration of Qwen2.5-VL.
        denoiser: arguments of diffusers' FluxTransformer2DModel.
        joint_width: width of the DiT's text tokens (FLUX: 4096).
        vae_width: width of a packed latent token (FLUX: 64).
        siglip_width: width of the SigLIP features.
        source: name of the configuration in errors.
    """

    vlm: QwenVLConfig
    denoiser: dict[str, Any]
    joint_width: int
    vae_width: int
    siglip_width: int
    source: str = "config"

    @property
    def denoiser_width(self) -> int:
        """Inner width of the DiT: heads times head size."""
        return int(self.denoiser["num_attention_heads"]) * int(self.denoiser["attention_head_dim"])

    @property
    def denoiser_source(self) -> str:
        """Name of the DiT's configuration in errors."""
        return f"denoiser_config in {self.source}"

    @classmethod
    def read(cls, checkpoint: str | Path, siglip_width: int | None = None) -> UniWorldConfig:
        """Read the `config.json` of a checkpoint folder. Raises UniWorldError if it is missing, or as `from_dict`."""
        file = Path(checkpoint) / "config.json"
        return cls.from_dict(read_json(file), siglip_width, str(file))

    @classmethod
    def from_dict(
        cls, config: Mapping[str, Any], siglip_width: int | None = None, source: str = "config"
    ) -> UniWorldConfig:
        """Read a flat `config.json`.

        Args:
            siglip_width: width of the SigLIP features where the tensors show one; else the published 1152.
            source: what to call the configuration in errors.

        Raises:
            UniWorldError: it is of another model, or a key is missing.
        """
        kind = config.get("model_type")
        if kind != MODEL_TYPE:
            raise UniWorldError(
                f"{source} has model_type {shown(kind)}, and a UniWorld-V1 checkpoint has {MODEL_TYPE!r}: "
                "choose the folder of UniWorld-V1 itself, not of one of its base models."
            )
        vlm = QwenVLConfig.from_dict(config, source)
        values = take(config, {"denoise_tower": OBJECT}, source, ("denoise_tower",))
        kind = values["denoise_tower"].get("denoiser_type", "flux")
        if kind != "flux":
            raise UniWorldError(
                f"{source} has denoise_tower.denoiser_type {shown(kind)}; only 'flux' is supported. Use the published "
                "checkpoint."
            )
        needed = ("output_hidden_size", "vae_input_hidden_size")
        tower = take(values["denoise_tower"], _TOWER, f"denoise_tower in {source}", needed)
        return cls(
            vlm=vlm,
            denoiser=transformer_settings(tower.get("denoiser_config", _FLUX_DEV), f"denoiser_config in {source}"),
            joint_width=tower["output_hidden_size"],
            vae_width=tower["vae_input_hidden_size"],
            siglip_width=siglip_width or tower.get("siglip_hidden_size") or SIGLIP_WIDTH,
            source=source,
        )
