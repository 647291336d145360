"""The command `uniworld bench`: plan, generate, judge and score, each resumable and a command of its own."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, TextIO

from ....command_line import DONE, FAILED
from ....streams import say
from ....uniworld_core.errors import UniWorldError
from ....uniworld_core.files import sha256_file
from ....uniworld_core.json_text import dumps
from ..registry.registry import Registry
from .compare import compare
from .generate import collect, write_rows
from .items import SuiteOptions
from .judge_step import JudgeSettings, judge_run, read_judge, results_to_judge
from .judges import NO_JUDGE, add_judge_arguments, check_judge, choose_judge
from .judging.cost import parse_price
from .judging.replies import read_replies
from .judging.run import JudgeLimits
from .judging.vqa import VQA, question_line
from .outcome import Mode
from .page import page, sheet
from .run_folder import BenchPlan, Digests, Made, RunFolder, find_made, make_plan
from .score_step import ScoredResult, comparable, make_table, result_json, score_results
from .suites.table import SUITES
from .text_table import difference_text, table_text

_MODES: tuple[Mode, Mode] = ("published", "strict")


class BatchPlace(Protocol):
    """Where the pictures are made: this process, a Ray cluster or servers."""

    @property
    def registry(self) -> Registry: ...

    def run(self, workflow: Path, rows: Path, results: Path, output: Path) -> int:
        """Run a batch and return its exit code."""


# Opens the place that the command line describes.
OpenPlace = Callable[[Path], AbstractContextManager[BatchPlace]]


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
        type=_positive,
        default=10,
        metavar="N",
        help="number of items of each kind, for shapes (default: 10)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder of the run; created if missing")
    parser.add_argument("--split", default="", help="the subset of a benchmark that has several, such as a language")
    parser.add_argument("--limit", type=_positive, metavar="N", help="measure a fixed random subset of N items")
    parser.add_argument(
        "--seed", type=_whole, default=42, metavar="N", help="the pictures' seeds are derived from it (default: 42)"
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
    parser.add_argument("--retries", type=_whole, default=2, metavar="N", help="retries of a row whose worker died")
    parser.add_argument("--retry-failed", action="store_true", help="also run rows that are recorded as failed")
    parser.add_argument("--ray", metavar="ADDRESS", help='run on this Ray cluster; "local" starts one on this machine')
    parser.add_argument("--workers", type=_positive, metavar="N", help="number of workers on the cluster")
    parser.add_argument("--server", action="append", default=[], metavar="URL", help="run on these servers")
    parser.add_argument("--input", type=Path, default=Path("input"), metavar="DIR", help="folder of input pictures")


def _add_judge(parser: argparse.ArgumentParser) -> None:
    add_judge_arguments(parser)
    parser.add_argument(
        "--temperature", type=float, metavar="T", help="temperature of the judge (default: as published)"
    )
    parser.add_argument("--parallel", type=_positive, default=4, metavar="N", help="requests at a time (default: 4)")
    parser.add_argument("--price", metavar="IN,OUT", help="price of a million tokens of input and of output")
    parser.add_argument("--max-cost", type=float, metavar="COST", help="stop before the replies cost more than this")
    parser.add_argument("--timeout", type=float, default=180.0, metavar="S", help="seconds to wait for a reply")
    parser.add_argument(
        "--retry-wait", type=float, default=2.0, metavar="S",
        help="seconds before a failed request is sent again; doubled each time (default: 2)",
    )  # fmt: skip
    parser.add_argument(
        "--patience", type=float, default=1800.0, metavar="S",
        help="seconds at rate limits without a reply after which the run stops (default: 1800)",
    )  # fmt: skip


def _add_scoring(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--scoring", choices=_MODES, default="published",
        help="read replies as the published scorer does, or only in the requested format (default: published)",
    )  # fmt: skip


def _add_partial(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--partial", action="store_true", help="compute overall scores although results are missing")


def _add_score(parser: argparse.ArgumentParser) -> None:
    _add_scoring(parser)
    _add_partial(parser)


def _whole(text: str) -> int:
    if not text.isdecimal() or len(text) > 15:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of 0 or more")
    return int(text)


def _positive(text: str) -> int:
    number = _whole(text)
    if number == 0:
        raise argparse.ArgumentTypeError("it must be at least 1")
    return number


def run(arguments: argparse.Namespace, out: TextIO, open_place: OpenPlace) -> int:
    """Run the command and return the exit code: 0 if nothing is missing.

    Args:
        out: the stream for the result.
        open_place: opens the place where a workflow runs, with a folder for its output.

    Raises:
        UniWorldError: a step cannot run. What the earlier ones did is kept.
    """
    step = arguments.step
    if step == "list":
        return _list(arguments, out)
    if step == "compare":
        return _compare(arguments, out)
    _check(arguments)
    run = RunFolder(arguments.out)
    whole = step in SUITES
    if whole or step == "plan":
        options = SuiteOptions(arguments.split, arguments.count)
        plan = make_plan(
            arguments.benchmark, arguments.data, options, arguments.limit, arguments.seed, run, arguments.partial
        )
        run.write_plan(plan)
        if not whole:
            return _planned(arguments, out, run, plan)
    else:
        plan = run.plan()
    code = DONE
    if step == "generate" or (whole and (arguments.workflow or arguments.pictures)):
        code = _generate(arguments, out, run, plan, open_place, whole)
    digest = Digests()
    if step == "judge" or (whole and arguments.judge != NO_JUDGE):
        code = max(code, _judge(arguments, out, run, plan, digest, whole))
    if whole or step in ("score", "report"):
        code = max(code, _score(arguments, out, run, plan, digest))
    return code


def _check(arguments: argparse.Namespace) -> None:
    """Check the options before anything is read or paid for."""
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


def _line(out: TextIO, event: str, **values: Any) -> None:
    print(dumps({"event": event, **values}), file=out, flush=True)


def _planned(arguments: argparse.Namespace, out: TextIO, run: RunFolder, plan: BenchPlan) -> int:
    text = f"{len(plan.items)} of {plan.total} items of {plan.suite.title} ({plan.edition}); the plan is '{run.plan_file}'."
    if arguments.json:
        _line(out, "result", message=text, items=len(plan.items), total=plan.total, missing=plan.missing)
    else:
        print(text, file=out)
    return DONE


def _generate(
    arguments: argparse.Namespace, out: TextIO, run: RunFolder, plan: BenchPlan, open_place: OpenPlace, whole: bool
) -> int:
    if arguments.pictures is not None:
        run.use_pictures(arguments.pictures)
    else:
        with open_place(run.output) as place:
            write_rows(run, plan, arguments.workflow, place.registry, arguments.bind)
            try:
                place.run(run.workflow, run.rows, run.results, run.output)
            finally:
                failed = collect(run, plan)
            for row, reason in list(failed.items())[:10]:
                say(f"Row {row}: {reason}")
    made = find_made(run, plan)
    text = f"{len(made.pictures)} of {len(plan.results)} pictures are in '{run.pictures}'."
    if made.missing:
        (item, _), reason = next(iter(made.missing.items()))
        text += f" {len(made.missing)} are missing, such as that of item {item}: {reason}."
    if arguments.json and not whole:
        _line(out, "result", message=text, made=len(made.pictures), missing=len(made.missing))
    else:
        say(text)
    return FAILED if made.missing else DONE


def _judge(
    arguments: argparse.Namespace, out: TextIO, run: RunFolder, plan: BenchPlan, digest: Digests, whole: bool
) -> int:
    made = find_made(run, plan)
    if arguments.judge == VQA and plan.suite.vqa is not None and arguments.vqa is arguments.vqa_command is None:
        return _write_questions(arguments, out, run, plan, made, whole)
    chosen = choose_judge(arguments, run, plan)
    settings = JudgeSettings(chosen.model, chosen.server, arguments.temperature, arguments.scoring)
    price = None if arguments.price is None else parse_price(arguments.price)
    limits = JudgeLimits(
        chosen.parallel or arguments.parallel,
        wait=arguments.retry_wait,
        patience=arguments.patience,
        price=price,
        max_cost=arguments.max_cost,
        max_failures=chosen.max_failures or JudgeLimits.max_failures,
    )
    on_progress = (lambda values: _line(out, "judged", **values)) if arguments.json else None
    outcome = judge_run(run, plan, made, chosen.open, settings, limits, digest, on_progress)
    text = f"{outcome.asked} replies were recorded in '{run.replies}'."
    if outcome.cost is not None:
        text += f" All replies of the run cost {outcome.cost:.4f}."
    if outcome.failed:
        place, reason = next(iter(outcome.failed.items()))
        text += (
            f" {len(outcome.failed)} results could not be judged, such as {place}: {reason}. Run the same command again to "
            "ask for them."
        )
    if arguments.json and not whole:
        _line(out, "result", message=text, asked=outcome.asked, failed=outcome.failed, cost=outcome.cost)
    else:
        say(text)
    return FAILED if outcome.failed or made.missing else DONE


def _write_questions(
    arguments: argparse.Namespace, out: TextIO, run: RunFolder, plan: BenchPlan, made: Made, whole: bool
) -> int:
    """Write the questions for a VQA model that runs elsewhere."""
    subjects = results_to_judge(plan, made, JudgeSettings("", VQA, None, arguments.scoring))
    lines = [question_line(subject.item, ask) for subject in subjects for ask in subject.asks({})]
    path = run.folder / "questions.jsonl"
    run.write(path, "".join(f"{line}\n" for line in lines).encode())
    text = (
        f"{len(lines)} questions are in '{path}'. Add \"answer\" to each line, then run `uniworld bench judge {run.folder} "
        "--judge vqa --vqa FILE --judge-model NAME`."
    )
    if arguments.json and not whole:
        _line(out, "result", message=text, questions=len(lines))
    else:
        say(text)
    return FAILED if made.missing else DONE


def _score(arguments: argparse.Namespace, out: TextIO, run: RunFolder, plan: BenchPlan, digest: Digests) -> int:
    made, settings, replies = find_made(run, plan), read_judge(run), read_replies(run.replies)
    # Without a model's replies there is only one way to read them.
    others = () if plan.suite.exact or plan.suite.by_detector else _MODES
    modes: list[Mode] = [arguments.scoring, *(mode for mode in others if mode != arguments.scoring)]
    scored = {mode: score_results(plan, made, settings, replies, mode, digest) for mode in modes}
    tables = [make_table(plan.suite, scored[mode], mode, arguments.partial) for mode in modes]
    workflow = sha256_file(run.workflow) if run.workflow.is_file() else None
    result = result_json(plan, settings, replies, tables, scored, workflow)
    run.write_json(run.result, result)
    judge = None if settings is None else settings.model
    if settings is not None and plan.suite.vqa is not None and settings.server != VQA:
        judge = f"{settings.model} in place of the published VQA model; not comparable with published results"
    text = table_text(plan, judge, tables, comparable(plan, settings, tables[0]))
    chosen = scored[modes[0]]
    if arguments.step != "score":
        _write_report(run, plan, text, chosen, made.pictures)
    _say_reasons(chosen)
    if arguments.json:
        _line(out, "result", message=f"The result is '{run.result}'.", result={**result, "results": str(run.result)})
    else:
        print(text, file=out)
        written = [run.result] if arguments.step == "score" else [run.result, run.page, run.sheet]
        say(f"Written: {', '.join(str(path) for path in written)}")
    return DONE if tables[0].complete else FAILED


def _write_report(
    run: RunFolder,
    plan: BenchPlan,
    text: str,
    scored: list[ScoredResult],
    pictures: dict[tuple[str, int], Path],
) -> None:
    html = page(f"{plan.suite.title}: {run.folder.name}", text, scored, pictures, plan.suite.columns)
    run.write(run.page, html.encode("utf-8", "replace"))
    run.write(run.sheet, sheet(scored, plan.suite.main, pictures))


def _say_reasons(scored: list[ScoredResult]) -> None:
    """Print how many results have no score, by state, with an example of each."""
    for state in ("missing", "open", "unscored"):
        ones = [one for one in scored if one.state == state]
        if ones:
            say(f"{len(ones)} of {len(scored)} results are {state}, such as item {ones[0].item.id}: {ones[0].reason}.")


def _list(arguments: argparse.Namespace, out: TextIO) -> int:
    if arguments.json:
        _line(out, "result", benchmarks=[{"name": name, "about": one.about} for name, one in SUITES.items()])
        return DONE
    width = max(map(len, SUITES))
    for name, suite in SUITES.items():
        splits = f"; splits: {', '.join(suite.splits)}" if suite.splits else ""
        print(f"{name:<{width}}  {suite.title}: {suite.about}{splits}", file=out)
    return DONE


def _compare(arguments: argparse.Namespace, out: TextIO) -> int:
    first, second = arguments.runs
    found, count = compare(first, second)
    if arguments.json:
        values = {name: {"difference": one.value, "low": one.low, "high": one.high} for name, one in found.items()}
        print(json.dumps({"event": "result", "shared": count, "differences": values}), file=out)
    else:
        print(difference_text(found, count, str(first), str(second)), file=out)
    return DONE
