"""DPG-Bench and TIFA: answers of a VQA model from a file or a program, and a language model in its place."""

from __future__ import annotations

import asyncio
import csv
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from uniworld.__main__ import main
from uniworld.nodes.headless.bench import generate, statistics
from uniworld.nodes.headless.bench.items import BenchItem, SuiteOptions
from uniworld.nodes.headless.bench.judging.ask import Ask, AskPicture
from uniworld.nodes.headless.bench.judging.client import JudgeDown, JudgeRejected
from uniworld.nodes.headless.bench.judging.replies import JudgeReply
from uniworld.nodes.headless.bench.judging.vqa import ProgramVQA, question_text
from uniworld.nodes.headless.bench.run_folder import rows_of
from uniworld.nodes.headless.bench.scoring.outcome import Unscored
from uniworld.nodes.headless.bench.suites.dpg import DPGSuite, DPGVQASuite
from uniworld.nodes.headless.bench.suites.tifa import TIFASuite, TIFAVQASuite
from uniworld.uniworld_core.errors import RunFailed, UniWorldError

from .folders import results


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def bench(*arguments: object) -> int:
    return main(["bench", *map(str, arguments)])


def tables(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())["tables"]


def test_answers_from_a_file_give_the_published_and_the_intended_scores(
    golden: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole run on a golden: plan, questions, answers made elsewhere, scores."""
    monkeypatch.setattr(statistics, "RESAMPLES", 5)
    one = next(
        one
        for one in golden("dpg")["runs"]
        if one["settings"]["pic_num"] == 4 and not one["settings"]["missing_pictures"] and one.get("derived_intended")
    )
    write_csv(tmp_path / "data" / "dpg_bench.csv", one["rows"])
    pictures = results(tmp_path / "pictures", list(dict.fromkeys(row["item_id"] for row in one["rows"])))
    run, answers = tmp_path / "run", tmp_path / "answers.jsonl"
    command = ["dpg", "--data", tmp_path / "data", "--pictures", pictures, "--out", run, "--judge", "vqa"]
    bench(*command)
    assert 'Add "answer" to each line' in capsys.readouterr().err
    lines = [json.loads(line) for line in (run / "questions.jsonl").read_text().splitlines()]
    assert lines[0]["box"] == [0, 0, 10, 10]
    for line in lines:
        line["answer"] = one["answers"][line["question"]][line["crop"] - 1]
    answers.write_text("".join(json.dumps(line) + "\n" for line in lines[:-1]))
    judge = [*command, "--vqa", answers, "--judge-model", "mplug"]
    assert bench(*judge) == 1
    assert "has no answer to" in capsys.readouterr().err
    answers.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert bench(*judge) == 0
    made = tables(run)
    assert made["published"]["overall"]["DPG"] == pytest.approx(one["published"]["score"], rel=1e-9)
    assert made["strict"]["overall"]["DPG"] == pytest.approx(one["derived_intended"]["score"], rel=1e-9)
    rows = {name: row["score"] for name, row in made["published"]["groups"].items()}
    assert rows == pytest.approx(one["published"]["categories"], rel=1e-9)
    lines[0]["answer"] = "another"
    answers.write_text(json.dumps(lines[0]) + "\n")
    assert bench(*judge) == 2
    assert "has another answer for item" in capsys.readouterr().err


TIFA = [
    {"id": "a_1", "caption": "Two cats.", "question": "how many?", "choices": ["1", "2"], "answer": "2", "element_type": "counting"},
    {"id": "a_1", "caption": "Two cats.", "question": "a cat?", "choices": ["yes", "no"], "answer": "yes", "element_type": "animal"},
    {"id": "b_2", "caption": "A dog.", "question": "a dog?", "choices": ["yes", "no"], "answer": "yes", "element_type": "animal"},
]  # fmt: skip
PROGRAM = """
import json, sys
print("loading", flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    print(json.dumps({"answer": asked["choices"][-1]}), flush=True)
"""


def test_a_program_answers_the_questions(
    golden: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 5)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tifa_v1.0_question_answers.json").write_text(json.dumps(TIFA))
    (tmp_path / "vqa.py").write_text(PROGRAM)
    pictures = results(tmp_path / "pictures", ["a_1", "b_2"])
    command = ["tifa", "--data", tmp_path / "data", "--pictures", pictures, "--out", tmp_path / "run", "--judge", "vqa"]
    assert bench(*command, "--vqa-command", f"{sys.executable} {tmp_path / 'vqa.py'}", "--judge-model", "m") == 0
    table = tables(tmp_path / "run")["published"]
    assert table["groups"] == {"animal": {"score": 0.0}, "counting": {"score": 1.0}}
    assert table["overall"] == pytest.approx({"TIFA": 0.25, "deviation": 0.5**0.5 / 2})
    assert table["group_counts"] == {"animal": 2, "counting": 1}


def test_a_language_model_is_asked_again_for_one_of_the_choices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openai")
    pytest.importorskip("aiohttp")
    from .fake_judge import KEY, Answer, Request, serving

    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(statistics, "RESAMPLES", 5)
    (tmp_path / "tifa_v1.0_question_answers.json").write_text(json.dumps(TIFA))
    pictures = results(tmp_path / "pictures", ["a_1", "b_2"])
    seen: Counter[str] = Counter()

    def script(request: Request) -> Answer:
        question = next(one["question"] for one in TIFA if f"Question: {one['question']}" in request.text)
        seen[question] += 1
        if question == "how many?":
            return Answer("Several.")
        return Answer("Yes." if question == "a cat?" or seen[question] == 2 else "Perhaps.")

    with serving(script) as fake:
        judge = ["--judge", fake.url, "--judge-model", "m"]
        # No question of the type "counting" is scored.
        assert bench("tifa", "--data", tmp_path, "--pictures", pictures, "--out", tmp_path / "run", *judge) == 1
    assert seen == {"how many?": 3, "a cat?": 1, "a dog?": 2}
    made = tables(tmp_path / "run")["published"]
    assert made["counts"] == {"scored": 1, "unscored": 1, "open": 0, "missing": 0}
    assert (made["overall"], made["lacking"]) == ({}, ["counting"])


def ask_program(folder: Path, program: str, timeout: float = 20.0) -> str | None:
    (folder / "vqa.py").write_text(program)
    Image.new("RGB", (20, 20)).save(folder / "a.png")
    judge = ProgramVQA(f"{sys.executable} {folder / 'vqa.py'}", "m", timeout)
    ask = Ask("k", question_text("what?", 1), (AskPicture(folder / "a.png", box=(10, 0, 20, 10)),))

    async def once() -> str | None:
        try:
            return (await judge.reply(ask, JudgeReply("k", "i", 0, "k", 0, None))).text
        finally:
            await judge.close()

    return asyncio.run(once())


def test_a_program_gets_the_crop_as_a_file(tmp_path: Path) -> None:
    program = "import json\nasked = json.loads(input())\nprint(json.dumps({'answer': json.dumps(sorted(asked))}))"
    assert ask_program(tmp_path, program) == '["picture", "question"]'


@pytest.mark.parametrize(
    ("program", "kind", "sentence"),
    [
        ("raise SystemExit(3)", JudgeDown, "ended with code 3"),
        ('print(\'{"error": "no memory"}\')', JudgeRejected, "no memory"),
        ("print('{\"answer\": 1}')", JudgeRejected, "expected a text"),
        ("import time; time.sleep(60)", JudgeDown, "did not reply in time"),
    ],
)
def test_a_program_that_fails_gives_no_answer(
    tmp_path: Path, program: str, kind: type[Exception], sentence: str
) -> None:
    with pytest.raises(kind, match=sentence):
        ask_program(tmp_path, program, 0.3 if "sleep" in program else 20.0)


def test_a_program_that_cannot_start_ends_the_run(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    ask = Ask("k", question_text("what?"), (AskPicture(tmp_path / "a.png"),))
    judge = ProgramVQA(str(tmp_path / "missing"), "m", 5.0)
    with pytest.raises(RunFailed, match="cannot be started"):
        asyncio.run(judge.reply(ask, JudgeReply("k", "i", 0, "k", 0, None)))


def dpg_item(folder: Path) -> BenchItem:
    row = {"item_id": "x", "text": "A cat.", "proposition_id": 1, "dependency": "0", "tuple": "entity - whole (cat)"}
    write_csv(folder / "dpg_bench.csv", [{**row, "question_natural_language": "a cat?"}] * 1)
    return DPGSuite().read([folder], SuiteOptions("one"), folder).items[0]


def test_a_language_model_must_answer_in_the_form_asked_for(tmp_path: Path) -> None:
    item = dpg_item(tmp_path)
    assert DPGSuite().score(item, {"a cat?": "**Yes**, there is."}, "strict") == {
        "score": 1.0, "entity - whole (right)": 1.0, "entity - whole (questions)": 1.0
    }  # fmt: skip
    assert isinstance(DPGSuite().check("a cat?", "I think yes", "strict"), Unscored)
    assert DPGVQASuite().check("a cat?", "a white one", "strict") is None
    (tmp_path / "tifa_v1.0_question_answers.json").write_text(json.dumps(TIFA))
    question = TIFASuite().read([tmp_path], SuiteOptions(), tmp_path).items[1]
    assert isinstance(TIFASuite().score(question, {"a dog?": "perhaps"}, "published"), Unscored)
    assert isinstance(TIFAVQASuite().score(question, {"a dog?": "perhaps"}, "strict"), Unscored)
    found = TIFAVQASuite().score(question, {"a dog?": "perhaps"}, "published")
    assert not isinstance(found, Unscored)
    assert found["score"] == 0.0


@pytest.mark.parametrize("size", [(1, 1), (20, 21)])
def test_a_picture_that_is_no_grid_is_counted_and_named(
    tmp_path: Path, size: tuple[int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    dpg_item(tmp_path)
    picture = results(tmp_path / "pictures", ["x"]) / "x.png"
    Image.new("RGB", size).save(picture)
    command = ["dpg", "--data", tmp_path, "--pictures", picture.parent, "--out", tmp_path / "run", "--judge", "vqa"]
    assert bench(*command) == 1
    assert f"it has {size[0]}x{size[1]} pixels, so it is not a grid of four" in capsys.readouterr().err
    assert tables(tmp_path / "run")["published"]["counts"]["missing"] == 1


def test_four_pictures_of_a_prompt_become_a_grid(tmp_path: Path) -> None:
    item = BenchItem("x", "all", "x", "p", "x", tiles=4)
    assert rows_of(item, 0) == [("x/0", 0), ("x/1", 1), ("x/2", 2), ("x/3", 3)]
    paths = []
    for number in range(4):
        paths.append(tmp_path / f"{number}.png")
        Image.new("RGB", (2, 3), (number, 0, 0)).save(paths[-1])
    generate._place_grid(paths, tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (4, 6)
        assert [grid.getpixel(place) for place in ((0, 0), (2, 0), (0, 3), (3, 5))] == [(n, 0, 0) for n in range(4)]
    Image.new("RGB", (3, 3)).save(paths[0])
    with pytest.raises(OSError, match="different sizes"):
        generate._place_grid(paths, tmp_path / "other.png")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--vqa", "a.jsonl"], "belong to --judge vqa"),
        (["--judge", "vqa", "--vqa", "a", "--vqa-command", "b"], "exclude each other"),
        (["--judge", "vqa", "--vqa", "missing.jsonl", "--judge-model", "m"], "'missing.jsonl' is not a file"),
        (["--judge", "vqa", "--vqa-command", "./no-such a", "--judge-model", "m"], "'./no-such' is not a program"),
        (["--judge", "vqa", "--vqa-command", "'", "--judge-model", "m"], "Check its quotes"),
        (["--judge", "vqa", "--vqa", "missing.jsonl"], "Add --judge-model"),
    ],
)
def test_options_that_do_not_fit_are_named(
    tmp_path: Path, options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    dpg_item(tmp_path)
    assert bench("dpg", "--data", tmp_path, "--out", tmp_path / "run", *options) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()  # no step has begun


def test_rows_without_a_column_are_named(tmp_path: Path) -> None:
    write_csv(tmp_path / "dpg_bench.csv", [{"item_id": "x"}])
    with pytest.raises(UniWorldError, match="Row 1 of the questions is invalid"):
        DPGSuite().read([tmp_path], SuiteOptions("four"), tmp_path)
