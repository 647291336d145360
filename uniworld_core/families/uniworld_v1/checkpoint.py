"""A UniWorld checkpoint's folder: which tensors are whose, and its parts read from it, each alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...backbones.flux_dit import DiT
from ...backbones.flux_latents import FLUX_LATENTS, read_latent_format
from ...backbones.flux_transformer import build_transformer, transformer_weights
from ...backbones.qwen_files import (
    QWEN_NAMES,
    build_qwen,
    qwen_weights,
    read_generation,
    read_processor,
    read_tokenizer,
)
from ...backbones.qwen_vl import VLM
from ...errors import UniWorldError
from ...loading.weights import Names, Shards, Weights, build
from .config import VLM_PIXELS, UniWorldConfig
from .projectors import Projectors, read_task_head

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLForConditionalGeneration

_TOWER = "denoise_tower."
DENOISER_NAMES = Names(((f"{_TOWER}denoiser.", ""),))
PROJECTOR_NAMES = Names(
    tuple((f"{_TOWER}{name}.", f"{name}.") for name in ("denoise_projector", "siglip_projector", "vae_projector"))
)


def read_config(checkpoint: Path) -> UniWorldConfig:
    """The configuration of a checkpoint, with the SigLIP width that its tensors show."""
    shape = Shards(checkpoint).shapes.get(f"{_TOWER}siglip_projector.0.weight")
    return UniWorldConfig.read(checkpoint, shape[1] if shape and len(shape) == 2 else None)


def vlm_weights(checkpoint: str | Path) -> Weights[Qwen2_5_VLForConditionalGeneration]:
    """Qwen2.5-VL of a checkpoint and its files. Raises UniWorldError if these hold another number of layers."""
    return qwen_weights(UniWorldConfig.read(checkpoint).vlm, Shards(Path(checkpoint)))


def denoiser_weights(checkpoint: str | Path) -> Weights[Any]:
    """The DiT of a checkpoint and its files. Raises UniWorldError if these hold another number of layers."""
    config = UniWorldConfig.read(checkpoint)
    return transformer_weights(config.denoiser, Shards(Path(checkpoint)), DENOISER_NAMES, config.denoiser_source)


def projector_weights(checkpoint: str | Path) -> Weights[Projectors]:
    """The three projectors of a checkpoint and their files."""
    config = read_config(Path(checkpoint))
    return Weights(build(lambda: Projectors(config), config.source), Shards(Path(checkpoint)), PROJECTOR_NAMES)


def load_vlm(checkpoint: str | Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> VLM:
    """The VLM of a checkpoint, alone.

    Raises:
        UniWorldError: a file is missing, damaged, or does not fit the configuration; it is named.
    """
    folder = Path(checkpoint)
    config = UniWorldConfig.read(folder).vlm
    tokenizer, processor = read_tokenizer(folder, config), read_processor(folder, config, VLM_PIXELS)
    qwen = qwen_weights(config, Shards(folder)).load(dtype, device)
    return VLM(config, tokenizer, processor, qwen, read_generation(folder, config))


def load_dit(
    checkpoint: str | Path,
    flux: str | Path | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> DiT:
    """The DiT of a checkpoint, alone.

    Args:
        flux: the FLUX folder whose VAE's shift and scale the latents have; None takes FLUX.1-dev's.

    Raises:
        UniWorldError: a file is missing, damaged, or does not fit the configuration; it is named.
    """
    latent_format = FLUX_LATENTS if flux is None else read_latent_format(flux)
    return DiT(denoiser_weights(checkpoint).load(dtype, device), latent_format)


def check_checkpoint(folder: Path) -> None:
    """Hold a UniWorld checkpoint's files against its configuration. Raises UniWorldError naming what does not fit."""
    parts: list[Weights[Any]] = [vlm_weights(folder), denoiser_weights(folder), projector_weights(folder)]
    for part in parts:
        part.check()
    shards = parts[0].shards
    unknown = [name for name in shards.shapes if not any(part.names.in_module(name) for part in parts)]
    if unknown:
        raise UniWorldError(
            f"{shards.files[unknown[0]]} holds {unknown[0]}, which is of no part of UniWorld-V1: use the published files."
        )
    config = read_config(folder)
    read_tokenizer(folder, config.vlm)
    read_processor(folder, config.vlm, VLM_PIXELS)
    read_generation(folder, config.vlm)
    read_task_head(folder, config.vlm.width)


def layout(config: UniWorldConfig) -> dict[str, tuple[int, ...]]:
    """{published tensor name: shape} of a checkpoint of this configuration."""
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
