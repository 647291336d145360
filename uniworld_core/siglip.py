"""The SigLIP2 encoder: what the reference pictures look like, as one token per patch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import nn

from .config import read_json
from .qwen import make_processor
from .text import nested_names, without_labels
from .weights import Shards, Weights, build

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
        cls, folder: str | Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> SigLIP:
        """Load from a SigLIP folder, of the whole model or of its vision half alone.

        Raises:
            ValueError: a file is missing, damaged, of another model, or does not fit the configuration.
        """
        return cls(siglip_weights(folder).load(dtype, device), read_siglip_processor(Path(folder)))

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


def siglip_weights(folder: str | Path) -> Weights[SiglipVisionModel]:
    """SigLIP's vision half of a folder and its files. Raises ValueError for a folder of another model."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    file = Path(folder) / "config.json"
    raw = read_json(file)
    if raw.get("model_type") not in ("siglip", "siglip_vision_model"):
        raise ValueError(
            f"{file} has model_type {raw.get('model_type')!r}; expected a SigLIP folder such as "
            "siglip2-so400m-patch16-512 ('siglip' or 'siglip_vision_model')."
        )
    settings = without_labels(raw.get("vision_config", raw), file)
    encoder = build(lambda: SiglipVisionModel(SiglipVisionConfig(**settings)), file)
    return Weights(encoder, Shards(Path(folder)), nested_names(encoder, "vision_model."))


def read_siglip_processor(folder: Path) -> Any:
    """SigLIP's picture processor, Pillow's resizing always. Raises ValueError if its file is missing or damaged."""
    return make_processor("SiglipImageProcessor", read_json(folder / "preprocessor_config.json"), folder)
