"""The options of `uniworld bench`, and the checks that need nothing but them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from ....command_line import finite_number, whole_number
from ....uniworld_core.errors import UniWorldError
from .judges import add_judge_arguments, check_judge, check_kind
from .scoring.outcome import MODES
from .suites.table import SUITES

_MANY = 1e9  # upper limit of seconds, and of costs in any currency


def add_arguments(parser: argparse.ArgumentParser, common: Callable[[argparse.ArgumentParser], None]) -> None:
    """Add the subcommands.

    Args:
        common: adds the options that all commands share.
    """
    steps = parser.add_subparsers(dest="step", required=True, metavar="NAME | STEP")

    def add(name: str, text: str, *options: Callable[[argparse.ArgumentParser], None]) -> argparse.ArgumentParser:
        step: argparse.ArgumentParser = steps.add_parser(name, help=text, description=text)
        for one in options:
            one(step)
        return step

    for name, suite in SUITES.items():
        text = f"{suite.title}: all steps"
        one = add(name, text, _add_plan, _add_pictures, _add_generate, _add_judge, _add_score, common)
        one.set_defaults(benchmark=name)
    plan = add("plan", "read the items of a benchmark", _add_plan, _add_partial, common)
    plan.add_argument("benchmark", choices=list(SUITES), help="name of the benchmark")
    add("generate", "make the pictures of a run", _add_run, _add_pictures, _add_generate, common)
    add("judge", "ask the judge about the pictures of a run", _add_run, _add_judge, _add_scoring, common)
    add("score", "compute the scores of a run; needs no network", _add_run, _add_score, common)
    add("report", "write report.html and sheet.png of a run", _add_run, _add_score, common)
    both = add("compare", "compare two runs of the same benchmark", common)
    both.add_argument("runs", nargs=2, type=Path, metavar="RUN", help="folder of a run")
    add("list", "list the benchmarks", common)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="RUN", help="folder of the run")


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, action="append", default=[], metavar="DIR", help="folder of the download")
    parser.add_argument(
        "--count",
        type=whole_number(1),
        default=10,
        metavar="N",
        help="number of items of each kind, for shapes (default: 10)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder of the run; created if missing")
    parser.add_argument("--split", default="", help="the subset of a benchmark that has several, such as a language")
    parser.add_argument("--limit", type=whole_number(1), metavar="N", help="measure a fixed random subset of N items")
    parser.add_argument(
        "--seed",
        type=whole_number(0, 10**15),
        default=42,
        metavar="N",
        help="the pictures' seeds are derived from it (default: 42)",
    )


def _add_pictures(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workflow", metavar="FILE", help="a workflow file, or the name of a shipped workflow")
    parser.add_argument(
        "--pictures",
        type=Path,
        metavar="DIR",
        help="measure pictures made elsewhere, named as the published scorer expects",
    )


def _add_generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--bind", action="append", default=[], metavar="ROLE=TARGET",
        help="where the workflow takes prompt, image or seed: prompt=NODE.input, image=NODE, seed=NODE.input",
    )  # fmt: skip
    parser.add_argument(
        "--retries", type=whole_number(), default=2, metavar="N", help="retries of a row whose worker died"
    )
    parser.add_argument("--retry-failed", action="store_true", help="also run rows that are recorded as failed")
    parser.add_argument("--ray", metavar="ADDRESS", help='run on this Ray cluster; "local" starts one on this machine')
    parser.add_argument("--workers", type=whole_number(1), metavar="N", help="number of workers on the cluster")
    parser.add_argument("--server", action="append", default=[], metavar="URL", help="run on these servers")
    parser.add_argument("--input", type=Path, default=Path("input"), metavar="DIR", help="folder of input pictures")


def _add_judge(parser: argparse.ArgumentParser) -> None:
    add_judge_arguments(parser)
    parser.add_argument(
        "--temperature",
        type=finite_number(0, 100),
        metavar="T",
        help="temperature of the judge (default: as published)",
    )
    parser.add_argument(
        "--parallel", type=whole_number(1), default=4, metavar="N", help="requests at a time (default: 4)"
    )
    parser.add_argument("--price", metavar="IN,OUT", help="price of a million tokens of input and of output")
    parser.add_argument(
        "--max-cost", type=finite_number(0, _MANY), metavar="COST", help="stop before the replies cost more than this"
    )
    parser.add_argument(
        "--timeout", type=finite_number(0.001, _MANY), default=180.0, metavar="S", help="seconds to wait for a reply"
    )
    parser.add_argument(
        "--retry-wait", type=finite_number(0, _MANY), default=2.0, metavar="S",
        help="seconds before a failed request is sent again; doubled each time (default: 2)",
    )  # fmt: skip
    parser.add_argument(
        "--patience", type=finite_number(0, _MANY), default=1800.0, metavar="S",
        help="seconds at rate limits without a reply after which the run stops (default: 1800)",
    )  # fmt: skip


def _add_scoring(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--scoring", choices=MODES, default="published",
        help="read replies as the published scorer does, or only in the requested format (default: published)",
    )  # fmt: skip


def _add_partial(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--partial", action="store_true", help="compute overall scores although results are missing")


def _add_score(parser: argparse.ArgumentParser) -> None:
    _add_scoring(parser)
    _add_partial(parser)


def check_arguments(arguments: argparse.Namespace) -> None:
    """Check the options before anything is read or paid for. Raises UniWorldError."""
    step = arguments.step
    if step == "generate" or step in SUITES:
        if arguments.workflow and arguments.pictures:
            raise UniWorldError(
                "--workflow and --pictures exclude each other: pictures are made by this run, or elsewhere."
            )
        if step == "generate" and not arguments.workflow and not arguments.pictures:
            raise UniWorldError("Pass --workflow to make the pictures, or --pictures if they exist.")
        if arguments.workers is not None and arguments.ray is None:
            raise UniWorldError("--workers needs a Ray cluster. Add --ray local for workers on this machine.")
        if arguments.server and arguments.ray is not None:
            raise UniWorldError("--server and --ray exclude each other: a batch runs on servers or on a Ray cluster.")
    if step == "judge" or step in SUITES:
        check_judge(arguments)
    if step in SUITES:
        check_kind(arguments.judge, SUITES[step])
