"""JSON is read strictly, what is wrong with it is a sentence without its subject, and any value can be written."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from uniworld.uniworld_core.json_text import BadJson, dumps, loads

BAD: dict[str, tuple[str | bytes, str]] = {
    "nothing": ("", "is not valid JSON: Expecting value at column 1"),
    "truncated": ('{"a": 1', "is not valid JSON: Expecting ',' delimiter at column 8"),
    "a later line": ('{\n  "a" 1}', "is not valid JSON: Expecting ':' delimiter at line 2, column 7"),
    "a byte-order mark": (b"\xef\xbb\xbf{}", "is not valid JSON: Unexpected UTF-8 BOM"),
    "other text": (b'{"a": "\xff"}', "is not UTF-8 text"),
    "two values": ("1 2", "is not valid JSON: Extra data at column 3"),
    "nested": ("[" * 100_000, "is nested too deeply"),
    "nested objects": ('{"a": ' * 100_000, "is nested too deeply"),
    "NaN": ('{"a": NaN}', "contains NaN, which is not valid JSON"),
    "infinity": ("[-Infinity]", "contains -Infinity, which is not valid JSON"),
    "a key twice": ('{"a": {"b": 1, "c": 2, "b": 3}}', "has the key 'b' twice"),
    "a long key twice": ('{"%s": 1, "%s": 2}' % (("k" * 500,) * 2), f"has the key '{'k' * 76}... twice"),
    "digits": ("[1, " + "9" * 5000 + "]", "contains a number with 5000 digits, which is too long"),
}


@pytest.mark.parametrize("how", BAD)
def test_what_is_wrong_is_said(how: str) -> None:
    text, said = BAD[how]
    with pytest.raises(BadJson) as caught:
        loads(text)
    assert str(caught.value).startswith(said)
    assert not str(caught.value).endswith(".")


@pytest.mark.parametrize(
    "text", ['{"a": [1, 2.5, null, true, "é\\ud800"]}', '{"a": [1, 2.5, null, true, "é\\ud800"]}'.encode()]
)
def test_json_is_read(text: str | bytes) -> None:
    assert loads(text) == {"a": [1, 2.5, None, True, "é\ud800"]}


def test_what_python_lets_pass_is_read_where_that_is_asked_for() -> None:
    found: Any = loads('{"a": 1, "a": NaN}', allow_nan=True, allow_duplicates=True)
    assert list(found) == ["a"]
    assert math.isnan(found["a"])
    with pytest.raises(BadJson, match="contains NaN"):
        loads('{"a": 1, "a": NaN}', allow_duplicates=True)
    with pytest.raises(BadJson, match="twice"):
        loads('{"a": 1, "a": NaN}', allow_nan=True)


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
        raise AssertionError(f"{name} is not JSON")

    json.loads(dumps(value), parse_constant=no_constant)


def test_plain_values_come_back_as_they_are():
    value = {"a": [1, 2.5, None, True, "é"], "b": {"c": []}}
    assert json.loads(dumps(value)) == value


def test_what_json_lacks_becomes_text():
    assert json.loads(dumps([math.nan, math.inf, -math.inf])) == ["NaN", "Infinity", "-Infinity"]
    assert json.loads(dumps({(1, 2): math.nan, None: 1, True: 2})) == {"(1, 2)": "NaN", "null": 1, "true": 2}
