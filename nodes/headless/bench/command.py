"""The command `uniworld bench`: plan, generate, judge and score, each resumable and a command of its own."""

from __future__ import annotations

import argparse
import json
from typing import TextIO

from ....command_line import DONE
from .arguments import check_arguments
from .compare import compare
from .items import SuiteOptions
from .judges import NO_JUDGE, check_kind, check_ready
from .plan import BenchPlan, make_plan
from .report.text_table import difference_text
from .run_folder import Digests, RunFolder
from .steps import OpenPlace, generate, judge, print_event, score
from .suites.table import SUITES


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
    check_arguments(arguments)
    run = RunFolder(arguments.out)
    whole = step in SUITES
    if whole:
        check_ready(arguments, run)
    if whole or step == "plan":
        options = SuiteOptions(arguments.split, arguments.count)
        plan = make_plan(
            arguments.benchmark,
            arguments.data,
            options,
            arguments.limit,
            arguments.seed,
            run.sources,
            arguments.partial,
        )
        run.write_plan(plan)
        if not whole:
            return _planned(arguments, out, run, plan)
    else:
        plan = run.plan()
        if step == "judge":
            check_kind(arguments.judge, plan.suite)
            check_ready(arguments, run)
    code = DONE
    if step == "generate" or (whole and (arguments.workflow or arguments.pictures)):
        code = generate(arguments, out, run, plan, open_place, whole)
    digest = Digests()
    if step == "judge" or (whole and arguments.judge != NO_JUDGE):
        code = max(code, judge(arguments, out, run, plan, digest, whole))
    if whole or step in ("score", "report"):
        code = max(code, score(arguments, out, run, plan, digest))
    return code


def _planned(arguments: argparse.Namespace, out: TextIO, run: RunFolder, plan: BenchPlan) -> int:
    text = f"{len(plan.items)} of {plan.total} items of {plan.suite.title} ({plan.edition}); the plan is '{run.plan_file}'."
    if arguments.json:
        print_event(out, "result", message=text, items=len(plan.items), total=plan.total, missing=plan.missing)
    else:
        print(text, file=out)
    return DONE


def _list(arguments: argparse.Namespace, out: TextIO) -> int:
    if arguments.json:
        print_event(out, "result", benchmarks=[{"name": name, "about": one.about} for name, one in SUITES.items()])
        return DONE
    width = max(map(len, SUITES))
    for name, suite in SUITES.items():
        splits = f"; splits: {', '.join(suite.splits)}" if suite.splits else ""
        print(f"{name:<{width}}  {suite.title}: {suite.about}{splits}", file=out)
    return DONE


def _compare(arguments: argparse.Namespace, out: TextIO) -> int:
    first, second = arguments.runs
    found, count, lacking = compare(first, second)
    if arguments.json:
        values = {name: {"difference": one.value, "low": one.low, "high": one.high} for name, one in found.items()}
        print(json.dumps({"event": "result", "shared": count, "differences": values, "lacking": lacking}), file=out)
    else:
        print(difference_text(found, count, lacking, str(first), str(second)), file=out)
    return DONE
