"""The SigLIP2 encoder, which encodes reference pictures to one token per patch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import nn

from ..errors import UniWorldError, shown
from ..loading.meta import build
from ..loading.offload import explain_out_of_memory
from ..loading.parts import NetworkPart
from ..loading.settings import (
    ACTIVATION,
    EPSILON,
    FLAG,
    HEADS,
    HIDDEN,
    LAYERS,
    SHARE,
    WIDTH,
    check_heads,
    exactly,
    read_json,
    take,
    whole,
)
from ..loading.storage import ComputeModule
from ..loading.weights import Shards
from .flux_text import nested_names
from .picture_processor import PROCESSOR, make_processor, processor_settings

if TYPE_CHECKING:
    from transformers import SiglipVisionModel

_RULES = {
    "hidden_size": WIDTH,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_channels": exactly(3, "because pictures are RGB"),
    "image_size": whole(1, 2**13),
    "patch_size": whole(1, 2**10),
    "hidden_act": ACTIVATION,
    "layer_norm_eps": EPSILON,
    "attention_dropout": SHARE,
    "vision_use_head": FLAG,
}
# transformers' defaults. Configurations that it saves may omit them.
_DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
}
# Maximum number of patches per side; siglip2-so400m-patch16-512 has 32.
_MAX_ROWS = 256


class SigLIP(ComputeModule):
    """SigLIP's vision encoder with its picture processor.

    Pictures are resized to the encoder's square without keeping the aspect ratio (512x512 and 1024 tokens for
    siglip2-so400m-patch16-512). Resampling, mean and deviation are those of the folder's preprocessor_config.json, as in the
    published programs.
    """

    def __init__(self, encoder: SiglipVisionModel, processor: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.processor = processor

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> SigLIP:
        """Load from a folder with the complete SigLIP model, or with its vision encoder only.

        Raises:
            UniWorldError: a file is missing, damaged or of another model, or does not match the configuration.
        """
        return siglip_part(folder).load(dtype, device)

    @property
    def width(self) -> int:
        """Width of a feature token."""
        return int(self.encoder.config.hidden_size)

    @property
    def working_bytes(self) -> int:
        config: Any = self.encoder.config
        tokens = (config.image_size // config.patch_size) ** 2
        return 4 * tokens * 20 * self.width * self.dtype.itemsize  # of four pictures, estimated

    def pixel_values(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Return normalized pixels (B, 3, side, side) of RGB pictures."""
        # transformers guesses the layout from the shape, which fails for pictures 1 or 3 pixels wide.
        made = self.processor(
            images=list(pictures), return_tensors="pt", do_convert_rgb=True, input_data_format="channels_last"
        )
        return made["pixel_values"]

    @torch.no_grad()
    def features(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Return the features (B, tokens, width) of RGB pictures: the last hidden states."""
        pixels = self.pixel_values(pictures).to(self.device, self.dtype)
        with explain_out_of_memory(self, "number of references"):
            return self.encoder(pixel_values=pixels).last_hidden_state


def siglip_part(folder: str | Path) -> NetworkPart[SigLIP]:
    """Open the vision encoder of a SigLIP folder without loading it. Raises UniWorldError for a folder of another model."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    file = Path(folder) / "config.json"
    shards, settings = Shards(Path(folder)), siglip_settings(Path(folder))
    shards.check_depth(settings["num_hidden_layers"], ("vision_model.encoder.layers.", "encoder.layers."), file)

    def make() -> nn.Module:
        return build(lambda: SiglipVisionModel(SiglipVisionConfig(**settings)), file)

    names = nested_names(make(), shards, "vision_model.")
    return NetworkPart(
        make,
        shards,
        SigLIP,
        names,
        precise=("*",),  # 2 % of the model; in NF4 nano's features are off by 6 %
        read=lambda: (read_siglip_processor(Path(folder)),),
    )


def read_siglip_processor(folder: Path) -> Any:
    """Read SigLIP's picture processor, which resizes with Pillow.

    Raises:
        UniWorldError: the file is missing or damaged, or its size does not match the encoder's.
    """
    file, raw = processor_settings(folder)
    side = siglip_settings(folder)["image_size"]
    settings = take(raw, PROCESSOR, str(file))
    square = exactly(side, "the image_size of config.json")
    size = take(raw.get("size"), {"height": square, "width": square}, f"size in {file}", ("height", "width"))
    return make_processor("SiglipImageProcessor", settings | {"size": size}, file)


def siglip_settings(folder: Path) -> dict[str, Any]:
    """Read the configuration of the vision encoder, from a folder with the complete model or with the encoder only.

    Raises:
        UniWorldError: the configuration is missing, damaged or of another model.
    """
    file = folder / "config.json"
    raw = read_json(file)
    if raw.get("model_type") not in ("siglip", "siglip_vision_model"):
        raise UniWorldError(
            f"{file} has model_type {shown(raw.get('model_type'))}; expected a SigLIP folder such as "
            "siglip2-so400m-patch16-512 ('siglip' or 'siglip_vision_model')."
        )
    settings = _DEFAULTS | take(raw.get("vision_config", raw), _RULES, str(file))
    check_heads(settings["hidden_size"], settings["num_attention_heads"], str(file))
    rows = settings["image_size"] // settings["patch_size"]
    if not 0 < rows <= _MAX_ROWS:
        raise UniWorldError(
            f"{file} has image_size {settings['image_size']} and patch_size {settings['patch_size']}, which makes {rows} "
            f"patches per side; expected 1 to {_MAX_ROWS}: copy the file again."
        )
    return settings
