"""A folder of FLUX.1 Kontext in diffusers layout: its parts, and their configurations."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from ...backbones.flux_dit import token_bytes
from ...backbones.flux_latents import FLUX_SHIFT, read_latent_format
from ...backbones.flux_text import clip_part, t5_part
from ...backbones.flux_transformer import transformer_part, transformer_settings
from ...backbones.flux_vae import PIXEL_BYTES, read_native_side, vae_part
from ...errors import UniWorldError
from ...loading.names import SAME_NAMES
from ...loading.parts import NetworkPart, Part
from ...loading.weights import Shards
from ...sampling.flow import Shift
from ...sampling.latents import LatentFormat
from ...sampling.scheduler_file import read_shift
from ..diffusers_folder import check_components, component_settings
from ..family import FamilyParts, PaintingFacts
from .painter import KontextDiT
from .sizes import preferred_size

NAME = "FLUX.1 Kontext"

# The subfolders of the published folder, without those that only diffusers' pipeline for image prompts has.
COMPONENTS = (
    "transformer",
    "vae",
    "text_encoder",
    "text_encoder_2",
    "tokenizer",
    "tokenizer_2",
    "scheduler",
)


class KontextParts(FamilyParts):
    """The parts of a FLUX.1 Kontext model: `dit`, `vae`, `clip` and `t5`, all in one folder.

    Args:
        folder: the model's folder in diffusers layout.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        described: dict[str, Callable[[], Part[Any]]] = {
            "dit": self._dit,
            "vae": lambda: vae_part(folder),
            "clip": lambda: clip_part(folder),
            "t5": lambda: t5_part(folder),
        }
        super().__init__(NAME, described, tuple(described))

    @cached_property
    def latent_format(self) -> LatentFormat:
        """The latent format of the folder's VAE."""
        return read_latent_format(self.folder)

    @cached_property
    def shift(self) -> Shift:
        """The shift of the folder's scheduler."""
        return read_shift(self.folder / "scheduler" / "scheduler_config.json", FLUX_SHIFT)

    @cached_property
    def transformer(self) -> dict[str, Any]:
        """The checked settings of the transformer."""
        raw, file = component_settings(self.folder / "transformer", "FluxTransformer2DModel", NAME)
        settings = transformer_settings(raw, str(file))
        self._check_channels(settings, file)
        return settings

    @property
    def facts(self) -> PaintingFacts:
        """Facts of the folder's transformer and VAE."""
        settings = self.transformer
        return PaintingFacts(
            family=self.family,
            latent_format=self.latent_format,
            shift=self.shift,
            native_side=read_native_side(self.folder),
            token_bytes=token_bytes(settings["num_attention_heads"] * settings["attention_head_dim"]),
            pixel_bytes=PIXEL_BYTES,
            size_for=preferred_size,
        )

    def check(self) -> None:
        """Check that the folder is complete, every part (`PartSet.check`), and that the parts belong together.

        Raises:
            UniWorldError: a part, file or tensor is missing or damaged, or does not match. The message names it.
        """
        check_components(self.folder, COMPONENTS, NAME)
        _ = self.shift
        super().check()
        for width, part, key in (
            ("joint_attention_dim", "t5", "d_model"),
            ("pooled_projection_dim", "clip", "hidden_size"),
        ):
            given = int(getattr(self.network(part).build().config, key))
            if self.transformer[width] != given:
                raise UniWorldError(
                    f"The transformer in {self.folder} takes text of {width} {self.transformer[width]}, and the folder's "
                    f"{part.upper()} gives {given}: copy the parts of the same model."
                )

    def _dit(self) -> NetworkPart[KontextDiT]:
        def make(transformer: Any) -> KontextDiT:
            return KontextDiT(transformer, self.latent_format, self.shift)

        folder = self.folder / "transformer"
        settings, source = self.transformer, str(folder / "config.json")
        return transformer_part(settings, Shards(folder), SAME_NAMES, source, make)

    def _check_channels(self, settings: dict[str, Any], file: Path) -> None:
        """Check that the transformer takes and gives the VAE's latents. Raises UniWorldError otherwise."""
        latents = self.latent_format
        wanted = latents.channels * latents.pack**2
        taken = settings["in_channels"]
        given = settings.get("out_channels") or taken
        if (taken, given) != (wanted, wanted):
            raise UniWorldError(
                f"{file} has in_channels {taken} and out_channels {given}, and {NAME} has {wanted} of both, for the "
                f"{latents.channels} channels of its VAE: this is the transformer of another model, such as FLUX.1 Fill. Copy "
                f"the transformer folder of {NAME}."
            )
