"""`uniworld convert`: a checkpoint in other forms and numbers, and the start checkpoint of the base models."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...command_line import DONE
from ...streams import say
from ...uniworld_core.errors import UniWorldError
from .command import Bars, Command

FORMS = ("uniworld", "comfy", "diffusers")
STORAGES = ("float32", "bfloat16", "float16", "int8", "fp8")

_DESCRIPTION = """\
SOURCE is a UniWorld checkpoint, or the name of a shipped model. The forms:
  uniworld   the published format, in other numbers
  comfy      files for ComfyUI's own loaders; TARGET is ComfyUI's models folder, or a new one
  diffusers  transformer/ for diffusers, vlm/ for transformers, projectors/
SOURCE may also be a Qwen2.5-VL folder: with --flux, TARGET becomes a UniWorld checkpoint that training starts from.
An interrupted conversion continues when the same command is given again."""


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.description = _DESCRIPTION
    parser.add_argument("source", metavar="SOURCE", help="a checkpoint folder, or the name of a shipped model")
    parser.add_argument("target", type=Path, metavar="TARGET", help="the folder to write")
    parser.add_argument("--to", choices=FORMS, default="uniworld", help="the form (uniworld)")
    parser.add_argument(
        "--storage",
        choices=STORAGES,
        help="type of the numbers (bfloat16; of a start checkpoint float32, as published)",
    )
    parser.add_argument("--flux", type=Path, metavar="DIR", help="FLUX.1-dev in diffusers layout")
    parser.add_argument(
        "--siglip", type=Path, metavar="DIR", help="SigLIP2: written for ComfyUI; the width of projectors"
    )
    parser.add_argument("--name", default="uniworld_v1", help="how the files for ComfyUI begin (uniworld_v1)")
    start = parser.add_argument_group("of a Qwen2.5-VL folder")
    start.add_argument("--redux", type=Path, metavar="FILE", help="flux1-redux-dev.safetensors, for siglip_projector")
    start.add_argument("--task-head", type=Path, metavar="FILE", help="a task_head_final.pt for the routing")
    start.add_argument("--seed", type=int, metavar="N", help="of the random projectors (0)")


def _convert(arguments: argparse.Namespace) -> int:
    if _is_checkpoint(arguments.source):
        _convert_checkpoint(arguments)
    else:
        _make_start(arguments)
    print(arguments.target)
    return DONE


def _is_checkpoint(source: str) -> bool:
    from ...uniworld_core.families.uniworld_v1.config import MODEL_TYPE
    from ...uniworld_core.loading.settings import read_json
    from ...uniworld_core.loading.shipped import shipped_names
    from ..publish.convert import QWEN_TYPE

    if source in shipped_names():
        return True
    file = Path(source) / "config.json"
    kind = read_json(file).get("model_type")
    if kind not in (MODEL_TYPE, QWEN_TYPE):
        raise UniWorldError(
            f"{file} has model_type {kind!r}; give a UniWorld-V1 checkpoint ({MODEL_TYPE}) or a Qwen2.5-VL folder ({QWEN_TYPE})."
        )
    return kind == MODEL_TYPE


def _convert_checkpoint(arguments: argparse.Namespace) -> None:
    from ...uniworld_core.families.family import ModelFolders
    from ...uniworld_core.loading.shipped import shipped_model
    from ..publish.conversion import Conversion, convert_checkpoint

    _refuse(arguments, ("redux", "task_head", "seed"), "of a UniWorld checkpoint")
    if Path(arguments.name).name != arguments.name or not arguments.name.strip("."):
        raise UniWorldError(f"--name is {arguments.name!r}, and must begin a name of a file, such as uniworld_v1.")
    shipped = shipped_model(arguments.source)
    folders = ModelFolders(
        Path(arguments.source) if shipped is None else shipped.checkpoint,
        flux=arguments.flux or (shipped and shipped.flux),
        siglip=arguments.siglip or (shipped and shipped.siglip),
    )
    conversion = Conversion(arguments.to, arguments.storage or "bfloat16", arguments.name)
    try:
        with Bars() as bars:
            convert_checkpoint(folders, arguments.target, conversion, lambda done, total: bars("tensors", done, total))
    except KeyboardInterrupt:
        say("The same command continues the conversion.")
        raise


def _make_start(arguments: argparse.Namespace) -> None:
    from ..publish.conversion import FLOATS
    from ..publish.convert import BaseModels, convert

    if arguments.to != "uniworld":
        raise UniWorldError(
            f"{arguments.source} is Qwen2.5-VL: only --to uniworld makes a checkpoint of it; convert that one to {arguments.to}."
        )
    if arguments.flux is None:
        raise UniWorldError(f"{arguments.source} is Qwen2.5-VL: name the FLUX.1-dev folder beside it with --flux.")
    storage = arguments.storage or "float32"
    if storage not in FLOATS:
        raise UniWorldError(f"--storage is {storage}; a start checkpoint is written as {', '.join(FLOATS)}.")
    models = BaseModels(Path(arguments.source), arguments.flux, arguments.redux, arguments.siglip, arguments.task_head)
    convert(models, arguments.target, arguments.seed or 0, FLOATS[storage])


def _refuse(arguments: argparse.Namespace, names: tuple[str, ...], what: str) -> None:
    for name in names:
        if getattr(arguments, name) is not None:
            option = "--" + name.replace("_", "-")
            raise UniWorldError(f"{option} belongs to a start checkpoint, and the source is {what[3:]}: leave it out.")


CONVERT_COMMANDS: dict[tuple[str, ...], Command] = {
    ("convert",): Command("convert a checkpoint, for ComfyUI, diffusers or in other numbers", _add_convert, _convert),
}
