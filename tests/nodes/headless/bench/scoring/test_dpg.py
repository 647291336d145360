"""DPG-Bench's scores equal those of the published script, bugs included."""

from __future__ import annotations

from typing import Any

import pytest
from uniworld.nodes.headless.bench.scoring.dpg import Answers, DPGQuestion, intended, published, read_questions


def answers_of(run: dict[str, Any], questions: list[DPGQuestion]) -> Answers:
    missing, crops = run["settings"]["missing_pictures"], run["settings"]["pic_num"]
    made: dict[str, dict[int, list[str]]] = {}
    for question in questions:
        if question.item not in missing:
            made.setdefault(question.item, {})[question.number] = run["answers"][question.text][:crops]
    return made


def test_golden_runs(golden: Any) -> None:
    for run in golden("dpg")["runs"]:
        questions = read_questions(run["rows"])
        made, wanted = published(questions, answers_of(run, questions)), run["published"]
        assert sorted(made.pictures) == sorted(wanted["pictures"])
        for item, picture in made.pictures.items():
            assert list(picture.crops) == pytest.approx(wanted["pictures"][item]["crops"], rel=1e-9)
            assert picture.score == pytest.approx(wanted["pictures"][item]["mean"], rel=1e-9)
        assert made.broad | made.detailed == pytest.approx(wanted["categories"], rel=1e-9)
        assert made.score == pytest.approx(wanted["score"], rel=1e-9)
        # In the published script, files that are not pictures of the benchmark fail too.
        failed = {name.removesuffix(".png") for name in wanted["failed"] if name not in run["settings"]["other_files"]}
        assert set(made.unscored) == failed


def test_golden_runs_without_the_bugs(golden: Any) -> None:
    runs = [run for run in golden("dpg")["runs"] if run.get("derived_intended")]
    assert runs
    for run in runs:
        questions = read_questions(run["rows"])
        made, wanted = intended(questions, answers_of(run, questions)), run["derived_intended"]
        assert made.score == pytest.approx(wanted["score"], rel=1e-9)
        assert made.broad == pytest.approx(wanted["l1_all_crops_raw"], rel=1e-9)
        assert not made.unscored


def ask(number: int, *parents: int) -> DPGQuestion:
    return DPGQuestion("a", number, parents or (0,), "entity - whole", f"Question {number}?")


def test_a_missing_answer_leaves_the_item_unscored() -> None:
    made = intended([ask(1), ask(2)], {"a": {1: ["yes"]}})
    assert made.unscored == {"a": "1 questions have no answer, such as 'Question 2?'"}
    assert made.score is None


def test_answers_for_different_numbers_of_crops_leave_the_item_unscored() -> None:
    assert intended([ask(1), ask(2)], {"a": {1: ["yes"], 2: ["yes", "no"]}}).unscored


def test_zeros_propagate_along_chains_as_published_and_one_step_as_intended() -> None:
    questions, given = [ask(9), ask(1), ask(2, 1), ask(3, 2)], {"a": {9: ["yes"], 1: ["no"], 2: ["yes"], 3: ["yes"]}}
    assert published(questions, given).pictures["a"].crops == (0.0,)
    assert intended(questions, given).pictures["a"].crops == (0.5,)


@pytest.mark.parametrize("spoilt", [{"dependency": "x"}, {"proposition_id": "one"}, {"tuple": None}])
def test_an_invalid_row_is_named(golden: Any, spoilt: dict[str, Any]) -> None:
    rows = [dict(row) for row in golden("dpg")["runs"][0]["rows"][:3]]
    rows[1] = {key: value for key, value in {**rows[1], **spoilt}.items() if value is not None}
    with pytest.raises(ValueError, match=r"Row 2 of the questions .* download dpg_bench\.csv again"):
        read_questions(rows)
