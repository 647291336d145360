"""Load UniWorld: opens the model folders as parts."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ...uniworld_core.errors import UniWorldError
from ...uniworld_core.loading.options import ATTENTIONS, COMPILES, OFFLOADS, STORAGES
from .. import host
from ..declare import Input, Inputs, Node, Output, by_id
from .folders import (
    AUTO,
    checkpoint_choices,
    checkpoint_folder,
    companion,
    companion_folder,
    folder_state,
    model_choices,
    model_folder,
)
from .parts import DTYPES, ModelParts, open_parts

if TYPE_CHECKING:
    from ...uniworld_core.families.family import Family
    from .wires import DiTWire, SiglipWire, TextWire, VAEWire, VLMWire


class LoadUniWorld(Node):
    """Choose the model folders. Parts are read when a node first uses them."""

    ID = "UniWorldLoader"
    DISPLAY_NAME = "Load UniWorld"
    SEARCH_ALIASES = ["UniWorld loader", "checkpoint", "model", "nano", "Qwen2.5-VL", "FLUX"]
    CATEGORY = "UniWorld/loaders"
    DESCRIPTION = (
        "Opens a UniWorld-V1 checkpoint, the FLUX.1-dev folder with the VAE, CLIP and T5, and the SigLIP2 folder; or a model "
        "of another family, such as FLUX.1 Kontext, from its own folder. All files are checked immediately. Each part is read "
        "only when a node first uses it."
    )
    OUTPUTS = (
        Output(
            "vlm",
            "UNIWORLD_VLM",
            "The language model: Qwen2.5-VL, with UniWorld-V1's projectors and routing head, or that of another family. For "
            "UniWorld Condition, Understand and Route.",
        ),
        Output("siglip", "UNIWORLD_SIGLIP", "SigLIP2, for UniWorld Reference and UniWorld Chat Turn."),
        Output(
            "dit", "UNIWORLD_DIT", "The network that paints, for UniWorld Empty Latent, Scheduler and the samplers."
        ),
        Output("vae", "UNIWORLD_VAE", "The family's VAE, for UniWorld VAE Decode and VAE Encode."),
        Output("text", "UNIWORLD_TEXT", "The CLIP and T5 of FLUX, for UniWorld Condition."),
        Output(
            "MODEL",
            "MODEL",
            "The DiT as ComfyUI's own model, for its LoRA, sampler and cache nodes. Only inside ComfyUI.",
        ),
        Output("VAE", "VAE", "The VAE as ComfyUI's own, for its VAE nodes. Only inside ComfyUI."),
    )

    @classmethod
    def inputs(cls) -> Inputs:
        auto = f"{AUTO} selects the folder with the checkpoint's name, or else the only one in"
        return (
            Input.choice(
                "checkpoint",
                checkpoint_choices(),
                "The UniWorld-V1 checkpoint, a folder in models/uniworld; or a model of another family, in models/diffusers or "
                "models/unipic.",
            ),
            Input.choice(
                "flux",
                (AUTO, *model_choices("diffusers")),
                f"FLUX.1-dev in diffusers layout. {auto} models/diffusers. Ignored for models with a VAE of their own.",
            ),
            Input.choice(
                "siglip",
                (AUTO, *model_choices("siglip")),
                f"siglip2-so400m-patch16-512. {auto} models/siglip. Ignored for models without SigLIP.",
            ),
            Input.choice(
                "dtype",
                DTYPES,
                "Precision of the arithmetic and of weights that are not quantized. auto is bfloat16 on a GPU and float32 on a "
                "CPU.",
                default=DTYPES[0],
            ),
            Input.choice("device", host.current().devices(), "The device that the model runs on."),
            # Optional, so that API-form prompts from before this widget still run.
            Input.choice(
                "storage",
                STORAGES,
                "How weights are stored in memory. auto keeps quantized files as they are and converts others to dtype. int8 "
                "takes a quarter of float32 and is the most accurate small format. fp8 is the same size. nf4 takes an "
                "eighth, changes images visibly and needs bitsandbytes.",
                default=STORAGES[0],
                optional=True,
            ),
            Input.choice(
                "offload",
                OFFLOADS,
                "What a part does that does not fit the GPU. auto streams it block by block if necessary. none never does. "
                "blocks always does. disk does too, and keeps no copy in system RAM. ComfyUI manages memory itself and "
                "ignores this.",
                default=OFFLOADS[0],
                optional=True,
            ),
            Input.choice(
                "compile",
                COMPILES,
                "blocks compiles the DiT's blocks with torch.compile, which takes a minute the first time. nano then takes 0.79 "
                "of the time per step, with the same images. It needs a C++ compiler, and triton on a GPU. MODEL is not "
                "compiled: use ComfyUI's own node.",
                default=COMPILES[0],
                optional=True,
                advanced=True,
            ),
            Input.choice(
                "attention",
                ATTENTIONS,
                "The implementation of attention in the DiT, by its name in diffusers. auto is torch's own choice. flash, "
                "_flash_3, sage and xformers need packages of these names. sage computes in 8 bits, which changes images.",
                default=ATTENTIONS[0],
                optional=True,
                advanced=True,
            ),
        )

    @classmethod
    def IS_CHANGED(cls, checkpoint: str, flux: str = AUTO, siglip: str = AUTO, **_: object) -> str:
        """Return a value that changes when a file of the model is replaced, such as by a new export of a training run."""
        folders = [checkpoint_folder(checkpoint)]
        for kind, name in (("diffusers", flux), ("siglip", siglip)):
            with suppress(UniWorldError):  # most families need no other folder; execute reports a missing one
                folders.append(model_folder(kind, companion(kind, name, checkpoint)))
        return folder_state(folders)

    def execute(
        self,
        checkpoint: str,
        flux: str,
        siglip: str,
        dtype: str,
        device: str,
        storage: str = "auto",
        offload: str = "auto",
        compile: str = "off",
        attention: str = "auto",
    ) -> tuple[VLMWire, SiglipWire, DiTWire, VAEWire, TextWire, Any, Any]:
        from ...uniworld_core.families.table import family_of
        from ...uniworld_core.loading.folders import ModelFolders

        folder = checkpoint_folder(checkpoint)
        family = family_of(folder)
        _note_ignored(family, {"flux": flux, "siglip": siglip})
        folders = ModelFolders(
            folder,
            flux=companion_folder("diffusers", flux, checkpoint, family),
            siglip=companion_folder("siglip", siglip, checkpoint, family),
        )
        parts = open_parts(family, folders, dtype, device, storage, offload, compile, attention)
        return parts.vlm, parts.siglip, parts.dit, parts.vae, parts.text, *_native_outputs(parts)


def _note_ignored(family: Family, chosen: Mapping[str, str]) -> None:
    """Warn about folders that were chosen although the checkpoint's family uses none."""
    ignored = [f"{name} {value}" for name, value in chosen.items() if name not in family.companions and value != AUTO]
    if ignored:
        host.current().warn(f"{family.name} has all its parts in its own folder; ignored: {', '.join(ignored)}.")


def _native_outputs(parts: ModelParts) -> tuple[Any, Any]:
    """The DiT as MODEL and the VAE as VAE, made when a node first uses them."""
    if not host.current().is_comfyui():
        from .native.lazy import needs_comfyui

        return needs_comfyui("MODEL of Load UniWorld"), needs_comfyui("VAE of Load UniWorld")
    from .native.model import native_model
    from .native.vae import native_vae

    return native_model(parts.dit), native_vae(parts.vae)


NODES = by_id(LoadUniWorld)
