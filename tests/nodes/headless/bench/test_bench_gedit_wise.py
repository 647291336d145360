"""GEdit-Bench and WISE from small downloads to the table."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai")
pytest.importorskip("pyarrow")

from PIL import Image
from uniworld.__main__ import main
from uniworld.nodes.headless.bench import statistics
from uniworld.nodes.headless.bench.items import SuiteOptions
from uniworld.nodes.headless.bench.score_step import ScoredResult, make_table
from uniworld.nodes.headless.bench.suites.gedit import GEditSuite
from uniworld.nodes.headless.bench.suites.wise import WISESuite
from uniworld.uniworld_core.errors import UniWorldError

from .fake_judge import KEY, Answer, Request, serving
from .folders import gedit, results, wise

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Judge the pictures of a benchmark, and return result.json."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(statistics, "RESAMPLES", 20)

    def measure(name: str, names: list[str], script: Callable[[Request], Answer], *more: str) -> dict[str, Any]:
        pictures, out = results(tmp_path / "pictures", names), tmp_path / "run"
        with serving(script) as fake:
            judge = ["--judge", fake.url, "--judge-model", "m", "--retry-wait", "0.01", *more]
            places = ["--data", str(tmp_path / "data"), "--pictures", str(pictures), "--out", str(out)]
            assert main(["bench", name, *places, *judge]) == 0
        return json.loads((out / "result.json").read_text())

    return measure


@pytest.mark.parametrize("arrow", [False, True], ids=["parquet", "arrow"])
def test_gedit_is_read_from_either_form(tmp_path: Path, arrow: bool) -> None:
    names = gedit(tmp_path, arrow=arrow)
    read = GEditSuite().read([tmp_path], SuiteOptions("en"), tmp_path / "sources")
    assert [item.target for item in read.items] == names
    first = read.items[0]
    assert (Image.open(str(first.picture)).size, Image.open(str(first.source)).size) == ((60, 40), (30, 20))
    assert first.cluster == read.items[2].cluster != read.items[1].cluster
    assert {item.prompt for item in GEditSuite().read([tmp_path], SuiteOptions("cn"), tmp_path / "sources").items} == {
        "编辑 0。",
        "编辑 1。",
    }


def test_gedit_asks_viescores_two_questions_and_scores_their_minima(tmp_path: Path, measure: Run) -> None:
    asked: list[Request] = []

    def script(request: Request) -> Answer:
        asked.append(request)
        if request.text == "Context.\nQuality.":
            return Answer('{"score": [9, 8], "reasoning": "fine"}')
        return Answer('{"score": [4, 6]}' if "Edit 0" in request.text else '{"score": [2, 7]}')

    result = measure("gedit", gedit(tmp_path / "data"), script, "--parallel", "1")
    first, second = asked[:2]
    assert first.text == "Context.\nTwo pictures.\nEditing instruction: Edit 0 of color_alter."
    assert [one.size for one in first.pictures] == [(30, 20), (30, 20)]
    assert first.mimes == ["image/jpeg"] * 2
    assert second.mimes == ["image/jpeg"]
    assert first.body["max_tokens"] == 1400
    table = result["tables"]["published"]
    overall = (math.sqrt(4 * 8) + math.sqrt(2 * 8)) / 2
    assert table["groups"]["ps_human"] == {"SC": 3.0, "PQ": 8.0, "O": pytest.approx(overall)}
    assert table["overall"]["O"] == pytest.approx(overall)
    assert table["overall"]["O intersection"] == pytest.approx(math.sqrt(32))
    assert table["intervals"] == {}  # of two source pictures


def test_gedits_rows_with_the_same_key_are_judged_on_the_files_of_the_last(tmp_path: Path, measure: Run) -> None:
    asked: list[Request] = []

    def script(request: Request) -> Answer:
        asked.append(request)
        return Answer('{"score": [4, 4]}' if "later" in request.text else '{"score": [9, 9]}')

    names = gedit(tmp_path / "data", repeat=True)
    result = measure("gedit", names, script)
    assert [one["id"] for one in result["results"]].count("color_alter/en/k0~1") == 1
    assert result["tables"]["published"]["group_counts"]["color_alter"] == 3
    assert result["tables"]["published"]["groups"]["color_alter"]["SC"] == pytest.approx((9 + 9 + 4) / 3)
    items = {one.id: one for one in GEditSuite().read([tmp_path / "data"], SuiteOptions("en"), tmp_path / "s").items}
    first, last = items["color_alter/en/k0~1"], items["color_alter/en/k0"]
    assert (first.prompt, last.prompt) == ("Edit 0 of color_alter.", "The later edit.")
    assert (first.source, first.picture, first.target) == (last.source, last.picture, last.target)


def test_wise_without_a_category_says_why_there_is_no_overall_score(tmp_path: Path) -> None:
    wise(tmp_path / "data")
    suite = WISESuite()
    read = suite.read([tmp_path], SuiteOptions("verified"), tmp_path)
    scored = [ScoredResult(item, 0, "scored", {"score": 1.0}) for item in read.items if item.group != "TIME"]
    table = make_table(suite, scored, "published", False)
    assert (table.scores.overall, table.complete) == ({}, True)
    assert table.undefined == "The overall score needs prompts of every category; no scored one is of TIME."
    assert make_table(suite, [*scored, ScoredResult(read.items[1], 0, "unscored")], "strict", False).lacking == ["TIME"]


def test_one_unreadable_reply_of_two_leaves_gedits_item_unscored(tmp_path: Path, measure: Run) -> None:
    def script(request: Request) -> Answer:
        refuse = "Edit 1 of ps_human" in request.text
        return Answer("Sorry." if refuse else '{"score": [5, 5]}')

    result = measure("gedit", gedit(tmp_path / "data"), script)
    assert result["tables"]["published"]["counts"] == {"scored": 3, "unscored": 1, "open": 0, "missing": 0}
    reason = next(one["published"]["reason"] for one in result["results"] if one["id"] == "ps_human/en/k1")
    assert reason == "SC: the reply contains no scores"


_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"


def _other_data_set(folder: Path, name: str) -> None:
    gedit(folder / "other", groups=("style_change",))
    (folder / "other" / "viescore" / "vie_prompts.py").unlink()
    next((folder / "other").glob("*.parquet")).rename(folder / "other" / f"{name}.parquet")


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (lambda folder: (folder / "viescore" / "vie_prompts.py").unlink(), "needs the file 'vie_prompts.py'"),
        (lambda folder: next(folder.glob("*.parquet")).unlink(), "needs its data set"),
        (lambda folder: next(folder.glob("*.parquet")).write_bytes(b"PAR1 half"), r"cannot be read: .*[^.]\. Download"),
        (lambda folder: next(folder.glob("*.parquet")).write_bytes(_POINTER), "git lfs pull"),
        (lambda folder: (folder / "viescore" / "vie_prompts.py").write_bytes(_POINTER), "git lfs pull"),
        (lambda folder: _other_data_set(folder, "train-00000-of-00001"), "several versions of 'train-00000-of-00001"),
        (lambda folder: _other_data_set(folder, "test-00000-of-00001"), "several versions of the data set"),
    ],
)
def test_an_incomplete_gedit_is_named(tmp_path: Path, break_it: Callable[[Path], object], sentence: str) -> None:
    gedit(tmp_path)
    break_it(tmp_path)
    with pytest.raises(UniWorldError, match=sentence):
        GEditSuite().read([tmp_path], SuiteOptions("en"), tmp_path / "sources")


@pytest.mark.parametrize("arrow", [False, True], ids=["parquet", "arrow"])
def test_copies_and_caches_of_a_data_set_are_not_read_again(tmp_path: Path, arrow: bool) -> None:
    gedit(tmp_path, arrow=arrow)
    (tmp_path / "copy").mkdir()
    file = next(tmp_path.glob("*-of-*"))
    for name in (file.name, f"._{file.name}", *(["cache-0123.arrow"] if arrow else [])):
        (tmp_path / "copy" / name).write_bytes(file.read_bytes())
    read = GEditSuite().read([tmp_path], SuiteOptions("en"), tmp_path / "sources")
    assert len(read.items) == 4


@pytest.mark.parametrize("arrow", [False, True], ids=["parquet", "arrow"])
def test_a_missing_shard_is_named(tmp_path: Path, arrow: bool) -> None:
    gedit(tmp_path, arrow=arrow)
    only = next(tmp_path.glob("*-of-*"))
    only.rename(only.with_name(only.name.replace("of-00001", "of-00002")))
    with pytest.raises(UniWorldError, match=r"needs the file '\w+-00001-of-00002"):
        GEditSuite().read([tmp_path], SuiteOptions("en"), tmp_path / "sources")


def test_wise_weights_its_categories(tmp_path: Path, measure: Run) -> None:
    asked: list[Request] = []

    def script(request: Request) -> Answer:
        asked.append(request)
        if len(asked) > 5:  # as OpenAI's server, which has no such parameter
            unknown = "Unrecognized request argument supplied: chat_template_kwargs"
            if "chat_template_kwargs" in request.body:
                return Answer(status=400, error={"message": unknown, "param": None})
        return Answer("<think>Score: 0?</think>\nScore: 1" if "thing 1?" in request.text else "Score: 0")

    result = measure("wise", wise(tmp_path / "data"), script)
    assert {one.text for one in asked} >= {"Is it thing 401? why 401"}
    body = asked[0].body
    assert body["messages"][0] == {"role": "system", "content": [{"type": "text", "text": "Be strict."}]}
    assert (body["temperature"], body["max_tokens"]) == (0.0, 500)
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert "chat_template_kwargs" not in asked[-1].body
    table = result["tables"]["published"]
    assert table["groups"]["CULTURE"] == {"score": 1.0}
    assert table["overall"] == {"overall": pytest.approx(0.4)}


def test_wise_reads_its_own_edition_only(tmp_path: Path) -> None:
    wise(tmp_path)
    suite = WISESuite()
    with pytest.raises(UniWorldError, match=r"needs the file 'gpt_eval.py'.*github.com/PKU-YuanGroup/WISE"):
        suite.read([tmp_path], SuiteOptions("legacy"), tmp_path)
    assert suite.check("verified", "Consistency: 2\nRealism: 1\nAesthetic Quality: 1", "published") is not None
    assert suite.check("legacy", "Consistency: 2\nRealism: 1\nAesthetic Quality: 1", "published") is None


def test_an_unknown_split_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wise(tmp_path)
    assert main(["bench", "plan", "wise", "--data", str(tmp_path), "--out", str(tmp_path / "r"), "--split", "new"]) == 2
    assert "The splits are: verified, legacy, legacy_rewrite" in capsys.readouterr().err
