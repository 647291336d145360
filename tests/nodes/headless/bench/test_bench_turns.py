"""Edits in a row: the items of ImgEdit-Bench multi-turn, one batch per turn, and the report without scores."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from uniworld.__main__ import main
from uniworld.nodes.headless.bench.conversation import conversation_workflow
from uniworld.nodes.headless.bench.items import SuiteOptions
from uniworld.nodes.headless.bench.plan import BenchPlan, make_plan
from uniworld.nodes.headless.bench.run_folder import RunFolder, find_made
from uniworld.nodes.headless.bench.suites.imgedit_turns import ImgEditTurnsSuite
from uniworld.nodes.headless.bench.turns import make_turns
from uniworld.nodes.headless.registry.registry import Registry
from uniworld.nodes.headless.workflow.file import find_workflow, read_workflow
from uniworld.uniworld_core.errors import RunFailed, UniWorldError

from .folders import TURN_TASKS, imgedit_turns, results
from .test_bench_generate import COPY

TURNS = 15  # of six items


@pytest.fixture
def download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.json").write_text(json.dumps(COPY))
    return imgedit_turns(tmp_path / "data")


def bench(*arguments: str) -> int:
    return main(["bench", "imgedit_multiturn", "--data", "data", "--out", "run", *arguments])


def test_each_turn_edits_the_result_of_the_one_before(
    tmp_path: Path, download: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("--workflow", "w.json", "--bind", "prompt=Text.value")
    assert bench(*command) == 0
    out, _ = capsys.readouterr()
    assert "15 made, 0 missing" in out
    assert "There is no score" in out
    run = tmp_path / "run"
    made = {path.relative_to(run / "pictures").with_suffix("").as_posix() for path in run.rglob("pictures/**/*.png")}
    assert made == set(download)
    rows = [json.loads(line) for line in (run / "rows.turn3.jsonl").read_text().splitlines()]
    assert rows[0]["image"] == {"1": "pictures/content_memory/1_turn2.png"}
    assert rows[0]["set"] == {"Text.value": "Edit 3 of 00.jpg."}
    result = json.loads((run / "result.json").read_text())
    assert result["counts"] == {"made": TURNS, "missing": 0}
    assert "tables" not in result
    html = (run / "report.html").read_text()
    assert html.count("<img") == TURNS + 6
    assert "Edit 2 of 21.jpg." in html
    assert (run / "sheet.png").is_file()
    records = {path.name: path.read_bytes() for path in run.glob("rows*")}
    assert bench(*command) == 0
    assert {path.name: path.read_bytes() for path in run.glob("rows*")} == records


def test_a_missing_turn_of_pictures_made_elsewhere_is_named(
    tmp_path: Path, download: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    names = [name for name in download if not name.startswith("content_memory/1_")]
    results(tmp_path / "pictures", [*names, "content_memory/1_turn3"])
    assert bench("--pictures", "pictures") == 1
    assert "13 made, 2 missing" in capsys.readouterr().out
    reasons = [one["reason"] for one in json.loads((tmp_path / "run" / "result.json").read_text())["results"][:3]]
    assert reasons == ["there is no picture", "turn 1 has no result (there is no picture)", ""]
    assert "missing: turn 1 has no result" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["bench", "judge", "run", "--judge", "openai", "--judge-model", "m"], "has no published scorer"),
        (["bench", "compare", "run", "run"], "has no scores to compare"),
        (["bench", "imgedit_multiturn", "--data", "x", "--out", "y", "--judge", "vqa"], "has no published scorer"),
        (["bench", "geneval", "--data", "x", "--out", "y", "--judge", "openai", "--judge-model", "m"], "a detector"),
    ],
)
def test_a_judge_of_the_wrong_kind_is_refused_before_anything_else(
    download: list[str], command: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bench("--pictures", "data")
    assert main(command) == 2
    assert sentence in capsys.readouterr().err


class FakePlace:
    """Runs batches as `uniworld batch` does: rows with a final record do not run again, and the rows must not change.

    Attributes:
        failing: ids of rows that fail.
        left: number of rows until the program is killed.
        ran: how often each row ran.
    """

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.failing: set[str] = set()
        self.left = 10**9
        self.retry_failed = False
        self.ran: Counter[str] = Counter()
        self.seeds: dict[str, int] = {}

    def run(self, workflow: Path, rows: Path, results: Path, output: Path) -> int:
        header = json.dumps({"rows": rows.read_text(), "workflow": workflow.read_text()})
        lines = results.read_text().splitlines() if results.is_file() else [header]
        assert lines[0] == header
        status = {record["id"]: record["status"] for record in map(json.loads, lines[1:])}
        final = {"done"} if self.retry_failed else {"done", "error"}
        for row in map(json.loads, rows.read_text().splitlines()):
            if status.get(row["id"]) in final:
                continue
            if self.left == 0:
                raise RunFailed("killed")
            self.left -= 1
            self.ran[row["id"]] += 1
            self.seeds[row["id"]] = row["set"]["6.seed"]
            name = f"{row['id'].replace('/', '_')}.png"
            record = {"id": row["id"], "status": "error", "error": "boom"}
            if row["id"] not in self.failing:
                (output / rows.stem).mkdir(parents=True, exist_ok=True)
                source = rows.parent / row["image"]["2"]
                assert source.is_file()
                Image.open(source).save(output / rows.stem / name)
                record = {"id": row["id"], "status": "done", "outputs": {"pictures": [f"{rows.stem}/{name}"]}}
            lines.append(json.dumps(record))
            results.write_text("\n".join(lines) + "\n")
        return 0


@pytest.fixture
def turns(tmp_path: Path, download: list[str]) -> tuple[RunFolder, BenchPlan]:
    run = RunFolder(tmp_path / "run")
    plan = make_plan("imgedit_multiturn", [tmp_path / "data"], SuiteOptions(), None, 42, run.sources, False)
    run.write_plan(plan)
    return run, plan


def test_a_failed_turn_leaves_the_later_ones_for_a_retry(
    turns: tuple[RunFolder, BenchPlan], registry: Registry
) -> None:
    run, plan = turns
    place = FakePlace(registry)
    place.failing = {"content_memory/1/turn1", "version_backtracking/1/turn2"}
    assert set(make_turns(run, plan, "edit", [], place)) == place.failing
    missing = find_made(run, plan).missing
    assert missing["content_memory/1", 0] == "boom"
    assert missing["content_memory/1", 2] == "turn 1 has no result (boom)"
    assert missing["version_backtracking/1", 2] == "turn 2 has no result (boom)"
    assert len(missing) == 5
    place.failing, place.retry_failed = set(), True
    assert make_turns(run, plan, "edit", [], place) == {}
    assert not find_made(run, plan).missing
    assert len(place.ran) == TURNS
    assert place.ran.total() == TURNS + 2


def test_a_run_killed_after_every_row_makes_each_picture_once(
    turns: tuple[RunFolder, BenchPlan], registry: Registry
) -> None:
    run, plan = turns
    place = FakePlace(registry)
    for count in range(1, TURNS + 1):
        place.left = 1
        with contextlib.suppress(RunFailed):
            make_turns(run, plan, "edit", [], place)
        assert place.ran.total() == count
    assert set(place.ran.values()) == {1}
    assert len(set(place.seeds.values())) == TURNS
    assert not find_made(run, plan).missing


def test_a_turn_of_a_conversation_sees_all_earlier_ones(
    tmp_path: Path, download: list[str], registry: Registry
) -> None:
    prompt = read_workflow(find_workflow("edit"), registry).prompt
    assert conversation_workflow(prompt, registry, "2", 0).prompt == prompt
    third = conversation_workflow(prompt, registry, "2", 2)
    condition = third.prompt["4"]["inputs"]
    assert "references" not in condition
    last = third.prompt[condition["conversation"][0]]["inputs"]
    assert (last["role"], last["siglip"], last["image"]) == ("assistant", ["1", 1], [third.made[1], 0])
    first = third.prompt[third.said[0].partition(".")[0]]["inputs"]
    assert (first["role"], first["references"]) == ("user", ["3", 0])
    run = RunFolder(tmp_path / "run")
    split = SuiteOptions("conversation")
    plan = make_plan("imgedit_multiturn", [tmp_path / "data"], split, 1, 42, run.sources, False)
    run.write_plan(plan)
    assert make_turns(run, plan, "edit", [], FakePlace(registry)) == {}
    row = json.loads((run.folder / "rows.turn2.jsonl").read_text().splitlines()[0])
    assert row["image"]["2"] == plan.items[0].picture
    assert row["image"]["10"].startswith("pictures/")
    assert row["set"]["9.text"] == plan.items[0].turns[0]


def test_a_workflow_without_a_conversation_is_refused(registry: Registry) -> None:
    with pytest.raises(UniWorldError, match="--split conversation needs a workflow"):
        conversation_workflow(COPY, registry, "1", 1)
    prompt = read_workflow(find_workflow("text_to_image"), registry).prompt
    with pytest.raises(UniWorldError, match="--split conversation needs the source image"):
        conversation_workflow(prompt, registry, "2", 1)


def read(folder: Path) -> Any:
    return ImgEditTurnsSuite().read([folder], SuiteOptions("edits"), folder)


def test_the_form_of_the_readme_is_read_too(tmp_path: Path) -> None:
    imgedit_turns(tmp_path)
    lines = read(tmp_path).items
    for task in TURN_TASKS:
        path = next(tmp_path.rglob(f"{task}/annotation.json"))
        records = [json.loads(line) for line in path.read_text().splitlines()]
        records[1]["turn3"] = ""
        path.write_text(json.dumps({str(number): record for number, record in enumerate(records, 1)}))
    again = read(tmp_path)
    assert again.items == lines
    assert set(again.files) == {f"{task}/annotation.json" for task in TURN_TASKS}
    assert [item.samples for item in lines] == [3, 2] * 3


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ({"id": "00.jpg", "turn1": "a", "turn3": "c"}, "its turns are turn1, turn3, expected"),
        ({"1": {"id": "00.jpg"}}, "its turns are missing"),
        ({"id": "00.jpg", "turn1": "a", "turn2": 5}, "'turn2' is 5"),
        ({"id": "00.jpg", "turn1": "a", "turn02": "b"}, "its turns are turn1, turn02"),
        ({"id": "../00.jpg", "turn1": "a"}, "is not a name inside its folder"),
        ({"turn1": "a"}, "'id' is None"),
        ([1, 2], "must contain items"),
    ],
)
def test_damaged_items_are_named(tmp_path: Path, line: Any, sentence: str) -> None:
    imgedit_turns(tmp_path)
    next(tmp_path.rglob("content_memory/annotation.json")).write_text(json.dumps(line))
    with pytest.raises(UniWorldError, match=sentence):
        read(tmp_path)


def test_a_download_cut_short_is_named(tmp_path: Path) -> None:
    imgedit_turns(tmp_path)
    path = next(tmp_path.rglob("version_backtrace/annotation.json"))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UniWorldError, match=r"Line 2 of .*annotation.json' is not valid JSON"):
        read(tmp_path)
    path.unlink()
    with pytest.raises(UniWorldError, match=r"needs the file 'multiturn/version_backtrace/annotation\.json'"):
        read(tmp_path)
    imgedit_turns(tmp_path / "other")
    next((tmp_path / "other").rglob("content_understand/11.jpg")).unlink()
    assert set(read(tmp_path / "other").missing) == {"content_understanding/2"}
