"""Make the pictures of a run: a batch with one row per item and sample, then files in the layout of the published scorer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from ....uniworld_core.errors import UniWorldError, brief
from ....uniworld_core.files import atomic_file
from ..problems import node_label
from ..registry.registry import Registry
from ..registry.schema import is_link, read_schema
from ..workflow.file import Workflow, find_node, find_workflow, read_workflow
from .batch_records import read_records, record_problem
from .items import SAME_RESULT, BenchItem, seed_of
from .plan import BenchPlan
from .run_folder import RunFolder, json_bytes, rows_of

ROLES = ("prompt", "image", "seed")
# Stands in names of files, which are not kept. With the current time, a resumed run would have another workflow.
_TIME = datetime(2000, 1, 1)


@dataclass(frozen=True)
class Bindings:
    """The inputs of a workflow that a benchmark sets.

    Attributes:
        prompt, seed: as "NODE.input"; `seed` may be None.
        image: the node that loads the picture to edit; None for text-to-image.
    """

    prompt: str
    image: str | None
    seed: str | None


def parse_bindings(texts: Sequence[str]) -> dict[str, str]:
    """Parse values of --bind, ROLE=TARGET. Raises UniWorldError if one is invalid."""
    found: dict[str, str] = {}
    for text in texts:
        role, equals, target = text.partition("=")
        if role not in ROLES or not equals or not target or (role != "image" and "." not in target):
            raise UniWorldError(
                f"--bind '{text}' is invalid. Write prompt=NODE.input, image=NODE or seed=NODE.input, such as "
                "prompt=Condition.prompt."
            )
        if role in found:
            raise UniWorldError(f"--bind {role} is given twice.")
        found[role] = target
    return found


def find_bindings(workflow: Workflow, registry: Registry, plan: BenchPlan, given: dict[str, str]) -> Bindings:
    """Return the inputs that a benchmark sets: those that the user names, else the only possible one.

    Raises:
        UniWorldError: a named node does not exist, an input is not named and there are several candidates or none, or the
            prompt and the seed would set the same input.
    """
    for target in given.values():
        find_node(workflow.prompt, target.rpartition(".")[0] if "." in target else target)
    candidates = _candidates(workflow, registry)
    needs_picture = any(item.picture is not None for item in plan.items)
    several = any((1 if item.turns else item.samples) * item.tiles > 1 for item in plan.items)
    prompt = given.get("prompt") or str(_only(candidates["prompt"], "prompt", True))
    image = given.get("image") or (_only(candidates["image"], "image", True) if needs_picture else None)
    seed = given.get("seed") or _only(candidates["seed"], "seed", several)
    if seed is not None and _input(workflow, seed) == _input(workflow, prompt):
        raise UniWorldError(f"The prompt and the seed cannot both be set at {seed}. Name another input with --bind.")
    return Bindings(prompt, image, seed)


def _input(workflow: Workflow, target: str) -> tuple[str, str]:
    """Return the node's id and the input's name of a target, which may name the node in other ways."""
    node, _, name = target.rpartition(".")
    return find_node(workflow.prompt, node), name


def _candidates(workflow: Workflow, registry: Registry) -> dict[str, dict[str, str]]:
    """Return the possible inputs for each role, with a label for messages."""
    found: dict[str, dict[str, str]] = {role: {} for role in ROLES}
    for node_id, node in workflow.prompt.items():
        class_type = node.get("class_type") if isinstance(node, dict) else None
        if class_type not in registry.classes:
            continue
        inputs = node.get("inputs") if isinstance(node.get("inputs"), dict) else {}
        for name, spec in read_schema(registry.classes[class_type]).inputs.items():
            if is_link(inputs.get(name)):
                continue
            label = f"{node_label(node_id, class_type)}, input '{name}'"
            if spec.type == "STRING" and spec.options.get("multiline"):
                found["prompt"][f"{node_id}.{name}"] = label
            elif spec.type == "INT" and name in ("seed", "noise_seed"):
                found["seed"][f"{node_id}.{name}"] = label
            elif name == "image" and spec.options.get("image_upload"):
                found["image"][node_id] = node_label(node_id, class_type)
    return found


def _only(candidates: dict[str, str], role: str, needed: bool) -> str | None:
    if len(candidates) == 1:
        return next(iter(candidates))
    form = "NODE" if role == "image" else "NODE.input"
    if candidates:
        listed = "; ".join(f"{target} ({label})" for target, label in candidates.items())
        raise UniWorldError(f"The {role} can be set at several places: {listed}. Choose one with --bind {role}={form}.")
    if needed:
        raise UniWorldError(f"The workflow has no place for the {role}. Name one with --bind {role}={form}.")
    return None


class BatchPlace(Protocol):
    """Where the pictures are made: this process, a Ray cluster or servers."""

    @property
    def registry(self) -> Registry: ...

    def run(self, workflow: Path, rows: Path, results: Path, output: Path) -> int:
        """Run a batch and return its exit code. Raises RunFailed if the user stopped it."""


def batch_workflow(plan: BenchPlan, name: str, registry: Registry, bind: Sequence[str]) -> tuple[Workflow, Bindings]:
    """Return a workflow as the batch runs it, and the inputs that the benchmark sets.

    Its texts have no choices `{a|b}` any more, so that braces in a benchmark's prompt stay as they are.

    Raises:
        UniWorldError: the workflow cannot be read, or an input to set is unclear.
    """
    workflow = read_workflow(find_workflow(name), registry)
    bindings = find_bindings(workflow, registry, plan, parse_bindings(bind))
    workflow.resolve_texts(registry, time=_TIME)
    return workflow, bindings


def make_pictures(run: RunFolder, plan: BenchPlan, name: str, bind: Sequence[str], place: BatchPlace) -> dict[str, str]:
    """Make the pictures, and put them under their published names.

    Args:
        name: a workflow file, or the name of a shipped workflow.

    Returns:
        The reasons of the rows without a picture.

    Raises:
        UniWorldError: the workflow cannot be used, or the batch cannot start.
    """
    write_rows(run, plan, name, place.registry, bind)
    try:
        place.run(run.workflow, run.rows, run.results, run.output)
    finally:
        failed = collect(run, plan)
    return failed


def write_rows(run: RunFolder, plan: BenchPlan, name: str, registry: Registry, bind: Sequence[str]) -> Bindings:
    """Write the workflow in API form and the rows of the batch.

    Raises:
        UniWorldError: the workflow cannot be read, or an input to set is unclear.
    """
    run.own_pictures()
    workflow, bindings = batch_workflow(plan, name, registry, bind)
    lines = []
    for item, sample in plan.results:
        if item.id in plan.missing or _is_made_for_another(item, plan):
            continue
        for name, number in rows_of(item, sample):
            values: dict[str, Any] = {bindings.prompt: item.prompt}
            if bindings.seed is not None:
                values[bindings.seed] = seed_of(plan.settings["seed"], item, number)
            row: dict[str, Any] = {"id": name, "set": values}
            if bindings.image is not None and item.picture is not None:
                row["image"] = {bindings.image: item.picture}
            lines.append(json.dumps(row))
    write_batch(run, workflow.prompt, ("\n".join(lines) + "\n").encode())
    return bindings


def write_batch(run: RunFolder, prompt: dict[str, Any], rows: bytes) -> None:
    """Write the workflow and the rows. They replace others as long as these have made no picture.

    Raises:
        UniWorldError: the run has pictures by another workflow, or with other values.
    """
    if run.workflow.is_file() and run.rows.is_file():
        same = run.workflow.read_bytes() == json_bytes(prompt) and run.rows.read_bytes() == rows
        if not same and run.has_made_pictures:
            raise UniWorldError(
                f"'{run.folder}' has pictures made by another workflow, or with other inputs. Choose another --out."
            )
        if not same:
            run.start_again()
    run.write_json(run.workflow, prompt)
    run.write(run.rows, rows)
    run.use_own_pictures()


def collect(run: RunFolder, plan: BenchPlan) -> dict[str, str]:
    """Put the pictures of finished rows under their published names.

    Returns:
        The reasons of the rows without a picture, which are also recorded for the report.

    Raises:
        UniWorldError: the results of the batch or the folder cannot be used.
    """
    records = read_records(run.records)
    folder, failed = run.own_pictures(), {}
    for item, sample in plan.results:
        if _is_made_for_another(item, plan):
            continue
        row = item.result_id(sample)
        found = [records.get(name) for name, _ in rows_of(item, sample)]
        problem = next((text for record in found if record is not None and (text := record_problem(record))), None)
        if problem is not None:
            failed[row] = problem
        if problem is not None or None in found:
            continue
        made = [run.output / record["outputs"]["pictures"][0] for record in found if record is not None]
        try:
            if len(made) > 1:
                _place_grid(made, folder / f"{item.name(sample)}.png")
            else:
                _place(made[0], folder / f"{item.name(sample)}.png")
            if item.source_target is not None and item.source is not None:
                _place(Path(item.source), folder / f"{item.source_target}.png")
        except (OSError, SyntaxError) as error:
            failed[row] = f"its picture cannot be read: {brief(error)}"
    for item in plan.items:
        for name, text in plan.suite.companions(item).items():
            run.write(folder / name, text.encode())
    run.write_json(run.problems, {"failed": failed})
    return failed


def _is_made_for_another(item: BenchItem, plan: BenchPlan) -> bool:
    """Whether another item of the run has the same file as its result."""
    return SAME_RESULT in item.extra and any(one.id == item.extra[SAME_RESULT] for one in plan.items)


def _place_grid(sources: Sequence[Path], target: Path) -> None:
    """Join four pictures to a PNG file with two rows. An existing file is left as it is."""
    if target.exists():
        return
    tiles = []
    for source in sources:
        with Image.open(source) as picture:
            tiles.append(picture.convert("RGB"))
    width, height = tiles[0].size
    if any(tile.size != (width, height) for tile in tiles):
        raise OSError("the pictures of a grid have different sizes")
    grid = Image.new("RGB", (2 * width, 2 * height))
    for place, tile in enumerate(tiles):
        grid.paste(tile, (place % 2 * width, place // 2 * height))
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(target) as file:
        grid.save(file, "PNG")


def _place(source: Path, target: Path) -> None:
    """Link, copy or convert a picture to a PNG file. An existing file is left as it is."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(target) as file:
        if source.suffix.lower() == ".png":
            with source.open("rb") as original:
                shutil.copyfileobj(original, file)
        else:
            with Image.open(source) as picture:
                picture.save(file, "PNG")
