"""The whole loop on nano: benchmarks drawn by the world of shapes give the scores that its oracle knows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("openai")

from uniworld.__main__ import main
from uniworld.nodes.headless.bench import statistics
from uniworld.nodes.headless.workflow.shipped import SHIPPED

from . import shapes_world
from .fake_judge import KEY, FakeJudge, serving

Workflow = Callable[..., str]
EDITS = ("remove", "background", "recolour", "add")
GEDIT = ("remove", "recolour", "add")
TAGS = ("colors", "counting", "position")
FEW, MANY = 3, 14  # steps


@pytest.fixture
def workflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workflow:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(statistics, "RESAMPLES", 20)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    return write_workflow


def write_workflow(name: str, steps: int) -> str:
    """Write a shipped workflow to the current folder, with few steps and pictures of nano's size. Returns the file."""
    prompt = json.loads((SHIPPED / "api" / f"{name}.json").read_text())
    for node in prompt.values():
        if node["class_type"] == "UniWorldSampler":
            node["inputs"]["steps"] = steps
        if node["class_type"] == "UniWorldEmptyLatent" and "references" not in node["inputs"]:
            node["inputs"] |= {"width": 128, "height": 128}
    Path(f"{name}.json").write_text(json.dumps(prompt))
    return f"{name}.json"


def table_of(run: str) -> dict[str, Any]:
    table = json.loads((Path(run) / "result.json").read_text())["tables"]["published"]
    assert table["complete"]
    return table


def judged_by(fake: FakeJudge) -> list[str]:
    return ["--judge", fake.url, "--judge-model", "oracle"]


@pytest.mark.parametrize(
    ("kinds", "count", "steps"),
    [
        pytest.param(EDITS, 1, FEW, id="few"),
        pytest.param((*EDITS, "replace", "extract", "style"), 4, MANY, id="many", marks=pytest.mark.acceptance),
    ],
)
def test_imgedits_score_is_the_oracles(workflow: Workflow, kinds: tuple[str, ...], count: int, steps: int) -> None:
    tasks = shapes_world.tasks_of(kinds, count)
    shapes_world.imgedit_of_shapes(Path("data"), tasks)
    with serving(shapes_world.imgedit_script(tasks)) as fake:
        command = ["bench", "imgedit", "--data", "data", "--workflow", workflow("edit", steps), "--out", "run"]
        assert main([*command, *judged_by(fake)]) == 0
        assert len(fake.requests) == len(tasks)
    known: dict[str, list[float]] = {}
    for key, task in tasks.items():
        points = shapes_world.imgedit_points(task, Image.open(Path("run") / "pictures" / f"{key}.png"))
        known.setdefault(task.kind, []).append(round(sum(points) / 3, 2))
    scores = [score for ones in known.values() for score in ones]
    assert min(scores) < max(scores)
    overall = table_of("run")["overall"]
    assert overall["mean_of_items"] == round(sum(scores) / len(scores), 2)
    means = [round(sum(ones) / len(ones), 2) for ones in known.values()]
    assert overall["mean_of_types"] == pytest.approx(sum(means) / len(means))


@pytest.mark.parametrize(
    ("kinds", "count", "steps"),
    [
        pytest.param(GEDIT, 1, FEW, id="few"),
        pytest.param(tuple(shapes_world.GEDIT_GROUPS), 5, MANY, id="many", marks=pytest.mark.acceptance),
    ],
)
def test_gedits_score_is_the_oracles(workflow: Workflow, kinds: tuple[str, ...], count: int, steps: int) -> None:
    pytest.importorskip("pyarrow")
    names = shapes_world.gedit_of_shapes(Path("data"), tasks := shapes_world.tasks_of(kinds, count))
    with serving(shapes_world.gedit_script(tasks)) as fake:
        command = ["bench", "gedit", "--data", "data", "--workflow", workflow("edit", steps), "--out", "run"]
        assert main([*command, *judged_by(fake)]) == 0
        assert len(fake.requests) == 2 * len(tasks)
    table, known = table_of("run"), shapes_world.known_gedit(names, Path("run") / "pictures")
    assert len({tuple(row.values()) for row in known.values()}) > 1
    for group, row in known.items():
        assert table["groups"][group] == {column: pytest.approx(value) for column, value in row.items()}
    for column in ("SC", "PQ", "O"):
        assert table["overall"][column] == pytest.approx(sum(row[column] for row in known.values()) / len(known))
    shared = {name: task for name, task in names.items() if shapes_world.in_intersection(name)}
    rows = shapes_world.known_gedit(shared, Path("run") / "pictures").values()
    assert table["overall"]["O intersection"] == pytest.approx(sum(row["O"] for row in rows) / len(known))


@pytest.mark.parametrize(
    ("tags", "steps"),
    [
        pytest.param(TAGS, FEW, id="few"),
        pytest.param(
            (*TAGS, "single_object", "two_object", "color_attr") * 3, MANY, id="many", marks=pytest.mark.acceptance
        ),
    ],
)
def test_genevals_score_is_the_oracles(
    workflow: Workflow, tags: tuple[str, ...], steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("scipy")
    metadata = shapes_world.geneval_of_shapes(Path("data"), tags)
    detector = shapes_world.see_with_the_oracle(monkeypatch, Path())
    command = ["bench", "geneval", "--data", "data", "--workflow", workflow("text_to_image", steps), "--out", "run"]
    assert main([*command, *detector]) == 0
    known: dict[str, list[bool]] = {}
    for number, record in enumerate(metadata):
        for sample in range(4):
            result = Path("run") / "pictures" / f"{number:05d}" / "samples" / f"{sample:05d}.png"
            known.setdefault(record["tag"], []).append(shapes_world.oracle_accepts(record, result))
    means = {tag: sum(ones) / len(ones) for tag, ones in known.items()}
    table = table_of("run")
    assert {tag: row["correct"] for tag, row in table["groups"].items()} == means
    assert 0 < table["overall"]["overall"] < 1
    assert table["overall"]["overall"] == pytest.approx(sum(means.values()) / len(means))
    rights = [right for ones in known.values() for right in ones]
    assert table["overall"]["pictures"] == pytest.approx(sum(rights) / len(rights))
