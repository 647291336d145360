"""GEdit-Bench's scores equal those of the published scripts."""

from __future__ import annotations

import math
from typing import Any

import pytest
from uniworld.nodes.headless.bench.scoring.gedit import GROUPS, ScoredEdit, Scores, find_scores, means, read
from uniworld.nodes.headless.bench.scoring.outcome import Unscored


def test_golden_groups(golden: Any) -> None:
    assert sorted(golden("gedit")["groups"]) == sorted(GROUPS)


def test_golden_replies(golden: Any) -> None:
    for one in golden("gedit")["parse"]:
        published = one["published_first_try"]["value"]
        assert find_scores(one["reply"]) == (published["score"] if isinstance(published, dict) else None), one["kind"]


def test_golden_items(golden: Any) -> None:
    cases = golden("gedit")["evaluate"]
    assert len(cases) > 10
    for one in cases:
        if one["published"]["calls"] != [1, 1]:
            continue  # further replies are retries, which `read` does not make
        consistency, quality = read(one["SC"][0], "published"), read(one["PQ"][0], "published")
        if "value" not in one["published"]:
            assert isinstance(consistency, Unscored) or isinstance(quality, Unscored), one["kind"]
        else:
            assert not isinstance(consistency, Unscored), one["kind"]
            assert not isinstance(quality, Unscored), one["kind"]
            made = [consistency, quality, Scores(consistency, quality).overall]
            assert made == pytest.approx(one["published"]["value"], rel=1e-9)


def of(row: dict[str, Any]) -> ScoredEdit:
    scores = Scores(row["sementics_score"], row["quality_score"])
    return ScoredEdit(row["group"], row["instruction_language"], row["intersection_exist"], scores)


def test_golden_tables(golden: Any) -> None:
    for one in golden("gedit")["aggregate"]:
        rows = [of(row) for row in one["rows"]]
        for language, published in one["published"].items():
            for suffix in ("", "_intersection"):
                made = means(rows, language, intersection=bool(suffix))
                for name in ("SC", "PQ", "O"):
                    wanted = {key: value for key, value in published[name + suffix].items() if value is not None}
                    names = {"SC": "avg_semantics", "PQ": "avg_quality", "O": "avg_overall"}
                    renamed = {names[name] if key == "average" else key: value for key, value in made[name].items()}
                    assert renamed == pytest.approx(wanted, rel=1e-9), (language, name + suffix)


@pytest.mark.parametrize(
    "reply",
    [
        '{"score": [12, 3]}',
        '{"score": [7]}',
        '{"score": [7, 8, 9]}',
        "7",
        "",
        None,
        '{"score": ["7", 8]}',
        '{"score": []}',
    ],
)
def test_strict_rejects_other_formats(reply: object) -> None:
    assert isinstance(read(reply), Unscored)


@pytest.mark.parametrize(
    "reply",
    [
        '{"score": [1' + "0" * 400 + ", 3]}",
        '{"score": [1e300, 3]}',
        '{"score": [NaN, 3]}',
        '{"score": [5, NaN]}',
        '{"score": [-1, 3]}',
        '{"score": [true, 3]}',
        '{"score": null}',
    ],
)
@pytest.mark.parametrize("mode", ["published", "strict"])
def test_invalid_scores_are_unscored_in_both_modes(reply: str, mode: Any) -> None:
    assert isinstance(read(reply, mode), Unscored)


def test_the_overall_score_of_an_item_is_the_geometric_mean() -> None:
    assert Scores(4, 9).overall == 6
    assert means([ScoredEdit("a", "en", True, Scores(4, 9))], "en")["O"] == {"a": 6.0, "average": 6.0}
    assert not math.isnan(
        means([ScoredEdit("a", "en", False, Scores(4, 9))], "en", intersection=True)["O"].get("average", 0)
    )
