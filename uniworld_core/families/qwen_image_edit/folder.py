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
from ...loading.settings import choice, exactly, number, optional, read_json, take, whole
from ...loading.weights import Shards
from ...sampling.flow import Shift
from ...sampling.latents import LatentFormat
from ..family import FamilyParts, PaintingFacts
from .prompt import Release, size_at

_TOKENS, _MU = whole(1, 2**20), number(0, 10)
_SCHEDULER = {
    "base_image_seq_len": _TOKENS,
    "max_image_seq_len": _TOKENS,
    "base_shift": _MU,
    "max_shift": _MU,
    "shift_terminal": optional(number(1e-6, 0.999)),
    "use_dynamic_shifting": exactly(True, "because the shift depends on the size of the picture"),
    "time_shift_type": choice("exponential"),
}


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
            "vae": lambda: qwen_vae_part(self._need("vae")),
        }
        super().__init__(release.name, described, tuple(described))

    @cached_property
    def transformer(self) -> dict[str, Any]:
        """The checked settings of the transformer."""
        file = self._need("transformer") / "config.json"
        raw = read_json(file)
        _check_class(raw, file, "QwenImageTransformer2DModel")
        return qwen_transformer_settings(raw, str(file))

    @cached_property
    def latent_format(self) -> LatentFormat:
        """The format of the VAE's latents."""
        return read_qwen_latent_format(self._need("vae"))

    @cached_property
    def shift(self) -> Shift:
        """The shift of the noise levels, from the scheduler's configuration."""
        return read_shift(self._need("scheduler") / "scheduler_config.json")

    @property
    def facts(self) -> PaintingFacts:
        """Facts of the transformer, the VAE and the scheduler."""
        width = self.transformer["num_attention_heads"] * self.transformer["attention_head_dim"]
        return PaintingFacts(
            latent_format=self.latent_format,
            shift=self.shift,
            native_side=read_qwen_native_side(self._need("vae")),
            token_bytes=token_bytes(width),
            pixel_bytes=PIXEL_BYTES,
            size_for=size_at,
        )

    def check(self) -> None:
        """Check every part (`PartSet.check`), and that they match each other.

        Raises:
            UniWorldError: a part, file or tensor is missing or damaged, or does not match. The message names it.
        """
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
        file = self._need("text_encoder") / "config.json"
        raw = read_json(file)
        if raw.get("model_type") != "qwen2_5_vl":
            raise UniWorldError(
                f"{file} has model_type {shown(raw.get('model_type'))}, expected 'qwen2_5_vl': copy the `text_encoder` of the "
                "model again."
            )
        return QwenVLConfig.from_nested(raw, str(file))

    def _vlm(self) -> NetworkPart[VLM]:
        folder, tokenizer, processor = map(self._need, ("text_encoder", "tokenizer", "processor"))
        return vlm_part(folder, self._vlm_config, Shards(folder), None, tokenizer, processor)

    def _dit(self) -> NetworkPart[QwenImageDiT]:
        folder = self._need("transformer")
        source = str(folder / "config.json")
        return qwen_transformer_part(self.transformer, Shards(folder), self.latent_format, self.shift, source)

    def _need(self, part: str) -> Path:
        folder = self.folder / part
        if not folder.is_dir():
            raise UniWorldError(
                f"{self.folder} has no folder {part!r}, which belongs to {self.family} in diffusers layout: copy the folder again."
            )
        return folder


def read_shift(file: Path) -> Shift:
    """Read the shift of the noise levels from a scheduler's configuration.

    Keys that the file lacks have Qwen-Image's values.

    Raises:
        UniWorldError: the file is missing or damaged, or of another kind of scheduler.
    """
    raw = read_json(file)
    _check_class(raw, file, "FlowMatchEulerDiscreteScheduler")
    values = take(raw, _SCHEDULER, str(file))
    usual = QWEN_IMAGE_SHIFT
    shift = Shift(
        base_tokens=values.get("base_image_seq_len", usual.base_tokens),
        max_tokens=values.get("max_image_seq_len", usual.max_tokens),
        base_mu=float(values.get("base_shift", usual.base_mu)),
        max_mu=float(values.get("max_shift", usual.max_mu)),
        terminal=values.get("shift_terminal", usual.terminal),
    )
    if shift.base_tokens >= shift.max_tokens:
        raise UniWorldError(
            f"{file} has base_image_seq_len {shift.base_tokens}, which must be below max_image_seq_len {shift.max_tokens}: "
            "copy the file again."
        )
    return shift


def _check_class(raw: dict[str, Any], file: Path, wanted: str) -> None:
    if raw.get("_class_name") != wanted:
        raise UniWorldError(
            f"{file} has _class_name {shown(raw.get('_class_name'))}, expected {wanted!r}: copy the file of the model again."
        )
