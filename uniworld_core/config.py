"""What a UniWorld checkpoint's `config.json` says of the model: the widths, the token ids, the parts' own configs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODEL_TYPE = "univa_qwen2p5vl"

# Width of SigLIP2 so400m, which the published tower assumes (modeling_univa_denoise_tower.py); a checkpoint's
# own tensors say otherwise where they do, since its config does not carry the number.
SIGLIP_WIDTH = 1152

# The keys of the flat config that describe the language model (Qwen2_5_VLTextConfig's own).
TEXT_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "use_sliding_window",
    "sliding_window",
    "max_window_layers",
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
)
_TOKEN_KEYS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


@dataclass(frozen=True)
class UniWorldConfig:
    """A checkpoint's configuration, read from its flat `config.json`.

    Attributes:
        text: arguments of transformers' Qwen2_5_VLTextConfig.
        vision: arguments of its vision config.
        tokens: ids of the image, video, vision-start and vision-end tokens.
        denoiser: arguments of diffusers' FluxTransformer2DModel.
        vlm_width: width of the VLM's hidden states.
        joint_width: width of the DiT's text tokens (FLUX: 4096).
        vae_width: width of a packed latent token (FLUX: 64).
        siglip_width: width of the SigLIP features.
        source: what to call the configuration in errors.
    """

    text: dict[str, Any]
    vision: dict[str, Any]
    tokens: dict[str, int]
    denoiser: dict[str, Any]
    vlm_width: int
    joint_width: int
    vae_width: int
    siglip_width: int
    source: str = "config"

    @property
    def denoiser_width(self) -> int:
        """Inner width of the DiT: heads times head size."""
        return int(self.denoiser["num_attention_heads"]) * int(self.denoiser["attention_head_dim"])

    @classmethod
    def read(cls, checkpoint: str | Path, siglip_width: int | None = None) -> UniWorldConfig:
        """Read the `config.json` of a checkpoint folder. Raises ValueError if it is missing, or as `from_dict`."""
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
            ValueError: it is of another model, or a key is missing.
        """
        kind = config.get("model_type")
        if kind != MODEL_TYPE:
            raise ValueError(
                f"{source} has model_type {kind!r}, and a UniWorld-V1 checkpoint has {MODEL_TYPE!r}: "
                "choose the folder of UniWorld-V1 itself, not of one of its base models."
            )
        tower = _need(config, "denoise_tower", source, dict)
        scaling = config.get("rope_scaling")
        if scaling is not None and not isinstance(scaling, dict):
            raise ValueError(f"{source} has rope_scaling {scaling!r}, expected an object: copy the file again.")
        if tower.get("denoiser_type", "flux") != "flux":
            raise ValueError(
                f"{source} has denoise_tower.denoiser_type {tower['denoiser_type']!r}; "
                "only 'flux', the published one, can be painted with."
            )
        return cls(
            text={key: config[key] for key in TEXT_KEYS if key in config},
            vision={k: v for k, v in _need(config, "vision_config", source, dict).items() if k != "model_type"},
            tokens={key: _need(config, key, source) for key in _TOKEN_KEYS},
            denoiser={k: v for k, v in _need(tower, "denoiser_config", source, dict).items() if not k.startswith("_")},
            vlm_width=_need(config, "hidden_size", source),
            joint_width=_need(tower, "output_hidden_size", source),
            vae_width=_need(tower, "vae_input_hidden_size", source),
            siglip_width=siglip_width or tower.get("siglip_hidden_size") or SIGLIP_WIDTH,
            source=source,
        )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; a ValueError that names the file if there is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"{path} does not exist: the folder is not the model it should be, or its copy is not whole."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}): copy the file again.") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds a {type(data).__name__}, not an object: copy the file again.")
    return data


def _need(config: Mapping[str, Any], key: str, source: str, kind: type = int) -> Any:
    """The value of a key that must be there: an object, or a whole number of at least 0."""
    if key not in config:
        raise ValueError(f"{source} has no {key!r}, which a UniWorld-V1 configuration carries: copy the file again.")
    value = config[key]
    if not isinstance(value, kind) or isinstance(value, bool) or (isinstance(value, int) and value < 0):
        expected = "an object" if kind is dict else "a whole number"
        raise ValueError(f"{source} has {key} {value!r}, expected {expected}: copy the file again.")
    return value
