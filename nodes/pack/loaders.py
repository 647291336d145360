"""Load UniWorld: opens the model folders as parts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...uniworld_core.errors import UniWorldError
from ...uniworld_core.loading.options import OFFLOADS, STORAGES
from .. import host
from ..declare import Input, Inputs, Node, Output, by_id
from .parts import DTYPES, ModelParts, open_parts

if TYPE_CHECKING:
    from ...uniworld_core.families.family import Family
    from .wires import DiTWire, SiglipWire, TextWire, VAEWire, VLMWire

# A file that identifies a folder of each kind. Checkpoints are identified by the files of their family (`TYPE_KEYS`).
_MARKS = {"diffusers": "vae/config.json", "siglip": "preprocessor_config.json"}
# The widget of each kind, and the model that belongs there.
_INPUTS = {"diffusers": "flux", "siglip": "siglip"}
_MODELS = {"diffusers": "FLUX.1-dev in diffusers layout", "siglip": "siglip2-so400m-patch16-512"}
# The folder of each kind inside a model that ships with the package.
_SHIPPED = {"uniworld": "uniworld", "diffusers": "flux", "siglip": "siglip"}


def model_choices(kind: str) -> dict[str, Path]:
    """Return {name: folder} of the models of a kind: the user's in order of name, then the shipped ones."""
    from ...uniworld_core.families.table import TYPE_KEYS
    from ...uniworld_core.loading.shipped import SHIPPED_FOLDER, shipped_names

    marks = (_MARKS[kind],) if kind in _MARKS else tuple(TYPE_KEYS)
    found: dict[str, Path] = {}
    for root in host.current().model_folders(kind):
        if root.is_dir():
            for folder in sorted(root.iterdir()):
                if any((folder / mark).is_file() for mark in marks):
                    # In the first search folder that has the name, as ComfyUI resolves its own models.
                    found.setdefault(folder.name, folder)
    for name in shipped_names():
        found.setdefault(name, SHIPPED_FOLDER / name / _SHIPPED[kind])
    return found


AUTO = "auto"


def companion(kind: str, name: str, checkpoint: str) -> str:
    """Return the name of the FLUX or SigLIP folder to use with a checkpoint.

    Args:
        kind: "diffusers" or "siglip".
        name: the value of the widget. `auto` selects the folder with the checkpoint's name, which the shipped models
            have, or else the user's only folder.

    Raises:
        UniWorldError: `auto`, and the user has no folder of this kind, or several; they are named.
    """
    if name != AUTO:
        return name
    choices = model_choices(kind)
    if checkpoint in choices:
        return checkpoint
    own = [choice for choice, folder in choices.items() if not folder.is_relative_to(_shipped_folder())]
    if len(own) == 1:
        return own[0]
    folders = ", ".join(str(folder) for folder in host.current().model_folders(kind))
    if own:
        raise UniWorldError(f"'{_INPUTS[kind]}' is auto, but {folders} contains {', '.join(own)}: choose one of them.")
    raise UniWorldError(
        f"'{_INPUTS[kind]}' is auto, but {folders} contains no folder with a {_MARKS[kind]}: put {_MODELS[kind]} there "
        "(README: where the weights go)."
    )


def companion_folder(kind: str, name: str, checkpoint: str, family: Family) -> Path | None:
    """Return the folder that `companion` names; None if the checkpoint's family uses none of this kind.

    Raises:
        UniWorldError: as `companion`, or a folder was chosen although the family uses none.
    """
    if _INPUTS[kind] in family.companions:
        return model_folder(kind, companion(kind, name, checkpoint))
    if name != AUTO:
        raise UniWorldError(f"'{_INPUTS[kind]}' is {name}, but {family.name} does not use it: set it to {AUTO}.")
    return None


def _shipped_folder() -> Path:
    from ...uniworld_core.loading.shipped import SHIPPED_FOLDER

    return SHIPPED_FOLDER


def model_folder(kind: str, name: str) -> Path:
    """Return the folder of a model by its name in the list. Raises UniWorldError if it is not in the list."""
    choices = model_choices(kind)
    if name not in choices:
        folders = ", ".join(str(folder) for folder in host.current().model_folders(kind))
        raise UniWorldError(f"There is no model {name!r} in {folders}. Choose one of {', '.join(choices)}.")
    return choices[name]


class LoadUniWorld(Node):
    """Choose the model folders. Parts are read when a node first uses them."""

    ID = "UniWorldLoader"
    DISPLAY_NAME = "Load UniWorld"
    SEARCH_ALIASES = ["UniWorld loader", "checkpoint", "model", "nano", "Qwen2.5-VL", "FLUX"]
    CATEGORY = "UniWorld/loaders"
    DESCRIPTION = (
        "Opens a UniWorld-V1 checkpoint, the FLUX.1-dev folder with the VAE, CLIP and T5, and the SigLIP2 folder. All "
        "files are checked immediately. Each part is read only when a node first uses it."
    )
    OUTPUTS = (
        Output(
            "vlm",
            "UNIWORLD_VLM",
            "Qwen2.5-VL with the projectors and the routing head, for UniWorld Condition, Understand and Route.",
        ),
        Output("siglip", "UNIWORLD_SIGLIP", "SigLIP2, for UniWorld Reference and UniWorld Chat Turn."),
        Output("dit", "UNIWORLD_DIT", "The checkpoint's FLUX DiT, for UniWorld Empty Latent, Scheduler and Sampler."),
        Output("vae", "UNIWORLD_VAE", "The FLUX VAE, for UniWorld VAE Decode and VAE Encode."),
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
                "checkpoint", model_choices("uniworld"), "The UniWorld-V1 checkpoint, a folder in models/uniworld."
            ),
            Input.choice(
                "flux",
                (AUTO, *model_choices("diffusers")),
                f"FLUX.1-dev in diffusers layout. {auto} models/diffusers.",
            ),
            Input.choice(
                "siglip", (AUTO, *model_choices("siglip")), f"siglip2-so400m-patch16-512. {auto} models/siglip."
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
        )

    def execute(
        self,
        checkpoint: str,
        flux: str,
        siglip: str,
        dtype: str,
        device: str,
        storage: str = "auto",
        offload: str = "auto",
    ) -> tuple[VLMWire, SiglipWire, DiTWire, VAEWire, TextWire, Any, Any]:
        from ...uniworld_core.families.family import ModelFolders
        from ...uniworld_core.families.table import family_of

        folder = model_folder("uniworld", checkpoint)
        family = family_of(folder)
        folders = ModelFolders(
            folder,
            flux=companion_folder("diffusers", flux, checkpoint, family),
            siglip=companion_folder("siglip", siglip, checkpoint, family),
        )
        parts = open_parts(family, folders, dtype, device, storage, offload)
        return parts.vlm, parts.siglip, parts.dit, parts.vae, parts.text, *_native_outputs(parts)


def _native_outputs(parts: ModelParts) -> tuple[Any, Any]:
    """The DiT as MODEL and the VAE as VAE, made when a node first uses them."""
    if not host.current().is_comfyui():
        from .native.lazy import needs_comfyui

        return needs_comfyui("MODEL of Load UniWorld"), needs_comfyui("VAE of Load UniWorld")
    from .native.model import native_model
    from .native.vae import native_vae

    return native_model(parts.dit), native_vae(parts.vae)


NODES = by_id(LoadUniWorld)
