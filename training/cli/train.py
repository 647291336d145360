"""`uniworld train` and its subcommands: plot, export, merge and nano."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...command_line import DONE, FAILED, whole_number
from ...streams import say
from ...uniworld_core.errors import UniWorldError, counted, shown
from .command import Bars, Command, add_config, is_rank0

if TYPE_CHECKING:
    from ..config.editr1 import EditR1Config
    from ..config.settings import Config

DTYPES = ("float32", "bfloat16", "float16")


def _add_train(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    # --folder exists because torchrun parses --run as an abbreviation of one of its own options, wherever it stands.
    parser.add_argument(
        "--folder",
        "--run",
        dest="run",
        type=Path,
        metavar="DIR",
        help="the run's folder (default: runs/NAME of the configuration); a run with a checkpoint resumes from it",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print settings, trainable parameters, memory and data, and exit"
    )


def _train(arguments: argparse.Namespace) -> int:
    from ..config.editr1 import EditR1Config
    from ..config.file import load_any

    config = load_any(arguments.config, arguments.set)
    config.check_complete()
    run = arguments.run or Path("runs") / Path(arguments.config).stem
    if isinstance(config, EditR1Config):
        return _train_editr1(config, run, arguments.dry_run)
    if arguments.dry_run:
        return _dry_run(config, run)
    from ..run.loop import train

    result = train(config, run)
    if is_rank0() and result.interrupted:
        say(f"Stopped after step {result.steps} and saved a checkpoint; run the same command again to resume.")
    elif is_rank0():
        skipped = f", {counted(result.skipped, 'bad sample')} skipped (see skipped.jsonl)" if result.skipped else ""
        finished = counted(result.steps, "step") + skipped
        say(f"Finished {finished}. Export a checkpoint: uniworld train export {run} FOLDER")
    return FAILED if result.interrupted else DONE


def _train_editr1(config: EditR1Config, run: Path, dry_run: bool) -> int:
    from ..editr1.export import check_exportable
    from ..editr1.loop import open_base_model, train_editr1
    from ..editr1.summary import summarize_editr1
    from ..engine.precision import resolve_device
    from ..shapes.editr1.provide import providers

    if dry_run:
        import torch

        known = providers()
        known.check_reward(config)
        check_exportable(config)
        prompts = known.open_prompts(config)
        model = open_base_model(config, torch.device(resolve_device(config.run.device)))
        summary = summarize_editr1(config, model, prompts)
        if is_rank0():
            print(summary)
        return DONE
    result = train_editr1(config, run, providers())
    if is_rank0() and result.idle:
        say(
            f"No group passed the filter in {counted(result.idle, 'epoch')}, which changed nothing: see `trained` in "
            "metrics.jsonl. If this is frequent, choose harder or easier prompts, or other thresholds in the table advantage."
        )
    if is_rank0() and result.interrupted:
        say(f"Stopped after epoch {result.steps} and saved a checkpoint; run the same command again to resume.")
    elif is_rank0():
        skipped = f", {counted(result.skipped, 'bad sample')} replaced (see skipped.jsonl)" if result.skipped else ""
        finished = counted(result.steps, "epoch") + skipped
        say(f"Finished {finished}. Export the result: uniworld train export {run} FOLDER")
    return FAILED if result.interrupted else DONE


def _dry_run(config: Config, run: Path) -> int:
    from ..run.setup import open_samples
    from ..run.summary import summarize

    summary = summarize(config, run, open_samples(config), processes=int(os.environ.get("WORLD_SIZE", "1")))
    if is_rank0():
        print(summary.text())
    return DONE


def _add_plot(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder; several runs are compared")
    parser.add_argument("--to", type=Path, metavar="FILE", help="output PNG (default: curves.png in the first run)")


def _plot(arguments: argparse.Namespace) -> int:
    from ..run.plot import plot

    to = arguments.to or arguments.runs[0] / "curves.png"
    names = [run.resolve().name for run in arguments.runs]
    # Runs of the same name in different folders are labelled with their full paths.
    labels = [name if names.count(name) == 1 else str(run) for name, run in zip(names, arguments.runs)]
    plot(dict(zip(labels, arguments.runs)), to)
    print(to)
    return DONE


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument("to", type=Path, metavar="TO", help="checkpoint folder to create")
    parser.add_argument(
        "--step", type=whole_number(), metavar="N", help="step of a saved checkpoint (default: the newest)"
    )
    parser.add_argument("--raw", action="store_true", help="export the raw weights instead of their EMA")
    _add_dtype(parser, "dtype of the weights (default: that of the run's starting checkpoint)", None)


def _export(arguments: argparse.Namespace) -> int:
    from ..config.editr1 import EditR1Config
    from ..editr1.export import export_editr1
    from ..publish.export import export_run
    from ..run.folder import read_any_config

    with_rewards = isinstance(read_any_config(arguments.run), EditR1Config)
    export = export_editr1 if with_rewards else export_run
    export(arguments.run, arguments.to, arguments.step, arguments.raw, _dtype(arguments.dtype))
    print(arguments.to)
    return DONE


def _add_merge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoints",
        nargs="+",
        metavar="CHECKPOINT",
        help="two or more folders or names of shipped models (write ./nano for a folder named nano)",
    )
    parser.add_argument("to", type=Path, metavar="TO", help="checkpoint folder to create")
    parser.add_argument("--shares", metavar="X,Y", help="weight of each checkpoint, such as 0.6,0.4 (default: equal)")


def _merge(arguments: argparse.Namespace) -> int:
    from ..publish.merge import merge

    merge(arguments.checkpoints, arguments.to, _shares(arguments.shares))
    print(arguments.to)
    return DONE


def _shares(text: str | None) -> list[float] | None:
    try:
        return None if text is None else [float(share) for share in text.split(",")]
    except ValueError as error:
        raise UniWorldError(f"--shares is {shown(text)}; give numbers separated by commas, such as 0.6,0.4.") from error


def _add_nano(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--folder",
        "--run",
        dest="run",
        type=Path,
        default=Path("runs/nano"),
        metavar="DIR",
        help="output folder; finished steps in it are kept (default: runs/nano)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="train for a few minutes: a weak model, but better than an untrained one"
    )
    parser.add_argument("--device", default="auto", metavar="NAME", help="cpu, cuda, or auto for a GPU if there is one")


def _nano(arguments: argparse.Namespace) -> int:
    from ..shapes.nano.nano import train_nano

    with Bars() as bars:
        made = train_nano(arguments.run, arguments.quick, arguments.device, bars)
    print(made)
    return DONE


def _add_dtype(parser: argparse.ArgumentParser, text: str, default: str | None) -> None:
    parser.add_argument("--dtype", choices=DTYPES, default=default, help=text)


def _dtype(name: str | None) -> Any:
    import torch

    return None if name is None else getattr(torch, name)


TRAIN_COMMANDS: dict[tuple[str, ...], Command] = {
    ("train",): Command("train a model, or resume a run", _add_train, _train, lambda arguments: arguments.dry_run),
    ("train", "plot"): Command("plot the metrics of runs", _add_plot, _plot),
    ("train", "export"): Command("export a run's weights as a checkpoint for the nodes", _add_export, _export),
    ("train", "merge"): Command("merge checkpoints by averaging their weights", _add_merge, _merge),
    ("train", "nano"): Command("train the small model of shapes from scratch", _add_nano, _nano),
}
