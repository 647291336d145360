"""`uniworld eval`: examine a checkpoint, check the paper's claims."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...command_line import DONE
from ...uniworld_core.errors import UniWorldError
from ...uniworld_core.families.uniworld_v1.painting import GUIDANCE, STEPS
from .command import Bars, Command

DTYPES = ("float32", "bfloat16")


def _add_shapes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", default="nano", metavar="DIR", help="a checkpoint folder, or the name of a shipped model (nano)"
    )
    parser.add_argument(
        "--flux",
        metavar="DIR",
        help="its FLUX folder or that of a shipped model by name; a shipped checkpoint has its own",
    )
    parser.add_argument("--siglip", metavar="DIR", help="its SigLIP folder, in the same way")
    parser.add_argument("--count", type=int, default=40, metavar="N", help="tasks of each kind (40)")
    parser.add_argument("--kinds", metavar="A,B", help="kinds of tasks (all)")
    parser.add_argument("--steps", type=int, default=STEPS, metavar="N", help=f"sampling steps ({STEPS})")
    parser.add_argument(
        "--guidance", type=float, default=GUIDANCE, metavar="X", help=f"FLUX's embedded guidance ({GUIDANCE})"
    )
    parser.add_argument("--batch", type=int, default=20, metavar="N", help="tasks done at once (20)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the tasks and the paintings (0)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="the numbers' type (float32)")
    parser.add_argument("--device", default="auto", metavar="NAME", help="cpu, cuda, or auto for a GPU if there is one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there as well")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="write the paintings there as one PNG")


def _shapes(arguments: argparse.Namespace) -> int:
    import torch

    from ...uniworld_core import UniWorld
    from ..engine.precision import chosen_device
    from ..files import make_folder, write_atomic
    from ..shapes.exam.exam import examine
    from ..shapes.exam.sheet import write_sheet

    model = UniWorld.from_pretrained(
        arguments.checkpoint,
        arguments.flux,
        arguments.siglip,
        getattr(torch, arguments.dtype),
        chosen_device(arguments.device),
    )
    for option, folder in (("--flux", model.flux_folder), ("--siglip", model.siglip_folder)):
        if folder is None:
            raise UniWorldError(
                f"{arguments.checkpoint} is no shipped model and {option} is not given: name the folder, or a shipped "
                f"model to take its own ({option} nano)."
            )
    for file in (arguments.json, arguments.sheet):
        if file is not None:  # now, and not after the examination
            make_folder(file.parent)
    with Bars() as bars:
        report = examine(
            model,
            count=arguments.count,
            kinds=arguments.kinds.split(",") if arguments.kinds else None,
            seed=arguments.seed,
            steps=arguments.steps,
            guidance=arguments.guidance,
            batch=arguments.batch,
            progress=bars,
        )
    print(report.text())
    if arguments.json is not None:
        write_atomic(arguments.json, report.json().encode())
    if arguments.sheet is not None:
        write_sheet(report, arguments.sheet)
    return DONE


def _add_claims(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run",
        type=Path,
        default=Path("runs/nano"),
        metavar="DIR",
        help="a run of nano that has made its stand-ins and start (runs/nano)",
    )
    parser.add_argument(
        "--to",
        type=Path,
        default=Path("runs/claims"),
        metavar="DIR",
        help="the folder of it all (runs/claims); done steps are kept",
    )
    parser.add_argument("--seeds", default="0,1,2", metavar="A,B", help="of the branches; three decide (0,1,2)")
    parser.add_argument(
        "--trunk-steps", type=int, default=4000, metavar="N", help="of stage 2 before the variants branch off (4000)"
    )
    parser.add_argument("--steps", type=int, default=500, metavar="N", help="of each variant's branch (500)")
    parser.add_argument("--batch", type=int, metavar="N", help="samples a step (that of nano's recipe)")
    parser.add_argument("--count", type=int, default=40, metavar="N", help="held-out tasks of each kind (40)")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="trainings at the same time (1)")
    parser.add_argument("--device", default="auto", metavar="NAME", help="cpu, cuda, or auto for a GPU if there is one")


def _claims(arguments: argparse.Namespace) -> int:
    from ..shapes.claims.claims import check_claims
    from ..shapes.claims.report import PAGE

    with Bars() as bars:
        report = check_claims(
            arguments.run,
            arguments.to,
            _seeds(arguments.seeds),
            arguments.steps,
            arguments.count,
            arguments.device,
            bars,
            batch=arguments.batch,
            processes=arguments.processes,
            trunk_steps=arguments.trunk_steps,
        )
    for claim in report.claims:
        print(f"{claim.verdict}: {claim.sentence}")
    print(arguments.to / PAGE)
    return DONE


def _seeds(text: str) -> list[int]:
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError as error:
        raise UniWorldError(
            f"--seeds is {text[:80]!r}; give whole numbers with commas between, such as 0,1,2."
        ) from error


EVAL_COMMANDS: dict[tuple[str, ...], Command] = {
    ("eval", "shapes"): Command(
        "examine a model on held-out shapes, with an exact oracle",
        _add_shapes,
        _shapes,
        prints_result=lambda given: given.json is None and given.sheet is None,
    ),
    ("eval", "claims"): Command("check the paper's claims on nano, over seeds", _add_claims, _claims),
}
