"""A Qwen-Image-Edit folder in diffusers layout: its parts, and their configurations."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from ...backbones.qwen_config import QwenVLConfig
from ...backbones.qwen_image_dit import (
    QWEN_IMAGE_SHIFT,
    QwenImageDiT,
    qwen_transformer_part,
    qwen_transformer_settings,
    token_bytes,
)
from ...backbones.qwen_image_vae import PIXEL_BYTES, qwen_vae_part, read_qwen_latent_format, read_qwen_native_side
from ...backbones.qwen_vl import VLM, vlm_part
from ...errors import UniWorldError, shown
from ...loading.parts import NetworkPart, Part
from ...loading.settings import read_json
from ...loading.weights import Shards
from ...sampling.flow import Shift
from ...sampling.latents import LatentFormat
from ...sampling.scheduler_file import read_shift
from ..diffusers_folder import check_components, component_settings
from ..family import FamilyParts, PaintingFacts
from .prompt import Release, size_at

# The subfolders of the published folders.
COMPONENTS = ("transformer", "vae", "text_encoder", "tokenizer", "processor", "scheduler")


class QwenImageEditParts(FamilyParts):
    """The parts of a Qwen-Image-Edit model: `understanding` is its Qwen2.5-VL, `dit` its transformer, and `vae`.

    Args:
        folder: the model's folder in diffusers layout.
        release: its release, from `model_index.json`.
    """

    def __init__(self, folder: Path, release: Release) -> None:
        self.folder = folder
        described: dict[str, Callable[[], Part[Any]]] = {
            "understanding": self._vlm,
            "dit": self._dit,
            "vae": lambda: qwen_vae_part(self.folder / "vae"),
        }
        super().__init__(release.name, described, tuple(described))

    @cached_property
    def transformer(self) -> dict[str, Any]:
        """The checked settings of the transformer."""
        raw, file = component_settings(self.folder / "transformer", "QwenImageTransformer2DModel", self.family)
        return qwen_transformer_settings(raw, str(file))

    @cached_property
    def latent_format(self) -> LatentFormat:
        """The format of the VAE's latents."""
        return read_qwen_latent_format(self.folder / "vae")

    @cached_property
    def shift(self) -> Shift:
        """The shift of the noise levels, from the scheduler's configuration."""
        return read_shift(self.folder / "scheduler" / "scheduler_config.json", QWEN_IMAGE_SHIFT)

    @property
    def facts(self) -> PaintingFacts:
        """Facts of the transformer, the VAE and the scheduler."""
        width = self.transformer["num_attention_heads"] * self.transformer["attention_head_dim"]
        return PaintingFacts(
            family=self.family,
            latent_format=self.latent_format,
            shift=self.shift,
            native_side=read_qwen_native_side(self.folder / "vae"),
            token_bytes=token_bytes(width),
            pixel_bytes=PIXEL_BYTES,
            size_for=size_at,
        )

    def check(self) -> None:
        """Check that the folder is complete, every part (`PartSet.check`), and that the parts belong together.

        Raises:
            UniWorldError: a file or tensor is missing or damaged, or does not match. The message names it.
        """
        check_components(self.folder, COMPONENTS, self.family)
        _ = self.shift
        super().check()
        width, joint = self._vlm_config.width, self.transformer["joint_attention_dim"]
        if width != joint:
            raise UniWorldError(
                f"The text encoder of {self.folder} is {width} wide, and its transformer takes {joint}: the folder mixes files "
                "of different models, copy it again."
            )

    @cached_property
    def _vlm_config(self) -> QwenVLConfig:
        file = self.folder / "text_encoder" / "config.json"
        raw = read_json(file)
        if raw.get("model_type") != "qwen2_5_vl":
            raise UniWorldError(
                f"{file} has model_type {shown(raw.get('model_type'))}, expected 'qwen2_5_vl': copy the `text_encoder` of the "
                "model again."
            )
        return QwenVLConfig.from_nested(raw, str(file))

    def _vlm(self) -> NetworkPart[VLM]:
        folder, tokenizer, processor = (self.folder / name for name in ("text_encoder", "tokenizer", "processor"))
        return vlm_part(folder, self._vlm_config, Shards(folder), None, tokenizer, processor)

    def _dit(self) -> NetworkPart[QwenImageDiT]:
        folder = self.folder / "transformer"
        source = str(folder / "config.json")
        return qwen_transformer_part(self.transformer, Shards(folder), self.latent_format, self.shift, source)
