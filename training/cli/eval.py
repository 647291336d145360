"""`uniworld eval`: evaluate a checkpoint on shapes, measure a run with rewards, or check the paper's claims on nano."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...command_line import DONE, MAX_SEED, finite_number, whole_number
from ...uniworld_core.errors import UniWorldError, shown
from ...uniworld_core.families.uniworld_v1.painting import GUIDANCE, STEPS
from ...uniworld_core.loading.options import ATTENTIONS, COMPILES, STORAGES
from ...uniworld_core.lora.argument import METAVAR, STRENGTH_HELP, read_lora_argument
from ...uniworld_core.sampling.cache import CACHES
from ...uniworld_core.sampling.solvers import SOLVERS
from .command import Bars, Command

DTYPES = ("float32", "bfloat16")
_MOST = 100_000  # tasks per kind, and in a batch
_MAX_TRAINED = 2**63 - 1  # largest seed of a run


def _add_shapes(parser: argparse.ArgumentParser) -> None:
    """Add the options of `eval shapes`: the model, its sampling, and the tasks and outputs."""
    _add_model(parser)
    _add_sampling(parser)
    parser.add_argument(
        "--count", type=whole_number(1, _MOST), default=40, metavar="N", help="tasks per kind (default: 40)"
    )
    parser.add_argument("--kinds", metavar="A,B", help="kinds of tasks, separated by commas (default: all)")
    parser.add_argument(
        "--seed",
        type=whole_number(0, MAX_SEED),
        default=0,
        metavar="N",
        help="random seed of tasks and sampling (default: 0)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the scores to this JSON file")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="also write the pictures to this PNG contact sheet")


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", default="nano", metavar="DIR", help="a checkpoint folder, or the name of a shipped model (nano)"
    )
    parser.add_argument(
        "--flux",
        metavar="DIR",
        help="a FLUX.1-dev folder, or the name of a shipped model to use its own (default: the shipped checkpoint's)",
    )
    parser.add_argument(
        "--siglip",
        metavar="DIR",
        help="a SigLIP2 folder, or the name of a shipped model to use its own (default: the shipped checkpoint's)",
    )
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar=METAVAR,
        help=f"a LoRA, a safetensors file or a folder in PEFT's layout; {STRENGTH_HELP}",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="dtype of the weights (default: float32)")
    parser.add_argument(
        "--storage",
        choices=STORAGES,
        default=STORAGES[0],
        help=f"how weights are stored in memory (default: {STORAGES[0]}, as in the files)",
    )
    parser.add_argument(
        "--compile",
        choices=COMPILES,
        default=COMPILES[0],
        help=f"compile the DiT's blocks with torch.compile (default: {COMPILES[0]})",
    )
    parser.add_argument(
        "--attention",
        choices=ATTENTIONS,
        default=ATTENTIONS[0],
        help=f"implementation of attention in the DiT (default: {ATTENTIONS[0]})",
    )
    parser.add_argument("--device", default="auto", metavar="NAME", help="cpu, cuda, or auto for a GPU if there is one")


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--steps", type=whole_number(1, 1000), default=STEPS, metavar="N", help=f"sampling steps (default: {STEPS})"
    )
    parser.add_argument(
        "--guidance",
        type=finite_number(0, 100),
        default=GUIDANCE,
        metavar="X",
        help=f"FLUX's embedded guidance (default: {GUIDANCE})",
    )
    parser.add_argument("--solver", choices=SOLVERS, default=SOLVERS[0], help=f"solver (default: {SOLVERS[0]})")
    parser.add_argument(
        "--cache",
        choices=CACHES,
        default=CACHES[0],
        help=f"skip blocks that hardly change a step's result (default: {CACHES[0]})",
    )
    parser.add_argument(
        "--batch", type=whole_number(1, _MOST), default=20, metavar="N", help="tasks per batch (default: 20)"
    )


def _shapes(arguments: argparse.Namespace) -> int:
    import torch

    from ...uniworld_core import UniWorld
    from ..engine.precision import resolve_device
    from ..files import make_folder, write_atomic
    from ..shapes.exam.exam import examine
    from ..shapes.exam.sheet import write_sheet

    model = UniWorld.from_pretrained(
        arguments.checkpoint,
        arguments.flux,
        arguments.siglip,
        getattr(torch, arguments.dtype),
        resolve_device(arguments.device),
        arguments.storage,
        compile=arguments.compile,
        attention=arguments.attention,
    )
    for option, folder in (("--flux", model.flux_folder), ("--siglip", model.siglip_folder)):
        if folder is None:
            raise UniWorldError(
                f"{arguments.checkpoint} is not a shipped model and {option} is not given: give the folder, or the name "
                f"of a shipped model to use its own ({option} nano)."
            )
    for lora in map(read_lora_argument, arguments.lora):
        model.load_lora(lora.name, lora.strength)
    for file in (arguments.json, arguments.sheet):
        if file is not None:  # fail now, not after a long evaluation
            make_folder(file.parent)
    with Bars() as bars:
        report = examine(
            model,
            count=arguments.count,
            kinds=arguments.kinds.split(",") if arguments.kinds else None,
            seed=arguments.seed,
            steps=arguments.steps,
            guidance=arguments.guidance,
            solver=arguments.solver,
            cache=arguments.cache,
            batch=arguments.batch,
            progress=bars,
        )
    print(report.text())
    if arguments.json is not None:
        write_atomic(arguments.json, report.json().encode())
    if arguments.sheet is not None:
        write_sheet(report, arguments.sheet)
    return DONE


def _add_editr1(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, such as runs/nano_editr1")
    parser.add_argument(
        "--step", type=whole_number(), metavar="N", help="epoch of a saved checkpoint (default: the newest)"
    )
    parser.add_argument("--raw", action="store_true", help="measure the raw weights instead of their EMA")
    parser.add_argument(
        "--count", type=whole_number(1, _MOST), default=200, metavar="N", help="held-out tasks per kind (default: 200)"
    )
    parser.add_argument(
        "--kinds", metavar="A,B", help="kinds of tasks, separated by commas, or all (default: those of the run)"
    )
    parser.add_argument(
        "--aims",
        metavar="A,B",
        help="kinds whose mean is the result (default: those that the run trains on without preserving them)",
    )
    parser.add_argument("--samplers", metavar="A,B", help="such as euler-28,dpm2-6 (default: both)")
    parser.add_argument("--oracle-only", action="store_true", help="leave out the run's other rewards")
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="the report (default: REPORT.md in the run's folder)"
    )


def _editr1(arguments: argparse.Namespace) -> int:
    from ..files import write_atomic
    from ..shapes.editr1.measure import SAMPLERS, measure
    from ..shapes.editr1.report import report
    from ..shapes.tasks.tasks import PAINTED_KINDS

    names = [sampler.name for sampler in SAMPLERS]
    chosen = arguments.samplers.split(",") if arguments.samplers else names
    if not set(chosen) <= set(names):
        raise UniWorldError(f"--samplers is '{arguments.samplers}'; give some of {', '.join(names)}.")
    kinds: list[str] | None = arguments.kinds.split(",") if arguments.kinds else None
    if arguments.kinds == "all":
        kinds = list(PAINTED_KINDS)
    aims = arguments.aims.split(",") if arguments.aims else None
    if aims and not set(aims) <= set(PAINTED_KINDS):
        raise UniWorldError(f"--aims is '{arguments.aims}'; give some of {', '.join(PAINTED_KINDS)}.")
    with Bars() as bars:
        weights = measure(
            arguments.run,
            arguments.step,
            arguments.raw,
            arguments.count,
            kinds,
            [sampler for sampler in SAMPLERS if sampler.name in chosen],
            progress=bars,
            oracle_only=arguments.oracle_only,
        )
    to = arguments.report or arguments.run / "REPORT.md"
    write_atomic(to, report(arguments.run, weights, "uniworld eval editr1", aims).encode())
    print(to)
    return DONE


def _add_claims(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run",
        type=Path,
        default=Path("runs/nano"),
        metavar="DIR",
        help="a run of `uniworld train nano` with its stand-ins and starting checkpoint (default: runs/nano)",
    )
    parser.add_argument(
        "--to",
        type=Path,
        default=Path("runs/claims"),
        metavar="DIR",
        help="output folder; finished steps in it are kept (default: runs/claims)",
    )
    parser.add_argument(
        "--seeds", default="0,1,2", metavar="A,B", help="seeds of each variant; a verdict needs three (default: 0,1,2)"
    )
    parser.add_argument(
        "--trunk-steps",
        type=whole_number(1),
        default=4000,
        metavar="N",
        help="stage 2 steps before the variants branch off (default: 4000)",
    )
    parser.add_argument(
        "--steps", type=whole_number(1), default=500, metavar="N", help="steps of each variant (default: 500)"
    )
    parser.add_argument(
        "--batch", type=whole_number(1, _MOST), metavar="N", help="batch size (default: that of nano's recipe)"
    )
    parser.add_argument(
        "--count", type=whole_number(1, _MOST), default=40, metavar="N", help="held-out tasks per kind (default: 40)"
    )
    parser.add_argument(
        "--processes",
        type=whole_number(1, 1000),
        default=1,
        metavar="N",
        help="training processes in parallel (default: 1)",
    )
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
        return [whole_number(0, _MAX_TRAINED)(seed.strip()) for seed in text.split(",")]
    except argparse.ArgumentTypeError as error:
        raise UniWorldError(
            f"--seeds is {shown(text)}; give integers from 0 to 2**63 - 1, separated by commas, such as 0,1,2."
        ) from error


EVAL_COMMANDS: dict[tuple[str, ...], Command] = {
    ("eval", "shapes"): Command(
        "evaluate a model on held-out shapes, scored by an exact oracle",
        _add_shapes,
        _shapes,
        prints_result=lambda arguments: arguments.json is None and arguments.sheet is None,
    ),
    ("eval", "editr1"): Command("measure what a run with rewards on shapes has gained", _add_editr1, _editr1),
    ("eval", "claims"): Command("check the paper's claims on nano over several seeds", _add_claims, _claims),
}
