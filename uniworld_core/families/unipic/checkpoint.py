"""The folder of a UniPic: its parts, and which tensors belong to each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from ...backbones.flux_vae import PIXEL_BYTES
from ...backbones.generation import read_generation
from ...backbones.kl16 import KL16, kl16_part
from ...errors import UniWorldError
from ...images.sizes import Size
from ...loading.meta import build
from ...loading.parts import NetworkPart, Part
from ...loading.pickled import PickledShards
from ...loading.weights import Shards
from ..family import FamilyParts, PaintingFacts
from .config import CONVERTED_VAE_FILE, NAME, UNIPIC_LATENTS, VAE_FILE, UniPicConfig, harmon_error
from .network import PRECISE, UNIPIC_NAMES, UniPic, UniPicNetwork, read_tokenizer, token_bytes

# Stored in the published file, and never used by the published programs: SigLIP2 with its projector, and class labels.
UNUSED = ("siglip2.", "siglip2_proj.", "mar.class_emb.")
_LM_HEAD = "llm.lm_head.weight"
# Key of the tensors in kl16.ckpt.
_VAE_KEY = "model"


class UniPicParts(FamilyParts):
    """The parts of a UniPic: `dit`, which paints and answers, and `vae`.

    The language model and MAR are one part, because every iteration of painting needs both.

    Args:
        folder: a folder as published (`pytorch_model.bin` or its shards, `kl16.ckpt`, the folder of Qwen2), or converted to
            safetensors.
        heads: number of MAR's attention heads, which no published file has; None for that of `UniPicConfig.read`.
    """

    def __init__(self, folder: Path, heads: int | None = None) -> None:
        self.folder, self._heads = folder, heads
        described: dict[str, Callable[[], Part[Any]]] = {"dit": self._painter, "vae": self._vae}
        super().__init__(NAME, described, tuple(described))

    @cached_property
    def shards(self) -> Shards:
        """The weights of the language model and of MAR. Their headers are read once."""
        converted = any((self.folder / f"model.safetensors{end}").is_file() for end in ("", ".index.json"))
        if not converted and list(self.folder.glob("harmon*.pth")):
            raise harmon_error(self.folder)
        return Shards(self.folder) if converted else PickledShards(self.folder)

    @cached_property
    def vae_shards(self) -> Shards:
        """The weights of the VAE, under their published names."""
        converted = self.folder / CONVERTED_VAE_FILE
        if converted.is_file():
            return Shards(self.folder, [converted])
        return PickledShards(self.folder, [self.folder / VAE_FILE], _VAE_KEY)

    @cached_property
    def config(self) -> UniPicConfig:
        """The configuration, with all widths from the tensors."""
        return UniPicConfig.read(self.folder, self.shards, self._heads)

    @property
    def facts(self) -> PaintingFacts:
        """Facts of the checkpoint. UniPic has no noise levels, so there is no shift."""
        return PaintingFacts(
            family=self.family,
            latent_format=UNIPIC_LATENTS,
            shift=None,
            native_side=self.config.native_side,
            token_bytes=token_bytes(self.config),
            pixel_bytes=PIXEL_BYTES,
            size_for=lambda height, width, side: Size(side, side),
        )

    def check(self) -> None:
        """Check both parts (`PartSet.check`), and that every tensor of the checkpoint belongs to one.

        Raises:
            UniWorldError: a file or tensor is missing, damaged or unknown, or does not match. The message names it.
        """
        super().check()
        for name, file in self.shards.files.items():
            if UNIPIC_NAMES.in_module(name) is None and not name.startswith(UNUSED):
                raise UniWorldError(f"{file} holds {name}, which does not belong to {NAME}: use the published files.")

    def _painter(self) -> NetworkPart[UniPic]:
        config, shards = self.config, self.shards
        shards.check_depth(config.llm.layers, ("llm.model.layers.",), config.llm.folder / "config.json")
        # A tied output layer may be stored too, as its own copy of the embeddings.
        names = replace(UNIPIC_NAMES, skipped=(_LM_HEAD,)) if config.llm.tied else UNIPIC_NAMES
        return NetworkPart(
            lambda: build(lambda: UniPicNetwork(config), self.folder),
            shards,
            partial(UniPic, config),
            names,
            precise=PRECISE,
            read=lambda: (read_tokenizer(config), read_generation(config.llm.folder, config.llm.values)),
        )

    def _vae(self) -> NetworkPart[KL16]:
        return kl16_part(self.vae_shards, UNIPIC_LATENTS)
