"""Strict JSON parsing, and JSON output that every program can read, whatever the values are."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from .errors import UniWorldError, shown

_MAX_DEPTH = 200  # nesting of written values


class BadJson(UniWorldError):
    """Text that is not JSON, or that this package does not accept as JSON.

    The message is the end of a sentence ("has the key 'a' twice"). The caller puts the name of the text in front of it, and
    the fix after it.
    """


def loads(text: str | bytes, allow_nan: bool = False, allow_duplicates: bool = False) -> Any:
    """Parse JSON text, without the extensions of Python's parser that other programs reject or read differently.

    Args:
        text: bytes are decoded as UTF-8.
        allow_nan: accept NaN and Infinity as numbers, as Python's parser does.
        allow_duplicates: if an object repeats a key, use the last value, as Python's parser does.

    Raises:
        BadJson: the text is not valid JSON, is nested too deeply, or has a number with more digits than Python converts.
    """
    options: dict[str, Any] = {}
    if not allow_nan:
        options["parse_constant"] = _reject_constant
    if not allow_duplicates:
        options["object_pairs_hook"] = _reject_duplicates
    plain = ""
    try:
        plain = text if isinstance(text, str) else text.decode()
        return json.loads(plain, **options)
    except BadJson:
        raise
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in plain else ""
        raise BadJson(f"is not valid JSON: {error.msg.removesuffix(' at')} at {line}column {error.colno}") from error
    except UnicodeDecodeError as error:
        raise BadJson("is not UTF-8 text") from error
    except RecursionError as error:
        raise BadJson("is nested too deeply") from error
    except ValueError as error:  # Python's limit on the digits of an integer
        longest = max(map(len, re.findall(r"\d+", plain)), default=0)
        raise BadJson(f"contains a number with {longest} digits, which is too long") from error


def dumps(value: object, indent: int | None = None) -> str:
    """Convert any value to JSON text; never fails.

    Values that JSON lacks become strings: NaN and infinity, other objects (by `str`), keys that are not strings. Containers
    that contain themselves or are nested too deeply become "...".
    """
    try:
        return json.dumps(value, default=_text, allow_nan=False, indent=indent)
    except (ValueError, TypeError, RecursionError):
        return json.dumps(_plain(value, ()), indent=indent)


def _reject_constant(word: str) -> Any:
    raise BadJson(f"contains {word}, which is not valid JSON")


def _reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise BadJson(f"has the key {shown(repeated)} twice")
    return found


def _plain(value: object, outer: tuple[int, ...]) -> object:
    """Convert a value to JSON's types. `outer` has the ids of the containers around it."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]
    if isinstance(value, int):
        return value if abs(value) < 10**1000 else _text(value)  # Python converts integers of up to 4,300 digits
    if not isinstance(value, (dict, list, tuple)):
        return _text(value)
    if id(value) in outer or len(outer) >= _MAX_DEPTH:
        return "..."
    outer = (*outer, id(value))
    if isinstance(value, dict):
        return {_key(key): _plain(item, outer) for key, item in value.items()}
    return [_plain(item, outer) for item in value]


def _key(key: object) -> str:
    if isinstance(key, bool) or key is None:
        return json.dumps(key)
    return str(_plain(key, ())) if isinstance(key, (int, float)) else _text(key)


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception:  # a foreign class with a broken __str__, or an integer with too many digits
        return type(value).__name__
