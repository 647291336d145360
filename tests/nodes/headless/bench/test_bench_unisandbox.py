"""UniSandbox: two questions about each picture, and pairs that count once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai")

from uniworld.__main__ import main
from uniworld.nodes.headless.bench import statistics
from uniworld.nodes.headless.bench.items import SuiteOptions
from uniworld.nodes.headless.bench.scoring.outcome import Unscored
from uniworld.nodes.headless.bench.suites.unisandbox import UniSandboxSuite
from uniworld.uniworld_core.errors import UniWorldError

from .fake_judge import KEY, Answer, Request, serving
from .folders import results, unisandbox

SUITE = UniSandboxSuite()


def test_a_run_asks_for_a_description_and_then_compares_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(statistics, "RESAMPLES", 20)
    unisandbox(tmp_path / "data")
    pictures = results(tmp_path / "test", [f"think/{one}" for one in ("math_1/1", "mapping1/1_A", "mapping1/1_B")])

    def script(request: Request) -> Answer:
        if request.pictures:
            assert request.body["messages"][0]["content"][0]["type"] == "image_url"
            return Answer("Caption: 2 apples" if "math" in request.text else "Object: {gt} cup")
        return Answer("Score: YES" if "Expected: 2 apples" in request.text or "Cups" in request.text else "Score: NO")

    with serving(script) as fake:
        places = ["--data", str(tmp_path / "data"), "--pictures", str(pictures), "--out", str(tmp_path / "run")]
        command = ["bench", "unisandbox", "--split", "reasoning_think", *places, "--judge", fake.url]
        assert main([*command, "--judge-model", "m"]) == 0
        texts = {one.text for one in fake.requests if not one.pictures}
    assert texts == {
        "Shown: Caption: 2 apples. Expected: 2 apples.",
        "Shown: {gt} cup. Expected: Cups.",
        "Shown: {gt} cup. Expected: Hats.",
    }
    table = json.loads((tmp_path / "run" / "result.json").read_text())["tables"]["published"]
    assert table["groups"] == {"mapping1": {"correct": 0.0}, "math_1": {"correct": 1.0}}
    assert table["overall"] == {"accuracy": 0.5}


def items(folder: Path, split: str) -> dict[str, Any]:
    unisandbox(folder)
    return {one.id: one for one in SUITE.read([folder], SuiteOptions(split), folder).items}


def test_a_rejected_picture_is_wrong_without_a_second_question(tmp_path: Path) -> None:
    item = items(tmp_path, "knowledge")["Someone/7"]
    assert item.target == "normal/Someone/7"
    prompts = {"knowledge description": "d", "knowledge verdict": "{caption}"}
    answers = {"knowledge description": "Reject\nbecause"}
    assert len(SUITE.asks(item, tmp_path, prompts, answers)) == 1
    assert SUITE.score(item, answers, "published") == {"correct": 0.0}
    assert isinstance(SUITE.check("knowledge description", " ", "published"), Unscored)
    assert isinstance(SUITE.check("knowledge verdict", "maybe", "published"), Unscored)


def test_a_pair_without_one_score_is_wrong_or_left_out(tmp_path: Path) -> None:
    first = items(tmp_path, "reasoning")["mapping1/1_A"]
    assert SUITE.aggregate([(first, {"correct": 0.0})]).overall == {"accuracy": 0.0}
    assert SUITE.aggregate([(first, {"correct": 1.0})]).overall == {}


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("eval/eval_math.py", 'CAPTION_PROMPT = "a"\nEVALUATION_PROMPT_TEMPLATE = "{caption}"', "no field"),
        ("benchmark/test_reasoning/math_1.jsonl", '{"id": "../x", "Question": "q", "Answer": "a"}', "the id is"),
        ("benchmark/test_reasoning/math_1.jsonl", "[]", "expected an item"),
        ("benchmark/test_reasoning/math_1.jsonl", '{"id": 1, "Question": 3, "Answer": "a"}', "'Question' is 3"),
    ],
)
def test_a_damaged_download_is_named(tmp_path: Path, name: str, text: str, sentence: str) -> None:
    unisandbox(tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(UniWorldError, match=sentence):
        SUITE.read([tmp_path], SuiteOptions("reasoning"), tmp_path)
