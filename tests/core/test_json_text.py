"""JSON is read strictly, and what is wrong with it is a sentence without its subject."""

from __future__ import annotations

import math
from typing import Any

import pytest
from uniworld.uniworld_core.json_text import BadJson, loads

BAD: dict[str, tuple[str | bytes, str]] = {
    "nothing": ("", "is not valid JSON: Expecting value at column 1"),
    "cut short": ('{"a": 1', "is not valid JSON: Expecting ',' delimiter at column 8"),
    "a later line": ('{\n  "a" 1}', "is not valid JSON: Expecting ':' delimiter at line 2, column 7"),
    "a byte-order mark": (b"\xef\xbb\xbf{}", "is not valid JSON: Unexpected UTF-8 BOM"),
    "other text": (b'{"a": "\xff"}', "is no text in UTF-8"),
    "two values": ("1 2", "is not valid JSON: Extra data at column 3"),
    "nested": ("[" * 100_000, "is nested too deeply"),
    "nested objects": ('{"a": ' * 100_000, "is nested too deeply"),
    "NaN": ('{"a": NaN}', "holds NaN, which is not valid JSON"),
    "infinity": ("[-Infinity]", "holds -Infinity, which is not valid JSON"),
    "a key twice": ('{"a": {"b": 1, "c": 2, "b": 3}}', "has the key 'b' twice"),
    "a long key twice": ('{"%s": 1, "%s": 2}' % (("k" * 500,) * 2), f"has the key '{'k' * 76}... twice"),
    "digits": ("[1, " + "9" * 5000 + "]", "contains a number of 5000 digits, more than can be read"),
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
    found: Any = loads('{"a": 1, "a": NaN}', constants=True, doubles=True)
    assert list(found) == ["a"]
    assert math.isnan(found["a"])
    with pytest.raises(BadJson, match="holds NaN"):
        loads('{"a": 1, "a": NaN}', doubles=True)
    with pytest.raises(BadJson, match="twice"):
        loads('{"a": 1, "a": NaN}', constants=True)
