"""UniSandbox's verdicts follow the published rules."""

from __future__ import annotations

from typing import Any

import pytest
from uniworld.nodes.headless.bench.scoring.outcome import Unscored
from uniworld.nodes.headless.bench.scoring.unisandbox import both, description, table, verdict


def test_golden_cases(golden: Any) -> None:
    for one in golden("unisandbox")["cases"]:
        firsts = [description(reply, one["test"]) for reply in one["first"]]
        shown = next((found for found in firsts if not isinstance(found, Unscored)), Unscored("none"))
        expected = one["expected"]
        assert shown == expected.get("shown_to_judge", shown) if expected["calls"][1] else not isinstance(shown, str), (
            one
        )
        if isinstance(shown, str):
            verdicts = [verdict(reply, "published") for reply in one["second"]]
            said = next((found for found in verdicts if not isinstance(found, Unscored)), False)
            assert said == bool(expected["score"]), one


def test_golden_pairs(golden: Any) -> None:
    for one in golden("unisandbox")["mapping_pairs"]:
        assert both(one["A"], one["B"]) == bool(one["expected_final"])


@pytest.mark.parametrize(
    ("reply", "right"),
    [("Score: YES", True), ("**Score:** [NO]", False), ("score: yes.", True), ("I think so.\nScore: YES", True)],
)
def test_strict_reads_one_verdict_in_any_markdown(reply: str, right: bool) -> None:
    assert verdict(reply) is right


@pytest.mark.parametrize(
    "reply", ["Score: YES or Score: NO", "Score: NOT SURE", "The answer is YES", "", None, "Score: maybe"]
)
def test_strict_rejects_other_formats(reply: object) -> None:
    assert isinstance(verdict(reply), Unscored)


def test_an_unreadable_verdict_is_unscored_and_not_wrong() -> None:
    made = table({"1": True, "2": False, "3": Unscored("x")}, {"1": "math", "2": "math", "3": "math"})
    assert (made.groups, made.counts, made.overall) == ({"math": 0.5}, {"math": 2}, {"accuracy": 0.5})
    assert made.unscored == {"3": "x"}
    assert both(True, Unscored("x")) == Unscored("x")
    assert both(False, Unscored("x")) is False
