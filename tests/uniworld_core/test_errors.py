"""Values in the sentences of errors: short, whatever they are."""

from __future__ import annotations

import time
from typing import Any

import pytest
from uniworld.uniworld_core.errors import counted, shown


def nested(depth: int) -> list[Any]:
    made: list[Any] = []
    for _ in range(depth):
        made = [made]
    return made


class Unspeakable:
    def __repr__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    "value",
    ["a", "it's", "", 5, 1.5, None, True, [1, "b", []], {"b": 1, "a": [2]}, {}, (1,), (), {3}, b"x", [[[[[1]]]]]],
)
def test_a_short_value_is_shown_as_python_writes_it(value: Any) -> None:
    assert shown(value) == repr(value)


@pytest.mark.parametrize(
    "value",
    [
        "x" * 500,
        list(range(500)),
        {f"key {n}": n for n in range(500)},
        ["x" * 500],
        10**200,
        b"x" * 500,
        {"a": "x" * 79},
    ],
)
def test_a_long_value_is_cut_at_its_end(value: Any) -> None:
    for limit in (40, 80, 300):
        text = repr(value)
        assert shown(value, limit) == (text if len(text) <= limit else text[: limit - 3] + "...")


@pytest.mark.parametrize(
    "value",
    [nested(100_000), 10**5000, Unspeakable(), [Unspeakable()], {"a": nested(50)}],
    ids=["deep", "huge", "unspeakable", "unspeakable inside", "deep inside"],
)
def test_no_value_is_too_much(value: Any) -> None:
    assert 0 < len(shown(value)) <= 80


def test_a_large_value_costs_no_time() -> None:
    value = [{"key": ["x" * 1000] * 1000}] * 100_000
    began = time.process_time()
    shown(value)
    assert time.process_time() - began < 1


def test_numbers_agree_with_their_nouns() -> None:
    assert [counted(number, "step") for number in (0, 1, 2)] == ["0 steps", "1 step", "2 steps"]
    assert [counted(number, "forward pass", "es") for number in (1, 2)] == ["1 forward pass", "2 forward passes"]
