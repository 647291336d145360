"""`uniworld lora`: show what a LoRA is and at which strength programs apply it, and convert it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ...command_line import DONE, finite_number
from ...streams import say
from ...uniworld_core.errors import UniWorldError
from .command import Command

if TYPE_CHECKING:
    from ...uniworld_core.lora.files import LoraFile
    from ...uniworld_core.lora.matching import NetworkLayers

STORAGES = ("float32", "bfloat16", "float16")

_STRENGTHS = """\
The strength of training is alpha / rank. diffusers and ComfyUI do not read PEFT's adapter_config.json: without alpha in the
file they apply a scale of 1. The LoRAs of Edit-R1 (UniWorld-V2) were trained with alpha 64 and rank 32, so these programs
apply them at half the strength of training. The published scores come from scripts that do the same: to reproduce them,
use strength 0.5 with a converted file."""


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="SOURCE", help="a safetensors file, or a folder in PEFT's layout")


def _add_matching(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument(
        "--model", metavar="MODEL", help=f"the base model's folder, or the name of a shipped model: {text}"
    )
    parser.add_argument(
        "--alpha",
        type=finite_number(-1e6, 1e6),
        metavar="A",
        help="alpha of all modules, instead of that of the file or its configuration",
    )


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.description = f"Shows rank, alpha, scale and names of a LoRA, and what programs do with it.\n\n{_STRENGTHS}"
    _add_source(parser)
    _add_matching(parser, "check that all modules fit it")


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Writes a LoRA that diffusers and ComfyUI apply as trained at strength 1: under diffusers' names, with alpha / rank\n"
        f"multiplied into B, and without alpha.\n\n{_STRENGTHS}"
    )
    _add_source(parser)
    parser.add_argument("target", type=Path, metavar="TARGET", help="the safetensors file to write")
    _add_matching(parser, "check that all modules fit it; needed for names of BFL and of kohya's scripts")
    parser.add_argument(
        "--skip-text-encoders",
        action="store_true",
        help="leave out modules of text encoders, which are an error otherwise: UniWorld applies LoRAs to the DiT alone",
    )
    parser.add_argument(
        "--storage",
        choices=STORAGES,
        help="dtype of the matrices (default: that of the source, or float32 where it cannot hold the scaled ones exactly)",
    )


def _inspect(arguments: argparse.Namespace) -> int:
    from ...uniworld_core.lora.files import read_lora
    from ...uniworld_core.lora.matching import match

    layers = _layers(arguments.model)
    lora = read_lora(arguments.source)
    lora.check_given(arguments.alpha, "--alpha is")
    _print_report(lora, arguments.alpha)
    if layers is not None:
        targets = match(lora, layers)
        count = sum(map(len, targets.values()))
        print(
            f"model      all {len(targets)} modules fit {arguments.model}, as {count} of its {len(layers.linear)} layers"
        )
    return DONE


def _print_report(lora: LoraFile, alpha: float | None) -> None:
    from ...uniworld_core.lora.report import report_on

    report = report_on(lora, alpha)
    print(f"file       {lora.file}")
    base = f"{report.family}, by the names" if lora.family is None else f"{lora.family}, by its metadata"
    print(f"base       {base}")
    print(f"modules    {len(lora.modules)} in {', '.join(sorted(lora.dtypes))}, names of {report.naming}")
    if encoders := sum(module.of_text_encoder for module in lora.modules.values()):
        print(f"           {encoders} of them are of text encoders, which UniWorld does not change")
    print(f"rank       {_counted(report.ranks)}")
    print(f"alpha      {_counted(report.alphas)}, from {' and '.join(report.alpha_sources)}")
    print(f"scale      {_counted(report.scales)}, which UniWorld applies at strength 1")
    print(f"ComfyUI    {report.comfyui}")
    print(f"diffusers  {report.diffusers}")
    if not report.alpha_known:
        print(
            "\nIf alpha was not the rank in training, as in Edit-R1 (alpha 64, rank 32), give it with --alpha. Otherwise every "
            "program applies the LoRA at another strength than that of training."
        )


def _counted(values: dict[int, int] | dict[float, int]) -> str:
    """Format values with the number of modules of each, unless all modules have the same."""
    if len(values) == 1:
        return f"{next(iter(values)):g}"
    return ", ".join(f"{value:g} ({count} modules)" for value, count in sorted(values.items()))


def _convert(arguments: argparse.Namespace) -> int:
    from ...uniworld_core.lora.conversion import convert_lora

    layers = _layers(arguments.model)
    lora = convert_lora(
        arguments.source,
        arguments.target,
        arguments.alpha,
        arguments.storage,
        layers,
        arguments.skip_text_encoders,
    )
    scales = {lora.scale(module, arguments.alpha) for module in lora.modules.values()}
    sources = dict.fromkeys(lora.alpha(module, arguments.alpha)[1] for module in lora.modules.values())
    say(
        f"Scale {', '.join(f'{scale:g}' for scale in sorted(scales))} is in the weights; alpha is from {' and '.join(sources)}."
    )
    print(arguments.target)
    return DONE


def _layers(model: str | None) -> NetworkLayers | None:
    """Return the layers of the base model's painter. Raises UniWorldError if it cannot be opened."""
    if model is None:
        return None
    from ...uniworld_core.families.table import family_of
    from ...uniworld_core.loading.folders import find_folders
    from ...uniworld_core.lora.matching import layers_of_painter

    folders = find_folders(model)
    parts = family_of(folders.checkpoint).open(folders)
    try:
        return layers_of_painter(parts)
    except UniWorldError as error:
        raise UniWorldError(f"--model {model}: {error}") from error


LORA_COMMANDS: dict[tuple[str, ...], Command] = {
    ("lora", "inspect"): Command("show rank, alpha and names of a LoRA", _add_inspect, _inspect, lambda _: True),
    ("lora", "convert"): Command(
        "convert a LoRA, so that diffusers and ComfyUI apply it as trained", _add_convert, _convert
    ),
}
