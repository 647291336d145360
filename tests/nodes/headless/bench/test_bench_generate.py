"""The pictures of a run: where a workflow takes prompt, picture and seed, the rows, and the published names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from uniworld.__main__ import main
from uniworld.nodes.headless.bench.generate import find_bindings, parse_bindings, write_rows
from uniworld.nodes.headless.bench.items import BenchItem, seed_of
from uniworld.nodes.headless.bench.plan import BenchPlan
from uniworld.nodes.headless.bench.run_folder import RunFolder
from uniworld.nodes.headless.registry.registry import Registry
from uniworld.nodes.headless.workflow.file import Workflow, find_workflow, read_workflow
from uniworld.uniworld_core.errors import UniWorldError

from .folders import imgedit


def node(class_type: str, title: str = "", **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs, "_meta": {"title": title or class_type}}


COPY = {
    "1": node("LoadImage", "Picture", image="shapes.png"),
    "2": node("SaveImage", images=["1", 0], filename_prefix="x"),
    "3": node("PrimitiveStringMultiline", "Text", value="a"),
    "4": node("PreviewAny", source=["3", 0]),
}


def plan(picture: str | None = "a.png", samples: int = 1) -> BenchPlan:
    item = BenchItem("1", "g", "c", "p", "1", picture=picture, samples=samples)
    return BenchPlan("imgedit", "", {"seed": 42}, (item,), 1, {}, {})


def test_the_only_places_are_found(registry: Registry) -> None:
    workflow = read_workflow(find_workflow("edit"), registry)
    found = find_bindings(workflow, registry, plan(), {})
    assert (found.prompt, found.image, found.seed) == ("4.prompt", "2", "6.seed")
    assert find_bindings(workflow, registry, plan(None), {}).image is None


@pytest.mark.parametrize(
    ("more", "given", "sentence"),
    [
        ({"5": node("PrimitiveStringMultiline", value="b")}, {}, "The prompt can be set at several places: 3.value"),
        ({"3": node("PrimitiveString", value="b")}, {}, "The workflow has no place for the prompt"),
        ({"5": node("LoadImage", image="cat.jpg")}, {}, "The image can be set at several places: 1"),
        ({}, {"prompt": "Nobody.value"}, "There is no node 'Nobody'"),
        ({}, {"seed": "Text.value"}, "The prompt and the seed cannot both be set at Text.value"),
    ],
)
def test_unclear_places_are_listed(
    registry: Registry, more: dict[str, Any], given: dict[str, str], sentence: str
) -> None:
    with pytest.raises(UniWorldError, match=sentence):
        find_bindings(Workflow({**COPY, **more}), registry, plan(), given)


def test_several_samples_need_a_seed(registry: Registry) -> None:
    with pytest.raises(UniWorldError, match="no place for the seed"):
        find_bindings(Workflow(COPY), registry, plan(samples=4), {})


@pytest.mark.parametrize("text", ["prompt", "prompt=", "prompt=Node", "size=Node.width", "=x.y"])
def test_invalid_bindings(text: str) -> None:
    with pytest.raises(UniWorldError, match="is invalid"):
        parse_bindings([text])


def test_a_binding_given_twice() -> None:
    with pytest.raises(UniWorldError, match="given twice"):
        parse_bindings(["image=A", "image=B"])


def test_pictures_are_made_once_and_named_as_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    items = imgedit(tmp_path / "data")
    # Braces in a prompt stay as they are, although the editor would resolve them.
    items["0"]["prompt"] = "Make it {red|blue}."
    (tmp_path / "data" / "Benchmark" / "singleturn" / "singleturn.json").write_text(json.dumps(items))
    (tmp_path / "w.json").write_text(json.dumps(COPY))
    command = [
        "bench",
        "imgedit",
        "--data",
        "data",
        "--workflow",
        "w.json",
        "--out",
        "run",
        "--bind",
        "prompt=Text.value",
    ]
    assert main(command) == 1  # no picture is judged
    out, err = capsys.readouterr()
    assert "6 open" in out
    assert "6 of 6 pictures" in err
    rows = [json.loads(line) for line in (tmp_path / "run" / "rows.jsonl").read_text().splitlines()]
    assert rows[0]["set"] == {"Text.value": "Make it {red|blue}."}
    made = sorted(path.name for path in (tmp_path / "run" / "pictures").iterdir())
    assert made == [f"{number}.png" for number in range(6)]
    for key, item in items.items():
        source = Image.open(tmp_path / "data" / "Benchmark" / "singleturn" / item["id"])
        assert Image.open(tmp_path / "run" / "pictures" / f"{key}.png").tobytes() == source.convert("RGB").tobytes()
    records = (tmp_path / "run" / "rows.results.jsonl").read_bytes()
    assert main(command) == 1
    assert (tmp_path / "run" / "rows.results.jsonl").read_bytes() == records


def test_a_workflow_that_saves_two_pictures_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    imgedit(tmp_path / "data", count=2)
    twice = {**COPY, "5": node("SaveImage", images=["1", 0], filename_prefix="y")}
    (tmp_path / "w.json").write_text(json.dumps(twice))
    assert main(["bench", "imgedit", "--data", "data", "--workflow", "w.json", "--out", "run"]) == 1
    out, err = capsys.readouterr()
    assert "2 missing" in out
    assert "the workflow saved 2 pictures; a benchmark needs exactly one" in err
    # Nothing was made, so that pictures made elsewhere can be used, or the workflow corrected. A wrong one changes nothing.
    bench = ["bench", "imgedit", "--data", "data", "--out", "run"]
    assert main([*bench, "--pictures", "data"]) == 1
    assert "there is no picture" in capsys.readouterr().err
    assert main([*bench, "--workflow", "missing.json"]) == 2
    assert (tmp_path / "run" / "pictures.json").is_file()
    (tmp_path / "w.json").write_text(json.dumps(COPY))
    assert main(["bench", "imgedit", "--data", "data", "--workflow", "w.json", "--out", "run"]) == 1
    assert "2 of 2 pictures" in capsys.readouterr().err
    (tmp_path / "w.json").write_text(json.dumps(twice))
    before = (tmp_path / "run" / "workflow.json").read_bytes()
    assert main(["bench", "imgedit", "--data", "data", "--workflow", "w.json", "--out", "run"]) == 2
    assert "has pictures made by another workflow" in capsys.readouterr().err
    assert (tmp_path / "run" / "workflow.json").read_bytes() == before


def test_a_time_in_the_name_of_a_file_does_not_change_the_workflow(
    tmp_path: Path, registry: Registry, toys: Any
) -> None:
    graph = json.loads(find_workflow("edit").read_text())
    for one in graph["nodes"]:
        if one["type"] == "SaveImage":
            one["widgets_values"] = ["%date:yyyy-MM-dd-hh-mm-ss%"]
    (tmp_path / "w.json").write_text(json.dumps(graph))
    run = RunFolder(tmp_path / "run")
    write_rows(run, plan(), str(tmp_path / "w.json"), registry, [])
    assert "2000-01-01-00-00-00" in run.workflow.read_text()


def test_seeds_of_rows_depend_on_item_and_sample(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch, toys: Any
) -> None:
    run = RunFolder(tmp_path / "run")
    several = plan(samples=3)
    write_rows(run, several, "edit", registry, [])
    rows = [json.loads(line) for line in run.rows.read_text().splitlines()]
    assert [row["id"] for row in rows] == ["1/0", "1/1", "1/2"]
    assert [row["set"]["6.seed"] for row in rows] == [seed_of(42, several.items[0], sample) for sample in range(3)]
    assert rows[0]["image"] == {"2": "a.png"}
