"""WISE's scores equal those of the published scripts."""

from __future__ import annotations

from typing import Any

import pytest
from uniworld.nodes.headless.bench.scoring.outcome import Unscored
from uniworld.nodes.headless.bench.scoring.wise import (
    CRITERIA,
    LEGACY,
    VERIFIED,
    read_legacy,
    read_verified,
    table,
    wiscore,
)


def test_golden_weights(golden: Any) -> None:
    assert golden("wise")["weights_legacy"] == LEGACY.weights
    assert golden("wise")["weights_verified"] == VERIFIED.weights


def test_golden_legacy_replies(golden: Any) -> None:
    for one in golden("wise")["parse"]:
        score = read_legacy(one["reply"], "published")
        if not one["published_legacy_accepts"]:
            assert isinstance(score, Unscored), one
        else:
            assert score == pytest.approx(wiscore(*(one["published_legacy"][name] for name in CRITERIA)), rel=1e-9), one


def test_golden_verified_replies(golden: Any) -> None:
    for one in golden("wise")["parse_verified"]:
        score, published = read_verified(one["reply"], "published"), one["published_verified"]
        assert score == published["score"] if published else isinstance(score, Unscored), one


def legacy(consistency: float | None, realism: float | None, quality: float | None) -> float | Unscored:
    if consistency is None or realism is None or quality is None:
        return Unscored("null")
    return wiscore(consistency, realism, quality)


def verified(score: float | None) -> float | Unscored:
    return float(score) if score in (0, 1) else Unscored("neither 0 nor 1")


@pytest.mark.parametrize(
    ("runs", "edition", "score"), [("runs", LEGACY, legacy), ("runs_verified", VERIFIED, verified)]
)
def test_golden_runs(golden: Any, runs: str, edition: Any, score: Any) -> None:
    for run in golden("wise")[runs]:
        made, published = table([(key, score(*values)) for key, *values in run["rows"]], edition), run["published"]
        if "category_means" in published:
            assert made.groups == pytest.approx(published["category_means"], rel=1e-9)
            assert made.counts == published["category_counts"]
        if run.get("derived_overall_unrounded") is None:
            assert made.overall == {}
        else:
            assert made.overall["overall"] == pytest.approx(run["derived_overall_unrounded"], rel=1e-9)
            assert published["published_last_lines"][-1].endswith(f"{made.overall['overall']:.2f}")


@pytest.mark.parametrize(
    "reply",
    [
        "Consistency: 2\nRealism: 1\nAesthetic Quality: 0",
        "**Consistency:** 2\n**Realism:** 1\n**Aesthetic Quality:** 0",
        "Consistency：2\nRealism = 1\nAesthetic Quality 0",
        "2\n1\n0",
    ],
)
def test_strict_reads_the_three_scores_in_any_markdown(reply: str) -> None:
    assert read_legacy(reply) == pytest.approx((0.7 * 2 + 0.2) / 2)


@pytest.mark.parametrize(
    "reply",
    [
        "Consistency: 10\nRealism: 1\nAesthetic Quality: 0",
        "Consistency: 1.5\nRealism: 1\nAesthetic Quality: 0",
        "Consistency: 5\nRealism: 1\nAesthetic Quality: 0",
        "Consistency: 1\nConsistency: 2\nRealism: 1\nAesthetic Quality: 0",
        "Consistency: -1\nRealism: 1\nAesthetic Quality: 0",
        "Consistency: 1\nRealism: 1",
        "2\n1\n0\n1",
        None,
    ],
)
def test_strict_rejects_other_formats(reply: object) -> None:
    assert isinstance(read_legacy(reply), Unscored)


@pytest.mark.parametrize(
    ("reply", "score"), [("Score: 1", 1.0), ("**Score:** 0", 0.0), ('{"score": 1}', 1.0), ("1", 1.0)]
)
def test_strict_verified(reply: str, score: float) -> None:
    assert read_verified(reply) == score
    assert read_verified("<think>Score: 0? Score: 1?</think>" + reply) == score


@pytest.mark.parametrize("reply", ["Score: 0.5", "Score: 0 or Score: 1", "Score: 2", "yes", "", {"error": 1}])
def test_strict_verified_rejects_other_formats(reply: object) -> None:
    assert isinstance(read_verified(reply), Unscored)
