"""JSON between programs: read strictly, and written so that every program can read it, whatever the values are."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from .errors import UniWorldError, shown

_MAX_DEPTH = 200  # of what is written


class BadJson(UniWorldError):
    """Text that is not JSON, or not JSON that can be used.

    The message begins with a verb and has no end ("has the key 'a' twice"): the caller puts what was read before it, and what
    to do behind it.
    """


def loads(text: str | bytes, constants: bool = False, doubles: bool = False) -> Any:
    """The value of JSON text, without what Python's parser lets pass and other programs refuse or read otherwise.

    Args:
        text: bytes are UTF-8.
        constants: take NaN and Infinity for numbers, as Python's parser does.
        doubles: of a key that stands twice in an object take the last value, as Python's parser does.

    Raises:
        BadJson: it is none, is nested too deeply, or contains a number of more digits than Python reads.
    """
    options: dict[str, Any] = {}
    if not constants:
        options["parse_constant"] = _no_constant
    if not doubles:
        options["object_pairs_hook"] = _no_doubles
    plain = ""
    try:
        plain = text if isinstance(text, str) else text.decode()
        return json.loads(plain, **options)
    except BadJson:
        raise
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in plain else ""
        raise BadJson(f"is not valid JSON: {error.msg} at {line}column {error.colno}") from error
    except UnicodeDecodeError as error:
        raise BadJson("is no text in UTF-8") from error
    except RecursionError as error:
        raise BadJson("is nested too deeply") from error
    except ValueError as error:  # Python's own limit
        longest = max(map(len, re.findall(r"\d+", plain)), default=0)
        raise BadJson(f"contains a number of {longest} digits, more than can be read") from error


def dumps(value: object, indent: int | None = None) -> str:
    """JSON text of any value; never fails.

    NaN and infinity become texts, and so does what JSON does not have: other objects by `str`, keys of other types,
    lists that contain themselves or are nested too deeply.
    """
    try:
        return json.dumps(value, default=_text, allow_nan=False, indent=indent)
    except (ValueError, TypeError, RecursionError):
        return json.dumps(_plain(value, ()), indent=indent)


def _no_constant(word: str) -> Any:
    raise BadJson(f"holds {word}, which is not valid JSON")


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        double = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise BadJson(f"has the key {shown(double)} twice")
    return found


def _plain(value: object, outer: tuple[int, ...]) -> object:
    """A value of JSON's own types; `outer` are the containers around it."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]
    if isinstance(value, int):
        return value if abs(value) < 10**1000 else _text(value)  # Python writes no number of more than 4300 digits
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
    except Exception:  # of a class of other people, or a number of too many digits
        return type(value).__name__
