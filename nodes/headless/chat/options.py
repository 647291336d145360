"""The options of `uniworld chat`, and the settings that they give."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ....command_line import MAX_SEED, finite_number, whole_number
from ....uniworld_core.errors import UniWorldError
from ....uniworld_core.loading.options import ATTENTIONS, COMPILES, OFFLOADS, STORAGES
from ....uniworld_core.lora.argument import METAVAR, STRENGTH_HELP
from ....uniworld_core.sampling.cache import CACHES
from ....uniworld_core.sampling.solvers import SOLVERS
from ... import host
from ...pack.lora import lora_file, lora_names
from ...pack.parts import DTYPES
from ..storage import folders
from .session import MEMORIES, Settings

if TYPE_CHECKING:
    from ....uniworld_core.prompts.scope import Scope
    from ...pack.parts import VLMPart

FOLDER = "chat"  # in the output folder; contains a folder per conversation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `uniworld chat`, except for those that all commands share."""
    add = parser.add_argument
    add("name", nargs="?", help="name of a new or saved conversation (default: a new one named by the time)")
    add("--resume", action="store_true", help="resume the latest conversation")
    _add_model(parser)
    _add_replies(parser)
    add("--input", type=Path, default=Path("input"), metavar="DIR", help="also search for pictures here")
    add("--output", type=Path, default=Path("output"), metavar="DIR", help=f"conversations are saved in DIR/{FOLDER}")


def _add_model(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--checkpoint",
        metavar="NAME",
        help="a folder in MODELS/uniworld, MODELS/diffusers or MODELS/unipic (default: nano, or that of the conversation)",
    )
    add("--flux", metavar="NAME", help="a folder in MODELS/diffusers (default: auto, which matches the checkpoint)")
    add("--siglip", metavar="NAME", help="a folder in MODELS/siglip (default: auto)")
    add(
        "--lora",
        action="append",
        default=[],
        metavar=METAVAR,
        help=f"a LoRA for the pictures, a file or a name in MODELS/loras; {STRENGTH_HELP}",
    )
    add("--dtype", choices=DTYPES, default=DTYPES[0], help="compute dtype")
    add(
        "--storage",
        choices=STORAGES,
        default=STORAGES[0],
        help="how weights are stored in memory (default: as in the files)",
    )
    add(
        "--offload",
        choices=OFFLOADS,
        default=OFFLOADS[0],
        help="stream parts that do not fit the GPU block by block (default: if necessary)",
    )
    add(
        "--compile",
        choices=COMPILES,
        default=COMPILES[0],
        help=f"compile the DiT's blocks with torch.compile (default: {COMPILES[0]})",
    )
    add(
        "--attention",
        choices=ATTENTIONS,
        default=ATTENTIONS[0],
        help=f"implementation of attention in the DiT (default: {ATTENTIONS[0]})",
    )
    add("--device", default="default", help="device that the model runs on")


def _add_replies(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--seed",
        type=whole_number(0, MAX_SEED),
        default=0,
        help="seed of the pictures (default: 0; /seed changes it)",
    )
    add(
        "--steps",
        type=whole_number(1, 1000),
        help="sampling steps (default: that of the model's family, such as 28 for UniWorld-V1)",
    )
    add(
        "--guidance",
        type=finite_number(0, 100),
        help="guidance (default: that of the model's family, such as 3.5 for UniWorld-V1)",
    )
    add(
        "--solver",
        choices=SOLVERS,
        default=Settings.solver,
        help=f"solver; dpm2 needs fewer steps (default: {Settings.solver})",
    )
    add(
        "--cache",
        choices=CACHES,
        default=Settings.cache,
        help=f"skip blocks that hardly change a step's result (default: {Settings.cache})",
    )
    add(
        "--area-side",
        type=whole_number(0, 4096),
        default=0,
        metavar="PIXELS",
        help="area of the pictures, as the side of a square (default: the model's)",
    )
    add("--t5", action="store_true", help="also encode the instruction with T5 and CLIP, as UniWorld-V1 can")
    add(
        "--max-new-tokens",
        type=whole_number(1, 8192),
        default=Settings.max_new_tokens,
        help="maximum length of an answer in tokens",
    )
    add(
        "--memory",
        choices=MEMORIES,
        help="context of a message: the whole conversation, or only the latest picture (default: conversation; picture "
        "for models of single instructions, such as nano and UniPic)",
    )


def read_settings(arguments: argparse.Namespace) -> Settings:
    """Return the settings of the replies. Raises UniWorldError if an option is invalid."""
    settings = Settings(
        seed=arguments.seed,
        steps=arguments.steps,
        guidance=arguments.guidance,
        solver=arguments.solver,
        cache=arguments.cache,
        area_side=arguments.area_side,
        t5=arguments.t5,
        max_new_tokens=arguments.max_new_tokens,
        loras=tuple(arguments.lora),
    )
    if 0 < arguments.area_side < 64:
        raise UniWorldError(f"--area-side is {arguments.area_side}; it must be 64 to 4096, or 0 for the model's own.")
    if arguments.device not in host.current().devices():
        raise UniWorldError(
            f"--device is {arguments.device!r}; available devices: {', '.join(host.current().devices())}."
        )
    return settings


def memory_of(chosen: str | None, vlm: VLMPart) -> str:
    """Return the context of a message. Raises UniWorldError if the model cannot read what was chosen."""
    if vlm.family.many_turns:
        return default_memory(vlm.scope) if chosen is None else chosen
    if chosen == MEMORIES[0]:
        raise UniWorldError(
            f"--memory is {chosen}, and {vlm.family.name} reads single instructions: use --memory {MEMORIES[1]}."
        )
    return MEMORIES[1]


def default_memory(scope: Scope | None) -> str:
    """Return the whole conversation, or only the picture for a model that was not trained on several turns."""
    return MEMORIES[0] if scope is None or scope.turns > 2 else MEMORIES[1]


def lora_file_of(name: str) -> Path:
    """Return a LoRA by its path, or by its name in the models' folders. Raises UniWorldError if there is neither."""
    path, names = folders.expand_path(name), lora_names()
    if path.exists():
        return path
    if name not in names:
        raise UniWorldError(
            f"--lora is {name!r}, which is neither a file nor a name in models/loras ({', '.join(names) or 'which is empty'})."
        )
    return lora_file(name)
