"""nano on the world of shapes: `bench shapes`, and ImgEdit-Bench's whole loop with a judge that is the oracle."""

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
from uniworld.training.shapes.tasks.tasks import ShapesTask

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


def imgedit_of_shapes(folder: Path, tasks: dict[str, ShapesTask]) -> None:
    """Write an ImgEdit-shaped folder with the tasks' references and prompts."""
    root = folder / "singleturn"
    (root / "shapes").mkdir(parents=True)
    items = {}
    for key, task in tasks.items():
        task.references[0].save(root / "shapes" / f"{key}.png")
        kind = "adjust" if task.kind == "recolour" else task.kind
        items[key] = {"id": f"shapes/{key}.png", "prompt": task.prompt, "edit_type": kind}
    (root / "singleturn.json").write_text(json.dumps(items))
    prompts = {item["edit_type"]: "<edit_prompt>" for item in items.values()}
    (root / "judge_prompt.json").write_text(json.dumps(prompts))


def test_imgedits_whole_loop_gives_the_score_that_the_oracle_knows(
    tmp_path: Path, workflow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openai")
    from .fake_judge import KEY, Answer, Request, serving

    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    tasks = {str(place): exam_task(kind, 0) for place, kind in enumerate(("remove", "background", "recolour", "add"))}
    imgedit_of_shapes(tmp_path / "data", tasks)
    by_prompt = {task.prompt: task for task in tasks.values()}

    def points(task: ShapesTask, painted: Image.Image) -> tuple[int, int, int]:
        verdict = judge(task, painted)
        return (
            (5 if verdict.right else 1),
            1 + round(4 * (verdict.kept or 0)),
            min(5, 1 + int((verdict.psnr or 0) // 8)),
        )

    def script(request: Request) -> Answer:
        compliance, seamless, detail = points(by_prompt[request.text], request.pictures[1])
        return Answer(f"Brief reasoning: x.\nCompliance: {compliance}\nSeamless: {seamless}\nDetail: {detail}")

    with serving(script) as fake:
        command = ["bench", "imgedit", "--data", "data", "--workflow", workflow, "--out", "run"]
        assert main([*command, "--judge", fake.url, "--judge-model", "oracle"]) == 0
        assert len(fake.requests) == len(tasks)
    known = []
    for key, task in tasks.items():
        known.append(round(sum(points(task, Image.open(Path("run") / "pictures" / f"{key}.png"))) / 3, 2))
    overall = result_of("run")["tables"]["published"]["overall"]
    assert overall["mean_of_items"] == round(sum(known) / len(known), 2)
    assert overall["mean_of_types"] == pytest.approx(sum(known) / len(known))
