"""The SigLIP2 encoder: what the reference pictures look like, as one token per patch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import nn

from .config import read_json
from .vlm import pil_processor
from .weights import KeyMap, Shards, build, load

if TYPE_CHECKING:
    from transformers import SiglipVisionModel


class SigLIP(nn.Module):
    """SigLIP's vision half with its picture processor.

    The pictures are squashed to the encoder's square (512x512, 1024 tokens for siglip2-so400m-patch16-512), with the
    resampling, mean and deviation of the folder's own preprocessor_config.json, as the published programs do.
    """

    def __init__(self, encoder: SiglipVisionModel, processor: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.processor = processor

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, dtype: torch.dtype = torch.bfloat16, device: torch.device | str = "cpu"
    ) -> SigLIP:
        """Load from a SigLIP folder, of the whole model or of its vision half alone.

        Raises:
            ValueError: a file is missing, damaged, of another model, or does not fit the configuration.
        """
        folder = Path(folder)
        encoder = build_siglip(folder)
        load(encoder, Shards(folder), siglip_key(encoder), dtype, device)
        read_json(folder / "preprocessor_config.json")
        processor = pil_processor("SiglipImageProcessor").from_pretrained(folder, local_files_only=True)
        return cls(encoder, processor)

    @property
    def width(self) -> int:
        """Width of a feature token."""
        return int(self.encoder.config.hidden_size)

    def pixel_values(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """(B, 3, side, side) normalised pixels of RGB pictures."""
        # The layout is said, since it cannot be guessed of a picture 1 or 3 pixels wide.
        made = self.processor(
            images=list(pictures), return_tensors="pt", do_convert_rgb=True, input_data_format="channels_last"
        )
        return made["pixel_values"]

    @torch.no_grad()
    def features(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Features (B, tokens, width): the last hidden states of RGB pictures."""
        first = next(self.encoder.parameters())
        pixels = self.pixel_values(pictures).to(first.device, first.dtype)
        return self.encoder(pixel_values=pixels).last_hidden_state


def build_siglip(folder: Path) -> SiglipVisionModel:
    """SigLIP's vision half of the folder's configuration, its weights on the meta device."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    raw = read_json(folder / "config.json")
    if raw.get("model_type") not in ("siglip", "siglip_vision_model"):
        raise ValueError(
            f"{folder / 'config.json'} has model_type {raw.get('model_type')!r}; expected a SigLIP folder such as "
            "siglip2-so400m-patch16-512 ('siglip' or 'siglip_vision_model')."
        )
    vision = raw.get("vision_config", raw)
    config = SiglipVisionConfig(
        **{k: v for k, v in vision.items() if k not in ("model_type", "architectures", "torch_dtype")}
    )
    return build(lambda: SiglipVisionModel(config))


def siglip_key(encoder: nn.Module) -> KeyMap:
    """Map of published names; transformers 5 dropped the prefix `vision_model.`, and the text half is left out."""
    nested = any(name.startswith("vision_model.") for name in encoder.state_dict())

    def key(name: str) -> str | None:
        if not name.startswith("vision_model."):
            return None
        return name if nested else name.removeprefix("vision_model.")

    return key
