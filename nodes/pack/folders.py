"""The folders of models: their names in the lists of Load UniWorld, and the folders that go with a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ...uniworld_core.errors import UniWorldError
from .. import host

if TYPE_CHECKING:
    from ...uniworld_core.families.family import Family

# The value of the widgets for companions that leaves the choice to `companion`.
AUTO = "auto"
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

    marks = (_MARKS[kind],) if kind in _MARKS else tuple(TYPE_KEYS)
    own = _user_folders(kind, lambda folder: any((folder / mark).is_file() for mark in marks))
    return own | {name: folder for name, folder in _shipped(kind).items() if name not in own}


def checkpoint_choices() -> dict[str, Path]:
    """Return {name: folder} of the models that Load UniWorld opens; of models with the same name, the first counts.

    The user's checkpoints in models/uniworld come first, then models of other families in models/diffusers and models/unipic,
    then the shipped ones.
    """
    from ...uniworld_core.families.table import is_checkpoint

    found = {name: folder for name, folder in model_choices("uniworld").items() if not _is_shipped(folder)}
    unipic = _user_folders("unipic", lambda folder: is_checkpoint(folder, "config.json"))
    for group in (_user_folders("diffusers", is_checkpoint), unipic, _shipped("uniworld")):
        found |= {name: folder for name, folder in group.items() if name not in found}
    return found


def checkpoint_folder(name: str) -> Path:
    """Return the folder of a checkpoint by its name in the list.

    Raises:
        UniWorldError: it is not in the list. For a folder in models/diffusers or models/unipic, the message says why.
    """
    choices = checkpoint_choices()
    if name in choices:
        return choices[name]
    raise why_unlisted(name) or _not_listed(name, choices, "uniworld", "diffusers", "unipic")


def why_unlisted(name: str) -> UniWorldError | None:
    """Return why a folder in models/diffusers or models/unipic is not in the list; None if it is, or does not exist."""
    from ...uniworld_core.families.table import family_of

    for kind in ("diffusers", "unipic"):
        folder = _user_folders(kind, lambda folder: folder.is_dir()).get(name)
        if folder is None:
            continue
        try:
            family_of(folder)
        except UniWorldError as error:
            return error
    return None


def _user_folders(kind: str, accepts: Callable[[Path], bool]) -> dict[str, Path]:
    """Return {name: folder} of a kind's folders. The first search folder with a name counts, as for ComfyUI's own models."""
    found: dict[str, Path] = {}
    for root in host.current().model_folders(kind):
        if root.is_dir():
            for folder in sorted(root.iterdir()):
                if folder.name not in found and accepts(folder):
                    found[folder.name] = folder
    return found


def companion(kind: str, name: str, checkpoint: str) -> str:
    """Return the name of the FLUX or SigLIP folder to use with a checkpoint.

    Args:
        kind: "diffusers" or "siglip".
        name: the value of the widget. `auto` selects the folder with the checkpoint's name, which the shipped models
            have, or else the user's only folder.

    Raises:
        UniWorldError: `auto`, and the user has no folder of this kind, or several; they are named.
    """
    from ...uniworld_core.families.table import is_checkpoint

    if name != AUTO:
        return name
    choices = model_choices(kind)
    if checkpoint in choices:
        return checkpoint
    own = [choice for choice, folder in choices.items() if not _is_shipped(folder)]
    # Models of other families have the same layout, and are not meant as companions if there is another folder.
    own = [choice for choice in own if not is_checkpoint(choices[choice])] or own
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
        UniWorldError: as `companion`.
    """
    if _INPUTS[kind] not in family.companions:
        return None
    return model_folder(kind, companion(kind, name, checkpoint))


def model_folder(kind: str, name: str) -> Path:
    """Return the folder of a model by its name in the list. Raises UniWorldError if it is not in the list."""
    choices = model_choices(kind)
    if name not in choices:
        raise _not_listed(name, choices, kind)
    return choices[name]


def folder_state(folders: Iterable[Path]) -> str:
    """Return the names, sizes and modification times of the files in folders and in the folders directly inside them."""
    files = sorted({file for folder in folders for pattern in ("*", "*/*") for file in folder.glob(pattern)})
    stats = [(file.name, file.stat()) for file in files if file.is_file()]
    return str([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])


def _not_listed(name: str, choices: Mapping[str, Path], *kinds: str) -> UniWorldError:
    folders = ", ".join(str(folder) for kind in kinds for folder in host.current().model_folders(kind))
    return UniWorldError(f"There is no model {name!r} in {folders}. Choose one of {', '.join(choices)}.")


def _shipped(kind: str) -> dict[str, Path]:
    from ...uniworld_core.loading.shipped import SHIPPED_FOLDER, shipped_names

    return {name: SHIPPED_FOLDER / name / _SHIPPED[kind] for name in shipped_names()}


def _is_shipped(folder: Path) -> bool:
    from ...uniworld_core.loading.shipped import SHIPPED_FOLDER

    return folder.is_relative_to(SHIPPED_FOLDER)
