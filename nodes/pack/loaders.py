"""Load UniWorld: the model's folders to its parts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...uniworld_core.errors import UniWorldError
from .. import host
from ..declare import Input, Inputs, Node, Output, by_id
from .parts import DTYPES, open_parts

if TYPE_CHECKING:
    from ...uniworld_core.families.family import Family
    from .wires import DiTWire, SiglipWire, TextWire, VAEWire, VLMWire

# A file by which a folder of each kind is known; a checkpoint's are those that its family is known by.
_MARKS = {"diffusers": "vae/config.json", "siglip": "preprocessor_config.json"}
# The widget of a kind, and the model that people put there.
_INPUTS = {"diffusers": "flux", "siglip": "siglip"}
_MODELS = {"diffusers": "FLUX.1-dev in diffusers layout", "siglip": "siglip2-so400m-patch16-512"}
# The same folder inside a model that ships with the package.
_SHIPPED = {"uniworld": "uniworld", "diffusers": "flux", "siglip": "siglip"}


def model_choices(kind: str) -> dict[str, Path]:
    """{name: folder} of the models of a kind: the user's first, by name, then those that ship with the package."""
    from ...uniworld_core.families.table import KINDS
    from ...uniworld_core.loading.shipped import SHIPPED_FOLDER, shipped_names

    marks = (_MARKS[kind],) if kind in _MARKS else tuple(KINDS)
    found: dict[str, Path] = {}
    for root in host.current().model_folders(kind):
        if root.is_dir():
            for folder in sorted(root.iterdir()):
                if any((folder / mark).is_file() for mark in marks):
                    found.setdefault(folder.name, folder)
    for name in shipped_names():
        found.setdefault(name, SHIPPED_FOLDER / name / _SHIPPED[kind])
    return found


AUTO = "auto"


def companion(kind: str, name: str, checkpoint: str) -> str:
    """The name of the FLUX or SigLIP folder to use with a checkpoint.

    Args:
        kind: "diffusers" or "siglip".
        name: what the widget says; `auto` takes the folder of the checkpoint's own name, as the models that ship with the
            package have one, else the user's only one.

    Raises:
        UniWorldError: `auto` where the user has no folder of that kind, or several; they are named.
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
        raise UniWorldError(f"'{_INPUTS[kind]}' is auto, and {folders} holds {', '.join(own)}: choose one of them.")
    raise UniWorldError(
        f"'{_INPUTS[kind]}' is auto, and {folders} holds no folder with a {_MARKS[kind]}: put {_MODELS[kind]} there "
        "(README: where the weights go)."
    )


def companion_folder(kind: str, name: str, checkpoint: str, family: Family) -> Path | None:
    """The folder that `companion` names; None where the family of the checkpoint takes none of that kind.

    Raises:
        UniWorldError: as `companion`, or one was chosen that the family does not take.
    """
    if _INPUTS[kind] in family.companions:
        return model_folder(kind, companion(kind, name, checkpoint))
    if name != AUTO:
        raise UniWorldError(f"'{_INPUTS[kind]}' is {name}, and {family.name} takes no such folder: set it to {AUTO}.")
    return None


def _shipped_folder() -> Path:
    from ...uniworld_core.loading.shipped import SHIPPED_FOLDER

    return SHIPPED_FOLDER


def model_folder(kind: str, name: str) -> Path:
    """The folder of a model by its name in the list. Raises UniWorldError if it is not (any more) in the list."""
    choices = model_choices(kind)
    if name not in choices:
        folders = ", ".join(str(folder) for folder in host.current().model_folders(kind))
        raise UniWorldError(f"There is no model {name!r} in {folders}; there are {', '.join(choices)}.")
    return choices[name]


class LoadUniWorld(Node):
    """Choose the model's folders; its parts are read when a node first uses them."""

    ID = "UniWorldLoader"
    DISPLAY_NAME = "Load UniWorld"
    SEARCH_ALIASES = ["UniWorld loader", "checkpoint", "model", "nano", "Qwen2.5-VL", "FLUX"]
    CATEGORY = "UniWorld/loaders"
    DESCRIPTION = (
        "Opens a UniWorld-V1 checkpoint with the FLUX.1-dev folder that gives the VAE, CLIP and T5, and the SigLIP2 folder. "
        "Files are checked at once; each part is read only when a node first uses it."
    )
    OUTPUTS = (
        Output(
            "vlm",
            "UNIWORLD_VLM",
            "Qwen2.5-VL with the projectors and the routing head: for UniWorld Condition, Understand and Route.",
        ),
        Output("siglip", "UNIWORLD_SIGLIP", "SigLIP2: for UniWorld Reference."),
        Output("dit", "UNIWORLD_DIT", "The FLUX DiT of the checkpoint: for UniWorld Scheduler and UniWorld Sampler."),
        Output("vae", "UNIWORLD_VAE", "FLUX's VAE: for UniWorld VAE Decode and UniWorld VAE Encode."),
        Output("text", "UNIWORLD_TEXT", "FLUX's CLIP and T5: for UniWorld Condition."),
    )

    @classmethod
    def inputs(cls) -> Inputs:
        auto = f"{AUTO}: the folder named as the checkpoint, else the only one in"
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
                "Precision of the weights. auto: bfloat16 on a GPU, float32 on a CPU.",
                default=DTYPES[0],
            ),
            Input.choice("device", host.current().devices(), "Where the model computes."),
        )

    def execute(
        self, checkpoint: str, flux: str, siglip: str, dtype: str, device: str
    ) -> tuple[VLMWire, SiglipWire, DiTWire, VAEWire, TextWire]:
        from ...uniworld_core.families.family import ModelFolders
        from ...uniworld_core.families.table import family_of

        folder = model_folder("uniworld", checkpoint)
        family = family_of(folder)
        folders = ModelFolders(
            folder,
            flux=companion_folder("diffusers", flux, checkpoint, family),
            siglip=companion_folder("siglip", siglip, checkpoint, family),
        )
        parts = open_parts(family, folders, dtype, device)
        return parts.vlm, parts.siglip, parts.dit, parts.vae, parts.text


NODES = by_id(LoadUniWorld)
