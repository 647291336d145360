"""The table of model families, and how the family of a folder is found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import UniWorldError, shown
from ..loading.settings import read_json
from .family import Family


def _uniworld_v1() -> Family:
    from .uniworld_v1.family import UniWorldV1

    return UniWorldV1()


def _kontext() -> Family:
    from .kontext.family import Kontext

    return Kontext()


def _qwen_image_edit(pipeline: str) -> Callable[[], Family]:
    def made() -> Family:
        from .qwen_image_edit.family import QwenImageEdit

        return QwenImageEdit(pipeline)

    return made


def _unipic() -> Family:
    from .unipic.family import UniPicFamily

    return UniPicFamily()


# {model type in a folder's configuration: family}. A family is imported when one of its folders is opened.
FAMILIES: dict[str, Callable[[], Family]] = {
    "univa_qwen2p5vl": _uniworld_v1,
    "FluxKontextPipeline": _kontext,
    "skywork_unipic": _unipic,
    **{name: _qwen_image_edit(name) for name in ("QwenImageEditPipeline", "QwenImageEditPlusPipeline")},
}

# Files with the model type, and its key in each. The first file that exists counts; model_index.json is diffusers'.
TYPE_KEYS = {"config.json": "model_type", "model_index.json": "_class_name"}


# {file that identifies a published folder without a configuration: the model type that its configuration would have}.
MARKS = {"kl16.ckpt": "skywork_unipic"}


def family_of(folder: str | Path) -> Family:
    """Return the family of a model folder.

    Raises:
        UniWorldError: the configuration is missing or damaged, or the family is unknown. The message lists the known ones.
    """
    for mark, kind in MARKS.items():
        if (Path(folder) / mark).is_file():
            return FAMILIES[kind]()
    check_complete(Path(folder))
    files = [Path(folder) / name for name in TYPE_KEYS]
    file = next((file for file in files if file.is_file()), files[0])
    return family_by_config(read_json(file), str(file), TYPE_KEYS[file.name])


def check_complete(folder: Path) -> None:
    """Raise UniWorldError if a folder has no file that identifies a model, because its download is incomplete."""
    identifying = (*MARKS, *TYPE_KEYS)
    # Beside weights in safetensors it is config.json that is missing, and another error names it.
    if (
        not folder.is_dir()
        or any((folder / name).exists() for name in identifying)
        or any(folder.glob("*.safetensors*"))
    ):
        return
    raise UniWorldError(
        f"{folder} has none of the files {', '.join(identifying)}, which identify a model: the download is incomplete, or "
        "its files are in a folder inside. Copy the complete folder."
    )


def is_checkpoint(folder: Path, file: str = "model_index.json") -> bool:
    """Return whether a folder is a model of a known family, by a file of `MARKS`, or by its configuration in `file`."""
    if any((folder / mark).is_file() for mark in MARKS):
        return True
    found = folder / file
    try:
        kind = read_json(found).get(TYPE_KEYS[file]) if found.is_file() else None
    except UniWorldError:  # damaged, and not known to be a model of a family
        return False
    return isinstance(kind, str) and kind in FAMILIES


def family_by_config(config: Mapping[str, Any], source: str = "config", key: str = "model_type") -> Family:
    """Return the family of a model by its configuration; as `family_of`.

    Args:
        source: name of the configuration in errors.
        key: key of the model type.
    """
    kind = config.get(key)
    if not isinstance(kind, str) or kind not in FAMILIES:
        known = ", ".join(f"{name!r} ({make().name})" for name, make in FAMILIES.items())
        raise UniWorldError(
            f"{source} has {key} {shown(kind)}, which is not a known model family ({known}): choose the folder of a model "
            "of these families, not of one of its base models."
        )
    return FAMILIES[kind]()
