"""`uniworld convert`: convert a checkpoint to another format or dtype, or build a starting checkpoint."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...command_line import DONE, MAX_SEED, whole_number
from ...streams import say
from ...uniworld_core.errors import UniWorldError
from .command import Bars, Command

FORMS = ("uniworld", "comfy", "diffusers")
STORAGES = ("float32", "bfloat16", "float16", "int8", "fp8")

_DESCRIPTION = """\
SOURCE is a checkpoint of UniWorld-V1 or UniPic, or the name of a shipped model. The formats:
  uniworld   the published format, with another dtype; for UniPic, safetensors without SigLIP2
  comfy      files for ComfyUI's own loaders; TARGET is ComfyUI's models folder, or a new folder
  diffusers  transformer/ for diffusers, vlm/ for transformers, and projectors/
SOURCE may also be a Qwen2.5-VL folder. With --flux, TARGET then becomes a starting checkpoint for training.
To resume an interrupted conversion, run the same command again."""


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.description = _DESCRIPTION
    parser.add_argument("source", metavar="SOURCE", help="a checkpoint folder, or the name of a shipped model")
    parser.add_argument("target", type=Path, metavar="TARGET", help="output folder")
    parser.add_argument("--to", choices=FORMS, default="uniworld", help="output format (default: uniworld)")
    parser.add_argument(
        "--storage",
        choices=STORAGES,
        help="storage type of the weights (default: bfloat16; float32 for a starting checkpoint, as published)",
    )
    parser.add_argument("--flux", type=Path, metavar="DIR", help="a FLUX.1-dev folder in diffusers layout")
    parser.add_argument(
        "--siglip",
        type=Path,
        metavar="DIR",
        help="a SigLIP2 folder: included in ComfyUI's files; sets the projector width of a starting checkpoint",
    )
    parser.add_argument("--name", default="uniworld_v1", help="prefix of ComfyUI's files (default: uniworld_v1)")
    start = parser.add_argument_group("options for a starting checkpoint")
    start.add_argument(
        "--redux", type=Path, metavar="FILE", help="flux1-redux-dev.safetensors, to initialize siglip_projector"
    )
    start.add_argument("--task-head", type=Path, metavar="FILE", help="a task_head_final.pt, the routing head")
    start.add_argument(
        "--seed", type=whole_number(0, MAX_SEED), metavar="N", help="random seed of the new projectors (default: 0)"
    )


def _convert(arguments: argparse.Namespace) -> int:
    if _is_unipic(arguments.source):
        _convert_unipic(arguments)
    elif _is_checkpoint(arguments.source):
        _convert_checkpoint(arguments)
    else:
        _make_start(arguments)
    print(arguments.target)
    return DONE


def _is_unipic(source: str) -> bool:
    from ...uniworld_core.families.table import family_of, is_checkpoint
    from ...uniworld_core.families.unipic.config import NAME

    folder = Path(source)
    return folder.is_dir() and is_checkpoint(folder, "config.json") and family_of(folder).name == NAME


def _convert_unipic(arguments: argparse.Namespace) -> None:
    from ..publish.conversion import Conversion
    from ..publish.unipic import convert_unipic

    for name in ("flux", "siglip", "redux", "task_head", "seed"):
        if getattr(arguments, name) is not None:
            raise UniWorldError(f"--{name.replace('_', '-')} does not apply to a UniPic: remove it.")
    conversion = Conversion(arguments.to, arguments.storage or "bfloat16")
    with _resumable(), Bars() as bars:
        convert_unipic(
            Path(arguments.source), arguments.target, conversion, lambda done, total: bars("tensors", done, total)
        )


@contextmanager
def _resumable() -> Iterator[None]:
    """Say after an interruption how to resume."""
    try:
        yield
    except KeyboardInterrupt:
        say("Run the same command again to resume the conversion.")
        raise


def _is_checkpoint(source: str) -> bool:
    from ...uniworld_core.families.table import check_complete
    from ...uniworld_core.families.uniworld_v1.config import MODEL_TYPE
    from ...uniworld_core.loading.settings import read_json
    from ...uniworld_core.loading.shipped import shipped_names
    from ..publish.convert import QWEN_TYPE

    if source in shipped_names():
        return True
    if not Path(source).is_dir():
        raise UniWorldError(
            f"The folder '{source}' does not exist. Give a checkpoint folder, or the name of a shipped model: "
            f"{', '.join(shipped_names())}."
        )
    check_complete(Path(source))
    file = Path(source) / "config.json"
    kind = read_json(file).get("model_type")
    if kind not in (MODEL_TYPE, QWEN_TYPE):
        raise UniWorldError(
            f"{file} has model_type {kind!r}; give a UniWorld-V1 checkpoint ({MODEL_TYPE}) or a Qwen2.5-VL folder ({QWEN_TYPE})."
        )
    return kind == MODEL_TYPE


def _convert_checkpoint(arguments: argparse.Namespace) -> None:
    from ...uniworld_core.families.uniworld_v1.comfy_files import LOADERS
    from ...uniworld_core.loading.folders import ModelFolders
    from ...uniworld_core.loading.shipped import shipped_model
    from ..publish.conversion import Conversion, convert_checkpoint

    _reject(arguments, ("redux", "task_head", "seed"))
    if Path(arguments.name).name != arguments.name or not arguments.name.strip("."):
        raise UniWorldError(f"--name is {arguments.name!r}; it must be a prefix of a file name, such as uniworld_v1.")
    shipped = shipped_model(arguments.source)
    folders = ModelFolders(
        Path(arguments.source) if shipped is None else shipped.checkpoint,
        flux=arguments.flux or (shipped and shipped.flux),
        siglip=arguments.siglip or (shipped and shipped.siglip),
    )
    conversion = Conversion(arguments.to, arguments.storage or "bfloat16", arguments.name)
    with _resumable(), Bars() as bars:
        convert_checkpoint(folders, arguments.target, conversion, lambda done, total: bars("tensors", done, total))
    if conversion.to == "comfy":
        files = {pattern.format(name=conversion.name): loader for pattern, loader in LOADERS.items()}
        for file, loader in files.items():
            if (arguments.target / file).is_file():
                say(f"{file}: {loader}")


def _make_start(arguments: argparse.Namespace) -> None:
    from ..publish.conversion import FLOATS
    from ..publish.convert import BaseModels, convert

    if arguments.to != "uniworld":
        raise UniWorldError(
            f"{arguments.source} is a Qwen2.5-VL folder, which only --to uniworld supports: build a checkpoint from it first, "
            f"then convert that to {arguments.to}."
        )
    if arguments.flux is None:
        raise UniWorldError(
            f"{arguments.source} is a Qwen2.5-VL folder: give the FLUX.1-dev folder as well, with --flux."
        )
    storage = arguments.storage or "float32"
    if storage not in FLOATS:
        raise UniWorldError(f"--storage is {storage}; for a starting checkpoint it must be one of {', '.join(FLOATS)}.")
    models = BaseModels(Path(arguments.source), arguments.flux, arguments.redux, arguments.siglip, arguments.task_head)
    convert(models, arguments.target, arguments.seed or 0, FLOATS[storage])


def _reject(arguments: argparse.Namespace, names: tuple[str, ...]) -> None:
    """Raise UniWorldError if an option of starting checkpoints is given for a UniWorld checkpoint."""
    for name in names:
        if getattr(arguments, name) is not None:
            option = "--" + name.replace("_", "-")
            raise UniWorldError(
                f"{option} applies only to building a starting checkpoint, but the source is a UniWorld checkpoint: remove it."
            )


CONVERT_COMMANDS: dict[tuple[str, ...], Command] = {
    ("convert",): Command("convert a checkpoint for ComfyUI or diffusers, or to another dtype", _add_convert, _convert),
}
