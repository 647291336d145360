"""JSON read strictly: what Python's parser lets pass, and no standard allows or no two programs agree on, is an error."""

from __future__ import annotations

import json
import re
from typing import Any

from .errors import UniWorldError, shown


class BadJson(UniWorldError):
    """Text that is not JSON, or not JSON that can be used.

    The message begins with a verb and has no end ("has the key 'a' twice"): the caller puts what was read before it, and what
    to do behind it.
    """


def loads(text: str | bytes, constants: bool = False, doubles: bool = False) -> Any:
    """The value of JSON text.

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


def _no_constant(word: str) -> Any:
    raise BadJson(f"holds {word}, which is not valid JSON")


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        double = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise BadJson(f"has the key {shown(double)} twice")
    return found
