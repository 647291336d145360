"""JSON of whatever nodes give."""

from __future__ import annotations

import json
import math

import pytest
from uniworld.nodes.headless.json_text import dumps


class Unspeakable:
    def __str__(self) -> str:
        raise RuntimeError("no words")


def circle() -> list:
    made: list = []
    made.append({"again": made})
    return made


def deep() -> list:
    made: list = []
    for _ in range(100_000):
        made = [made]
    return made


VALUES = {
    "keys that are tuples": {("a", 1): 2},
    "keys of other types": {None: 1, True: 2, 1.5: 3, math.nan: 4},
    "a circle": circle(),
    "a deep list": deep(),
    "a huge number": [10**5000, -(10**5000)],
    "what has no text": {"x": [Unspeakable(), math.inf]},
    "a key without a text": {Unspeakable(): 1},
    "other types": [{1, 2}, b"bytes", "\ud800", 1j],
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_every_value_gives_json_that_every_program_reads(value):
    def no_constant(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    json.loads(dumps(value), parse_constant=no_constant)


def test_plain_values_come_back_as_they_are():
    value = {"a": [1, 2.5, None, True, "é"], "b": {"c": []}}
    assert json.loads(dumps(value)) == value


def test_what_json_lacks_becomes_text():
    assert json.loads(dumps([math.nan, math.inf, -math.inf])) == ["NaN", "Infinity", "-Infinity"]
    assert json.loads(dumps({(1, 2): math.nan, None: 1, True: 2})) == {"(1, 2)": "NaN", "null": 1, "true": 2}
