"""Make the pictures of edits in a row: batches in sequence, whose rows name the pictures of the turns before.

A failed turn leaves the later turns of its item without rows. When it succeeds after all, such as with --retry-failed, these
get a batch of their own, because the rows of a batch never change.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ....uniworld_core.errors import UniWorldError
from ....uniworld_core.json_text import BadJson, loads
from ..workflow.file import find_node
from .conversation import TurnWorkflow, conversation_workflow
from .generate import BatchPlace, Bindings, batch_workflow, collect, write_batch
from .items import BenchItem, seed_of
from .plan import BenchPlan
from .run_folder import RunFolder, find_made
from .suites.imgedit_turns import CONVERSATION


def make_turns(run: RunFolder, plan: BenchPlan, name: str, bind: Sequence[str], place: BatchPlace) -> dict[str, str]:
    """Make the pictures turn by turn; otherwise as `generate.make_pictures`."""
    run.own_pictures()
    workflow, bindings = batch_workflow(plan, name, place.registry, bind)
    longest = max(len(item.turns) for item in plan.items)
    works = [TurnWorkflow(workflow.prompt)] * longest
    if plan.settings["split"] == CONVERSATION:
        image = find_node(workflow.prompt, str(bindings.image))
        works = [conversation_workflow(workflow.prompt, place.registry, image, turn) for turn in range(longest)]
    failed: dict[str, str] = {}
    for turn, work in enumerate(works):
        file = run.workflow
        if work.made:
            file = run.workflow.with_name(f"{run.workflow.stem}.turn{turn + 1}.json")
        for rows in _batches(run, plan, turn, work, bindings):
            if work.made:
                run.write_json(file, work.prompt)
            try:
                place.run(file, rows, rows.with_suffix(".results.jsonl"), run.output)
            finally:
                failed = collect(run, plan)
    return failed


def _batches(run: RunFolder, plan: BenchPlan, turn: int, work: TurnWorkflow, bindings: Bindings) -> Iterator[Path]:
    """Write and return the files of rows of a turn: those of earlier runs, and one with the rows that are in none of them."""
    rows = {item.result_id(turn): item for item in plan.items if turn < len(item.turns) and item.id not in plan.missing}
    if turn == 0:
        lines = [_row(run, plan, item, turn, work, bindings) for item in rows.values()]
        write_batch(run, work.prompt, _text(lines))
        yield run.rows
        return
    number = 1
    while (file := _rows_file(run, turn, number)).is_file():
        for name in _ids(file):
            rows.pop(name, None)
        yield file
        number += 1
    made = find_made(run, plan).pictures
    ready = [item for item in rows.values() if (item.id, turn - 1) in made]
    if ready:
        run.write(file, _text([_row(run, plan, item, turn, work, bindings) for item in ready]))
        yield file


def _rows_file(run: RunFolder, turn: int, number: int) -> Path:
    return run.rows.with_name(f"{run.rows.stem}.turn{turn + 1}{f'.{number}' if number > 1 else ''}.jsonl")


def _row(
    run: RunFolder, plan: BenchPlan, item: BenchItem, turn: int, work: TurnWorkflow, bindings: Bindings
) -> dict[str, Any]:
    values: dict[str, Any] = {bindings.prompt: item.turns[turn], **dict(zip(work.said, item.turns))}
    if bindings.seed is not None:
        values[bindings.seed] = seed_of(plan.settings["seed"], item, turn)
    results = [_result(run, item, earlier) for earlier in range(turn)]
    in_conversation = bool(work.made)
    source = item.picture if in_conversation or not results else results[-1]
    return {
        "id": item.result_id(turn),
        "set": values,
        "image": {str(bindings.image): source, **dict(zip(work.made, results))},
    }


def _result(run: RunFolder, item: BenchItem, turn: int) -> str:
    """Return the path of a result relative to the folder of the rows, so that the run can be moved."""
    path = run.picture(item, turn)
    assert path is not None
    return path.relative_to(run.folder).as_posix()


def _text(rows: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _ids(file: Path) -> list[str]:
    try:
        return [str(loads(line)["id"]) for line in file.read_bytes().split(b"\n") if line.strip()]
    except (BadJson, KeyError, TypeError) as error:
        raise UniWorldError(f"'{file}' is damaged. Remove it and its results, and run this step again.") from error
