"""nano on the world of shapes: `bench shapes`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from uniworld.__main__ import main
from uniworld.nodes.headless.bench import statistics
from uniworld.nodes.headless.workflow.shipped import SHIPPED
from uniworld.training.shapes.exam.exam import exam_task
from uniworld.training.shapes.judge.judge import judge

STEPS = 4


@pytest.fixture
def workflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The shipped edit with few steps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(statistics, "RESAMPLES", 20)
    prompt = json.loads((SHIPPED / "api" / "edit.json").read_text())
    prompt["6"]["inputs"]["steps"] = STEPS
    (tmp_path / "edit.json").write_text(json.dumps(prompt))
    return "edit.json"


def result_of(run: str) -> dict[str, Any]:
    return json.loads((Path(run) / "result.json").read_text())


def test_the_examination_judges_what_the_oracle_judges(workflow: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "shapes", "--count", "1", "--limit", "2", "--workflow", workflow, "--out", "run"]) == 0
    assert "worst kind" in capsys.readouterr().out
    results = result_of("run")["results"]
    assert len(results) == 2
    rights = []
    for one in results:
        painted = Image.open(Path("run") / "pictures" / f"{one['id']}.png")
        verdict = judge(exam_task(one["group"], 0), painted)
        assert one["published"]["values"]["right"] == float(verdict.right)
        rights.append(verdict.right)
    assert result_of("run")["tables"]["published"]["overall"]["right"] == pytest.approx(sum(rights) / len(rights))


def test_targets_and_sources_as_pictures_are_scored_right_and_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    kinds = ("add", "remove", "replace", "recolour", "background", "extract", "style")
    for kind in kinds:
        folder = tmp_path / "pictures" / kind
        folder.mkdir(parents=True)
        for number in range(2):
            task = exam_task(kind, number)
            picture = task.target if number == 0 else task.references[0]
            assert picture is not None
            picture.save(folder / f"{number}.png")
    assert main(["bench", "shapes", "--count", "2", "--pictures", "pictures", "--out", "run"]) == 0
    table = result_of("run")["tables"]["published"]
    assert {kind: row["right"] for kind, row in table["groups"].items()} == dict.fromkeys(kinds, 0.5)
    assert table["overall"] == {"right": 0.5, "worst kind": 0.5}


def test_shapes_takes_no_download_and_no_judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "run")
    assert main(["bench", "shapes", "--data", str(tmp_path), "--out", run]) == 2
    assert "draws its items. Omit --data" in capsys.readouterr().err
    assert main(["bench", "plan", "imgedit", "--out", run]) == 2
    assert "Pass their folder as --data" in capsys.readouterr().err
    judge = ["--judge", "http://127.0.0.1:1/v1", "--judge-model", "m"]
    assert main(["bench", "shapes", "--count", "1", "--out", run, *judge]) == 2
    assert "needs no judge" in capsys.readouterr().err
