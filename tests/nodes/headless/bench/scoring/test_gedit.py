"""GEdit-Bench's scores equal those of the published scripts."""

from __future__ import annotations

from typing import Any

import pytest
from uniworld.nodes.headless.bench.scoring.gedit import (
    GROUPS,
    ScoredEdit,
    Scores,
    combined,
    find_scores,
    means,
    read,
)
from uniworld.nodes.headless.bench.scoring.outcome import Unscored


def test_golden_groups(golden: Any) -> None:
    assert sorted(golden("gedit")["groups"]) == sorted(GROUPS)


def test_golden_replies(golden: Any) -> None:
    for one in golden("gedit")["parse"]:
        published = one["published_first_try"].get("value")  # absent if the published script crashes
        scores = published.get("score") if isinstance(published, dict) else None
        # Of a score that is not a list, the published script finds no minimum.
        assert find_scores(one["reply"]) == (scores if isinstance(scores, list) else None), one["kind"]


def test_golden_items(golden: Any) -> None:
    cases = golden("gedit")["evaluate"]
    assert any("value" in one["published"] for one in cases)
    for one in cases:
        if one["published"]["calls"] != [1, 1]:
            continue  # further replies are retries, which `read` does not make
        made = edit(one["SC"][0], one["PQ"][0])
        if "value" not in one["published"]:
            assert isinstance(made, Unscored), one
        else:
            assert isinstance(made, Scores), one
            wanted = [float(value) for value in one["published"]["value"]]
            assert [made.consistency, made.quality, made.overall] == pytest.approx(wanted, rel=1e-9)


def edit(consistency: str, quality: str) -> Scores | Unscored:
    first, second = read(consistency, "published"), read(quality, "published")
    if isinstance(first, Unscored) or isinstance(second, Unscored):
        return Unscored("unreadable")
    return combined(first, second)


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
        '{"score": [1' + "0" * 400 + "]}",
        '{"score": [1e300]}',
        '{"score": [NaN, 3]}',
        '{"score": [-Infinity, 3]}',
        '{"score": null}',
        '{"score": [7, "8"]}',
        "{score: true}",
        "{score: [7, 8]}",
        "{score: 07}",
        "[07, 8]",
        "[٣, 4]",
    ],
)
@pytest.mark.parametrize("mode", ["published", "strict"])
def test_invalid_scores_are_unscored_in_both_modes(reply: str, mode: Any) -> None:
    assert isinstance(read(reply, mode), Unscored)


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ('{"score": 7, reasoning: the hat is new}', 7),
        ('{"reasoning": fine, "score": 7.5}', 7.5),
        ("{score: 7, reasoning: }", 7),
        ("{score:7,score:8}", 8),
        ('{"score": [true, 3]}', 1),
        ('{"score": [5, NaN]}', 5),
        ('{"score": [7, Infinity]}', 7),
        ('{"score": [-2, 3]}', -2),
    ],
)
def test_published_reads_what_the_published_repair_reads(reply: str, score: float) -> None:
    assert read(reply, "published") == score


@pytest.mark.parametrize("reply", ['{"score": [true, 3]}', '{"score": [5, NaN]}', '{"score": [-2, 3]}'])
def test_strict_takes_numbers_of_the_scale_only(reply: str) -> None:
    assert isinstance(read(reply), Unscored)


def test_an_unfinished_reply_of_many_quotes_is_read_at_once() -> None:
    assert isinstance(read("{" + '"' * 200_000 + "}", "published"), Unscored)


def test_a_score_below_0_has_no_root() -> None:
    assert isinstance(combined(-1, 7), Unscored)
    assert combined(-1, 0) == Scores(-1, 0)


def test_a_group_without_items_leaves_the_average_undefined() -> None:
    rows = [ScoredEdit(group, "en", True, Scores(4, 9)) for group in GROUPS[1:]]
    assert "average" not in means(rows, "en")["O"]
    assert means(rows, "en", groups=GROUPS[1:])["O"]["average"] == 6


def test_the_overall_score_of_an_item_is_the_geometric_mean() -> None:
    assert Scores(4, 9).overall == 6
    assert means([ScoredEdit("a", "en", True, Scores(4, 9))], "en", groups=["a"])["O"] == {"a": 6.0, "average": 6.0}
    assert means([ScoredEdit("a", "en", False, Scores(4, 9))], "en", intersection=True)["O"] == {}
