"""Confidence intervals over clusters, and of which means there are none."""

from __future__ import annotations

import numpy as np
import pytest
from uniworld.nodes.headless.bench import statistics
from uniworld.nodes.headless.bench.items import BenchItem, Values
from uniworld.nodes.headless.bench.report.text_table import difference_text
from uniworld.nodes.headless.bench.scoring.wise import VERIFIED
from uniworld.nodes.headless.bench.statistics import Difference, differences, intervals
from uniworld.nodes.headless.bench.suites.geneval import GenEvalSuite
from uniworld.nodes.headless.bench.suites.imgedit import ImgEditSuite
from uniworld.nodes.headless.bench.suites.wise import WISESuite

Entries = list[tuple[BenchItem, Values]]


def edits(counts: dict[str, int], scores: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0, 5.0)) -> Entries:
    return [
        (BenchItem(f"{group}{place}", group, f"{group}{place}", "p", "t"), {"score": scores[place % len(scores)]})
        for group, count in counts.items()
        for place in range(count)
    ]


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 200)


def test_a_mean_of_fewer_than_five_source_pictures_has_no_interval() -> None:
    found = intervals(ImgEditSuite(), edits({"add": 5, "remove": 4, "style": 1}))
    assert set(found) == {"add/score", "overall/mean_of_items"}
    same_picture = [(BenchItem(str(n), "add", "one.jpg", "p", "t"), {"score": float(n)}) for n in range(1, 6)]
    assert intervals(ImgEditSuite(), same_picture) == {}
    assert set(intervals(ImgEditSuite(), edits({"add": 5, "remove": 5}))) == {
        "add/score",
        "remove/score",
        "overall/mean_of_types",
        "overall/mean_of_items",
    }


def test_a_difference_of_one_source_picture_is_not_marked() -> None:
    first, second = edits({"add": 1, "remove": 6}, (5.0,)), edits({"add": 1, "remove": 6}, (3.0,))
    found = differences(ImgEditSuite(), first, second)
    assert found["add/score"] == Difference(2.0, None)
    assert found["remove/score"] == Difference(2.0, (2.0, 2.0))
    lines = difference_text(found, 7, [], "a", "b").splitlines()
    assert next(line for line in lines if line.startswith("add")).split() == ["add/score", "+2.000"]
    assert next(line for line in lines if line.startswith("remove")).endswith("*")


def test_a_weighted_sum_has_an_interval_if_every_category_has_enough_prompts() -> None:
    def entries(count: int) -> Entries:
        return [
            (
                BenchItem(
                    str(first + n), name, str(first + n), "p", "t", extra={"number": first + n, "split": "verified"}
                ),
                {"score": float(n % 2)},
            )
            for name, (first, _) in VERIFIED.ranges.items()
            for n in range(count)
        ]

    assert "overall/overall" in intervals(WISESuite(), entries(5))
    assert intervals(WISESuite(), entries(4)) == {}


def test_prompts_whose_pictures_are_equal_have_the_interval_of_pictures() -> None:
    rng = np.random.default_rng(3)
    right = rng.integers(2, size=40)
    entries = [
        (
            BenchItem(str(n), "colors", str(n), "p", "t", samples=4, extra={"metadata": {"prompt": n}}),
            {"correct": float(one)},
        )
        for n, one in enumerate(right)
        for _ in range(4)
    ]
    found = intervals(GenEvalSuite(), entries)
    assert found["overall/prompts"] == pytest.approx(found["overall/pictures"])
    assert found["overall/prompts"][1] - found["overall/prompts"][0] > 0.2
