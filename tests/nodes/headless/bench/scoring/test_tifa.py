"""TIFA's scores equal those of the published script."""

from __future__ import annotations

from typing import Any

import pytest
from uniworld.nodes.headless.bench.scoring.tifa import TIFAQuestion, score


def test_golden_run(golden: Any) -> None:
    run = golden("tifa")
    questions = [
        TIFAQuestion(one["id"], one["question"], one["answer"], one["element_type"]) for one in run["questions"]
    ]
    answers = {}
    for key, answer in run["answers"].items():
        picture, _, text = key.partition("|")
        answers[picture.removesuffix(".png"), text] = answer
    made, published = score(questions, answers), run["published"]
    if "raises" in published:
        assert made.unscored or made.deviation is None
        return
    assert made.captions == pytest.approx(published["caption_scores"], rel=1e-9)
    assert made.types == pytest.approx(published["accuracy_by_type"], rel=1e-9)
    assert made.average == pytest.approx(published["tifa_average"], rel=1e-9)
    assert made.deviation == pytest.approx(published["tifa_stdev"], rel=1e-9)
    assert not made.unscored


def test_a_caption_with_a_missing_answer_is_unscored() -> None:
    questions = [
        TIFAQuestion("a", "1?", "yes", "object"),
        TIFAQuestion("a", "2?", "no", "color"),
        TIFAQuestion("b", "1?", "yes", "object"),
    ]
    made = score(questions, {("a", "1?"): "yes", ("b", "1?"): "no"})
    assert made.unscored == {"a": "1 of 2 questions have no answer"}
    assert (made.average, made.deviation, made.types) == (0.0, None, {"object": 0.0})
    assert score(questions, {}).average is None
