"""Values of nodes as JSON that every program reads, whatever they hold."""

from __future__ import annotations

import json
import math
from typing import Any

_MAX_DEPTH = 200


def dumps(value: Any, indent: int | None = None) -> str:
    """JSON text of any value; never fails.

    NaN and infinity become texts, and so does what JSON does not have: other objects by `str`, keys of other types,
    lists that contain themselves or are nested too deeply.
    """
    try:
        return json.dumps(value, default=_text, allow_nan=False, indent=indent)
    except (ValueError, TypeError, RecursionError):
        return json.dumps(_plain(value, ()), indent=indent)


def _plain(value: Any, outer: tuple[int, ...]) -> Any:
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


def _key(key: Any) -> str:
    if isinstance(key, bool) or key is None:
        return json.dumps(key)
    return str(_plain(key, ())) if isinstance(key, (int, float)) else _text(key)


def _text(value: Any) -> str:
    try:
        return str(value)
    except Exception:  # of a class of other people, or a number of too many digits
        return type(value).__name__
