"""The folders of a UniWorld-V1 model: its parts, and which tensors of the checkpoint belong to each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from ...backbones.flux_dit import DiT, token_bytes
from ...backbones.flux_latents import FLUX_LATENTS, FLUX_SHIFT, read_latent_format
from ...backbones.flux_split import open_transformer
from ...backbones.flux_text import clip_part, t5_part
from ...backbones.flux_transformer import build_transformer, transformer_part
from ...backbones.flux_vae import NATIVE_SIDE, PIXEL_BYTES, read_native_side, vae_part
from ...backbones.qwen_files import QWEN_NAMES, build_qwen
from ...backbones.qwen_vl import VLM, vlm_part
from ...backbones.siglip import siglip_part
from ...errors import UniWorldError
from ...loading.meta import build
from ...loading.names import Names
from ...loading.parts import JoinedPart, NetworkPart, Part
from ...loading.weights import Shards
from ...sampling.latents import LatentFormat
from ..family import FamilyParts, PaintingFacts
from .config import VLM_PIXELS, UniWorldConfig
from .painting import NAME
from .projectors import Projectors, TaskHeadPart
from .understanding import Understanding

_TOWER = "denoise_tower."
DENOISER_NAMES = Names(((f"{_TOWER}denoiser.", ""),))
PROJECTOR_NAMES = Names(
    tuple((f"{_TOWER}{name}.", f"{name}.") for name in ("denoise_projector", "siglip_projector", "vae_projector"))
)


class UniWorldParts(FamilyParts):
    """The parts of a UniWorld-V1 model.

    The checkpoint provides `vlm`, `projectors` and `task_head`, which together form `understanding`, and `dit`. The FLUX
    folder provides `vae`, `clip` and `t5`, the SigLIP folder `siglip`. The checkpoint's DiT replaces the one of FLUX.

    Args:
        checkpoint: a folder in the published format. Its DiT may be in another safetensors file there, as split for ComfyUI.
        flux: a FLUX.1-dev folder in diffusers layout; None for a model that only answers or paints latents.
        siglip: a SigLIP2 folder; None for a model without references.
    """

    containers: ClassVar[Mapping[str, str]] = dict.fromkeys(("vlm", "projectors", "task_head"), "understanding")

    def __init__(self, checkpoint: Path, flux: Path | None = None, siglip: Path | None = None) -> None:
        self.checkpoint, self.flux, self.siglip = checkpoint, flux, siglip
        own: dict[str, Callable[[], Part[Any]]] = {
            "vlm": self._vlm,
            "dit": self._dit,
            "projectors": self._projectors,
            "task_head": lambda: TaskHeadPart(checkpoint, self.config.vlm.width),
            "understanding": self._understanding,
        }
        flux_parts: dict[str, Callable[[], Part[Any]]] = {
            "vae": lambda: vae_part(self._need("flux", "the VAE")),
            "clip": lambda: clip_part(self._need("flux", "CLIP and T5")),
            "t5": lambda: t5_part(self._need("flux", "CLIP and T5")),
        }
        present = [*own]
        if flux is not None:
            # T5 has 9.5 GB and is optional: users who do not use it need not download it.
            folders = {"clip": "text_encoder", "t5": "text_encoder_2"}
            present += [name for name in flux_parts if name == "vae" or (flux / folders[name]).is_dir()]
        if siglip is not None:
            present.append("siglip")
        described = own | flux_parts | {"siglip": lambda: siglip_part(self._need("siglip", "SigLIP"))}
        super().__init__(NAME, described, present)

    @cached_property
    def shards(self) -> Shards:
        """The checkpoint's files. Their headers are read once."""
        return Shards(self.checkpoint)

    @cached_property
    def config(self) -> UniWorldConfig:
        """The checkpoint's configuration, with the SigLIP width from its tensors."""
        shape = self.shards.shapes.get(f"{_TOWER}siglip_projector.0.weight")
        return UniWorldConfig.read(self.checkpoint, shape[1] if shape and len(shape) == 2 else None)

    @cached_property
    def latent_format(self) -> LatentFormat:
        """The latent format of the FLUX folder's VAE; FLUX.1-dev's without a folder."""
        return FLUX_LATENTS if self.flux is None else read_latent_format(self.flux)

    @property
    def facts(self) -> PaintingFacts:
        """Facts of the checkpoint's DiT and the FLUX folder's VAE; those of FLUX.1-dev without a folder."""
        return PaintingFacts(
            family=self.family,
            latent_format=self.latent_format,
            shift=FLUX_SHIFT,
            native_side=NATIVE_SIDE if self.flux is None else read_native_side(self.flux),
            token_bytes=token_bytes(self.config.denoiser_width),
            pixel_bytes=PIXEL_BYTES,
        )

    def check(self) -> None:
        """Check every part (`PartSet.check`), and that every tensor of the checkpoint belongs to one.

        Raises:
            UniWorldError: a file or tensor is missing, damaged or unknown, or does not match. The message names it.
        """
        super().check()
        known = [self.network("vlm").names, DENOISER_NAMES, PROJECTOR_NAMES]
        for name, file in self.shards.files.items():
            if not any(names.in_module(name) for names in known):
                raise UniWorldError(f"{file} holds {name}, which does not belong to {NAME}: use the published files.")

    def _vlm(self) -> NetworkPart[VLM]:
        return vlm_part(self.checkpoint, self.config.vlm, self.shards, VLM_PIXELS)

    def _dit(self) -> NetworkPart[DiT]:
        def make(transformer: Any) -> DiT:
            return DiT(transformer, self.latent_format)

        config = self.config
        shards, names = self._denoiser_files()
        return transformer_part(config.denoiser, shards, names, config.denoiser_source, make)

    def _denoiser_files(self) -> tuple[Shards, Names]:
        """The files with the DiT's tensors, and their names: the checkpoint's, or one that was split from it."""
        prefix = DENOISER_NAMES.prefixes[0][0]
        split = sorted(set(self.checkpoint.glob("*.safetensors")) - set(self.shards.files.values()))
        if not split or any(name.startswith(prefix) for name in self.shards.shapes):
            return self.shards, DENOISER_NAMES
        if len(split) > 1:
            raise UniWorldError(
                f"{self.checkpoint} has no DiT in its checkpoint, and several other files: "
                f"{', '.join(file.name for file in split)}. Keep the one with FLUX's transformer."
            )
        denoiser, source = self.config.denoiser, self.config.denoiser_source
        network = build_transformer(denoiser, source)
        shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        return open_transformer(split[0], shapes, int(denoiser["num_layers"]), int(denoiser["num_single_layers"]))

    def _projectors(self) -> NetworkPart[Projectors]:
        def made() -> Projectors:
            return build(lambda: Projectors(self.config), self.config.source)

        return NetworkPart(
            made,
            self.shards,
            lambda projectors: projectors,
            PROJECTOR_NAMES,
            precise=("*",),  # 1 % of the model; in NF4 nano's condition is off by 12 %
        )

    def _understanding(self) -> JoinedPart[Understanding]:
        return JoinedPart([self["vlm"], self["projectors"], self["task_head"]], Understanding)

    def _need(self, what: str, wanted: str) -> Path:
        folder = self.flux if what == "flux" else self.siglip
        if folder is None:
            raise UniWorldError(
                f"No {what} folder was given, but {wanted} is loaded from it: "
                f"UniWorld.from_pretrained(..., {what}=FOLDER)."
            )
        return folder


def check_checkpoint(folder: Path) -> None:
    """Check the files of a UniWorld-V1 checkpoint against its configuration. Raises UniWorldError as `UniWorldParts.check`."""
    UniWorldConfig.read(folder)  # first, so that another model's folder is reported as such and not by its tensors
    UniWorldParts(folder).check()


def layout(config: UniWorldConfig) -> dict[str, tuple[int, ...]]:
    """Return {published tensor name: shape} of a checkpoint with this configuration."""
    parts = (
        (build_qwen(config.vlm), QWEN_NAMES),
        (build_transformer(config.denoiser, config.denoiser_source), DENOISER_NAMES),
        (build(lambda: Projectors(config), config.source), PROJECTOR_NAMES),
    )
    return {
        names.in_file(name): tuple(tensor.shape)
        for module, names in parts
        for name, tensor in module.state_dict().items()
    }
