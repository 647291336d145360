"""Compare two runs of the same benchmark: differences on the results that both have scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ....uniworld_core.errors import UniWorldError
from .items import BenchItem, Values
from .judge_step import read_judge
from .judging.replies import by_key, read_replies
from .plan import BenchPlan
from .run_folder import Digests, RunFolder, find_made, read_json_file
from .score_step import score_results
from .statistics import Difference, differences


def compare(first: Path, second: Path) -> tuple[dict[str, Difference], int, list[str]]:
    """Compare two runs, whose recorded replies are read again: result.json may be older.

    Returns:
        The differences of all means, first minus second; the number of results that both have scored; and the groups that
        both plan and of which there is none. If there are any, there are no differences of overall scores.

    Raises:
        UniWorldError: a run has no result or no scores, or the runs differ in benchmark, judge, scoring mode or items.
    """
    runs = [_read(RunFolder(folder)) for folder in (first, second)]
    (plan, one), (other_plan, other) = runs
    if not plan.suite.scored:
        raise UniWorldError(f"{plan.suite.title} has no scores to compare. Open the report.html of both runs.")
    for what, value, second_value in (
        ("benchmark", one.get("benchmark"), other.get("benchmark")),
        ("split", one["settings"].get("split"), other["settings"].get("split")),
        ("judge model", _model(one), _model(other)),
        ("temperature of the judge", _temperature(one), _temperature(other)),
        ("set of parameters that the judge rejects", _omitted(one), _omitted(other)),
        ("scoring mode", one.get("scoring"), other.get("scoring")),
    ):
        if value != second_value:
            raise UniWorldError(
                f"The runs cannot be compared: the {what} of '{first}' is {value}, and that of '{second}' {second_value}."
            )
    if plan.prompts != other_plan.prompts:
        raise UniWorldError(
            f"The runs cannot be compared: the judge prompts of '{first}' and '{second}' differ. Measure both with the "
            "files of one download."
        )
    values, others = _values(first, plan, one), _values(second, other_plan, other)
    items = {item.id: item for item in plan.items}
    shared = [place for place in values if place in others and place[0] in items]
    if not shared:
        raise UniWorldError(f"'{first}' and '{second}' have no scored result in common.")
    entries, others_entries = (_entries(shared, items, found) for found in (values, others))
    prompts = {(item.id, item.prompt) for item in other_plan.items}
    planned = plan.suite.rows([item for item in plan.items if (item.id, item.prompt) in prompts])
    groups = plan.suite.aggregate(entries).groups.keys() & plan.suite.aggregate(others_entries).groups.keys()
    lacking = [group for group in planned if group not in groups]
    found = differences(plan.suite, entries, others_entries)
    if lacking:
        found = {name: one for name, one in found.items() if not name.startswith("overall/")}
    return found, len(shared), lacking


# Id, sample and prompt of a result: the editions of a benchmark have different prompts under the same id.
_Place = tuple[str, int, str]


def _read(run: RunFolder) -> tuple[BenchPlan, dict[str, Any]]:
    missing = f"'{run.folder}' has no result. Run `uniworld bench score {run.folder}` first."
    return run.plan(), read_json_file(run.result, missing)


def _model(result: dict[str, Any]) -> str | None:
    return result["judge"]["model"] if result.get("judge") else None


def _temperature(result: dict[str, Any]) -> float | None:
    return result["judge"]["temperature"] if result.get("judge") else None


def _omitted(result: dict[str, Any]) -> str:
    return ", ".join(sorted(result["judge"]["omitted"]) if result.get("judge") else []) or "empty"


def _values(folder: Path, plan: BenchPlan, result: dict[str, Any]) -> dict[_Place, Values]:
    run, mode = RunFolder(folder), result["scoring"]
    replies = by_key(read_replies(run.replies))
    scored = score_results(plan, find_made(run, plan), read_judge(run), replies, mode, Digests())
    return {(one.item.id, one.sample, one.item.prompt): one.values for one in scored if one.values is not None}


def _entries(
    places: list[_Place], items: dict[str, BenchItem], values: dict[_Place, Values]
) -> list[tuple[BenchItem, Values]]:
    return [(items[place[0]], values[place]) for place in places]
