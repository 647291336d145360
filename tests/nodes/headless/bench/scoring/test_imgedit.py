"""ImgEdit-Bench's scores equal those of the published scripts."""

from __future__ import annotations

from typing import Any

import pytest
from uniworld.nodes.headless.bench.scoring.imgedit import read_basic, read_uge, table, table_uge
from uniworld.nodes.headless.bench.scoring.outcome import Unscored

GOOD = "Brief reasoning: clean.\nPrompt Compliance: 4\nVisual Seamlessness: 1\nPhysical & Detail Fidelity: 4"


def same(mine: float | Unscored, published: dict[str, Any]) -> bool:
    value = published.get("value")  # absent if the published script crashes
    return isinstance(mine, Unscored) if value is None else mine == pytest.approx(value, rel=1e-9)


def test_golden_basic_replies(golden: Any) -> None:
    cases = golden("imgedit_basic")["parse"]
    assert cases
    wrong = [one for one in cases if not same(read_basic(one["reply"], "published"), one["published"])]
    assert not wrong


def test_golden_basic_runs(golden: Any) -> None:
    for run in golden("imgedit_basic")["runs"]:
        scores = {key: read_basic(reply, "published") for key, reply in run["replies"].items()}
        made = table(scores, {key: item["edit_type"] for key, item in run["items"].items()})
        published = run["published"]
        scored = {key: score for key, score in scores.items() if not isinstance(score, Unscored)}
        assert scored == pytest.approx(published["item_scores_rounded"], rel=1e-9)
        assert made.groups == pytest.approx(published["type_scores_rounded"], rel=1e-9)
        assert sorted(made.unscored) == sorted(published["items_without_score"])
        overall = {
            "mean_of_items": published["overall_bagel_mean_of_items_rounded"],
            "mean_of_types": run["derived"]["overall_mean_of_rounded_types"],
        }
        assert made.overall == pytest.approx(defined(overall), rel=1e-9)


def defined(overall: dict[str, float | None]) -> dict[str, float]:
    """Leave out what a published script leaves undefined, because no item is scored."""
    return {name: score for name, score in overall.items() if score is not None}


def test_golden_runs_that_crash_the_published_script_have_an_unscored_item(golden: Any) -> None:
    for run in golden("imgedit_basic")["whole_run_crashes"]:
        scores = [read_basic(reply, "published") for reply in run["replies"].values()]
        assert any(isinstance(score, Unscored) for score in scores), run["kind"]
        assert any(not isinstance(score, Unscored) for score in scores), run["kind"]


def test_golden_uge(golden: Any) -> None:
    cases = golden("imgedit_uge")
    assert not [one for one in cases["parse"] if not same(read_uge(one["reply"], "published"), one["published"])]
    for run in cases["runs"]:
        made = table_uge({key: read_uge(reply, "published") for key, reply in run["replies"].items()})
        assert made.overall == pytest.approx(defined({"mean_of_items": run["published"]["final"]}), rel=1e-9)
        assert made.counts["all"] == run["published"]["counted"]


@pytest.mark.parametrize(
    "reply",
    [
        GOOD,
        GOOD.replace("Prompt Compliance: 4", "**Prompt Compliance:** 4"),
        GOOD.replace("Prompt Compliance: 4", "- **Prompt Compliance: 4/5**"),
        GOOD.replace(": 4", ":4").replace("Brief reasoning: clean.", "Brief reasoning: 3"),
    ],
)
def test_strict_reads_the_three_criteria_in_any_markdown(reply: str) -> None:
    assert read_basic(reply) == 3.0


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("Objects counted: 7\n" + GOOD, "4 criteria are scored, expected 3"),
        (GOOD.rpartition("\n")[0], "2 criteria are scored, expected 3"),
        (GOOD.replace("Compliance: 4", "Compliance: 10"), "the score 10 is outside 1 to 5"),
        (GOOD.replace("Compliance: 4", "Compliance: 0"), "the score 0 is outside 1 to 5"),
        (GOOD.replace("Compliance: 4", "Compliance: ²"), "2 criteria are scored, expected 3"),
        (GOOD + "\nPrompt compliance: 2", "'prompt compliance' is scored twice"),
        ({"error": "rate limit"}, "there is no reply"),
        ("I cannot help with that.", "0 criteria are scored, expected 3"),
    ],
)
def test_strict_rejects_other_formats(reply: object, reason: str) -> None:
    assert read_basic(reply) == Unscored(reason)


@pytest.mark.parametrize(
    "reply", ["Fine. Score: 3.", "Fine.\nScore: 3 (Acceptable)", "**Score:** 3", "Score: 1\nScore: 3"]
)
def test_strict_uge_reads_the_forms_that_its_own_readme_shows(reply: str) -> None:
    assert read_uge(reply) == 3.0


def test_the_older_name_of_a_type_counts_as_the_type() -> None:
    assert table({"1": 2.0, "2": 4.0}, {"1": "alter", "2": "adjust"}).groups == {"adjust": 3.0}


def test_no_scores_give_no_overall_score() -> None:
    made = table({"1": Unscored("x")}, {"1": "add"})
    assert (made.groups, made.overall, made.unscored) == ({}, {}, {"1": "x"})


@pytest.mark.parametrize("digits", [150, 400, 5000])
def test_numbers_too_large_for_a_mean_are_unscored(digits: int) -> None:
    reply = f"Prompt Compliance: {'9' * digits}"
    for read in (read_basic, read_uge):
        assert isinstance(read(reply, "published"), Unscored)
        assert isinstance(read(reply.replace("Prompt Compliance", "Score")), Unscored)
