"""The steps of a run as the command line shows them: make the pictures, ask the judge, compute the scores."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TextIO

from ....command_line import DONE, FAILED
from ....streams import say
from ....uniworld_core.files import sha256_file
from ....uniworld_core.json_text import dumps
from .generate import BatchPlace, make_pictures
from .judge_step import JudgeSettings, judge_run, read_judge, results_to_judge
from .judges import NO_JUDGE, choose_judge
from .judging.cost import parse_price
from .judging.identity import is_published_detector
from .judging.replies import JudgeReply, by_key, read_replies
from .judging.run import JudgeLimits
from .judging.vqa import VQA, question_line
from .plan import BenchPlan
from .report.page import page, sheet
from .report.text_table import table_text
from .report.turns_report import turns_page, turns_result, turns_sheet, turns_text
from .run_folder import Digests, Made, RunFolder, find_made
from .score_step import ScoredResult, comparable, cut_replies, make_table, result_json, score_results
from .scoring.outcome import MODES, Mode
from .turns import make_turns

# Opens the place that the command line describes.
OpenPlace = Callable[[Path], AbstractContextManager[BatchPlace]]


def print_event(out: TextIO, event: str, **values: Any) -> None:
    """Print a line of JSON."""
    print(dumps({"event": event, **values}), file=out, flush=True)


def generate(
    arguments: argparse.Namespace, out: TextIO, run: RunFolder, plan: BenchPlan, open_place: OpenPlace, whole: bool
) -> int:
    """Make the pictures, or use those made elsewhere, and return the exit code.

    Args:
        whole: whether other steps follow, so that there is no event for the result of this one.
    """
    if arguments.pictures is not None:
        run.use_pictures(arguments.pictures)
    else:
        with open_place(run.output) as place:
            make = make_turns if any(item.turns for item in plan.items) else make_pictures
            failed = make(run, plan, arguments.workflow, arguments.bind, place)
            for row, reason in list(failed.items())[:10]:
                say(f"Row {row}: {reason}")
    made = find_made(run, plan)
    text = f"{len(made.pictures)} of {len(plan.results)} pictures are in '{run.pictures}'."
    if made.missing:
        (name, sample), reason = next(iter(made.missing.items()))
        item = next(one for one in plan.items if one.id == name)
        text += f" Missing: {len(made.missing)}, such as that of item {item.result_id(sample)}: {reason.rstrip('.')}."
    if arguments.json and not whole:
        print_event(out, "result", message=text, made=len(made.pictures), missing=len(made.missing))
    else:
        say(text)
    return FAILED if made.missing else DONE


def judge(
    arguments: argparse.Namespace, out: TextIO, run: RunFolder, plan: BenchPlan, digest: Digests, whole: bool
) -> int:
    """Ask the judge about every picture without a recorded reply, and return the exit code."""
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
    on_progress = (lambda values: print_event(out, "judged", **values)) if arguments.json else None
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
        print_event(out, "result", message=text, asked=outcome.asked, failed=outcome.failed, cost=outcome.cost)
    else:
        say(text)
    return FAILED if outcome.failed or made.missing else DONE


def _write_questions(
    arguments: argparse.Namespace, out: TextIO, run: RunFolder, plan: BenchPlan, made: Made, whole: bool
) -> int:
    """Write the questions for a VQA model that runs elsewhere."""
    subjects = results_to_judge(plan, made, JudgeSettings("", VQA, None, arguments.scoring))
    lines = [question_line(subject.item, ask) for subject in subjects for ask in subject.asks({})]
    path = run.questions
    run.write(path, "".join(f"{line}\n" for line in lines).encode())
    text = (
        f"{len(lines)} questions are in '{path}'. Add \"answer\" to each line, then run `uniworld bench judge {run.folder} "
        "--judge vqa --vqa FILE --judge-model NAME`."
    )
    if arguments.json and not whole:
        print_event(out, "result", message=text, questions=len(lines))
    else:
        say(text)
    return FAILED if made.missing else DONE


def score(arguments: argparse.Namespace, out: TextIO, run: RunFolder, plan: BenchPlan, digest: Digests) -> int:
    """Compute, print and write the scores, and the report except for the step "score"; return the exit code."""
    if not plan.suite.scored:
        return _show_turns(arguments, out, run, plan)
    made, settings, replies = find_made(run, plan), read_judge(run), read_replies(run.replies)
    first = by_key(replies)
    # Without a model's replies there is only one way to read them.
    others = () if plan.suite.exact or plan.suite.by_detector else MODES
    modes: list[Mode] = [arguments.scoring, *(mode for mode in others if mode != arguments.scoring)]
    scored = {mode: score_results(plan, made, settings, first, mode, digest) for mode in modes}
    tables = [make_table(plan.suite, scored[mode], mode, arguments.partial) for mode in modes]
    result = result_json(plan, settings, replies, tables, scored, _hash_of(run.workflow))
    run.write_json(run.result, result)
    text = table_text(
        plan, _judge_text(arguments, plan, settings, replies), tables, comparable(plan, settings, tables[0])
    )
    chosen = scored[modes[0]]
    if arguments.step != "score":
        _write_report(run, plan, text, chosen, made.pictures)
    _say_reasons(chosen)
    _finish(arguments, out, run, text, result)
    return DONE if tables[0].complete else FAILED


def _show_turns(arguments: argparse.Namespace, out: TextIO, run: RunFolder, plan: BenchPlan) -> int:
    """Print and write which results exist, and the report that shows them side by side."""
    made = find_made(run, plan)
    result = turns_result(plan, made, _hash_of(run.workflow))
    run.write_json(run.result, result)
    if arguments.step != "score":
        title = f"{plan.suite.title}: {run.folder.name}"
        run.write(run.page, turns_page(title, plan, made).encode("utf-8", "replace"))
        run.write(run.sheet, turns_sheet(plan, made))
    _finish(arguments, out, run, turns_text(plan, made), result)
    return FAILED if made.missing else DONE


def _finish(arguments: argparse.Namespace, out: TextIO, run: RunFolder, text: str, result: dict[str, Any]) -> None:
    if arguments.json:
        print_event(
            out, "result", message=f"The result is '{run.result}'.", result={**result, "results": str(run.result)}
        )
    else:
        print(text, file=out)
        written = [run.result] if arguments.step == "score" else [run.result, run.page, run.sheet]
        say(f"Written: {', '.join(str(path) for path in written)}")


def _hash_of(workflow: Path) -> str | None:
    return sha256_file(workflow) if workflow.is_file() else None


def _judge_text(
    arguments: argparse.Namespace, plan: BenchPlan, settings: JudgeSettings | None, replies: Sequence[JudgeReply]
) -> str | None:
    """Return what the table says about the judge."""
    if settings is None:
        chosen = getattr(arguments, "judge", NO_JUDGE)
        return None if chosen == NO_JUDGE else f"{arguments.judge_model or chosen}; no reply is recorded"
    text = _judge_name(plan, settings)
    if settings.omitted:
        text += f"; without {', '.join(settings.omitted)}, which the server rejects"
    models = sorted({reply.model for reply in replies if reply.model})
    if len(models) > 1:  # such as after an update, or by a server that distributes requests
        text += f"; the server names several models: {', '.join(models)}"
    cut = cut_replies(replies)
    return text + (f"; {cut} of {len(replies)} replies were cut at the maximum length" if cut else "")


def _judge_name(plan: BenchPlan, settings: JudgeSettings) -> str:
    if plan.suite.vqa is not None and settings.server != VQA:
        return f"{settings.model} in place of the published VQA model; not comparable with published results"
    if plan.suite.by_detector:
        weights = "the published" if is_published_detector(settings.model) else "not the published"
        return f"{settings.model}; {weights} weights of the detector"
    return settings.model


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
            reason = ones[0].reason.rstrip(".")
            say(f"{len(ones)} of {len(scored)} results are {state}, such as item {ones[0].item.id}: {reason}.")
