"""Errors that the user can fix. Every other exception is a bug or a failure of the machine."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from itertools import islice
from typing import Any

_MAX_MESSAGE = 300  # characters of a library's message that are quoted


class UniWorldError(ValueError):
    """An invalid value, file or setting. The message says what is wrong, its value, and how to fix it.

    The command line prints the message and exits with code 2. A plain `ValueError`, such as numpy's "cannot reshape array",
    is a bug: the command line exits with code 1 and says how to report it.

    Attributes:
        problems: one sentence per problem; by default just the message.
    """

    def __init__(self, message: str = "", problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = list(problems) or [message]


class RunFailed(UniWorldError):
    """A valid request that failed at run time. Results saved before the failure are kept. Exit code 1."""


def shown(value: object, limit: int = 80) -> str:
    """Format any value for an error message, in at most `limit` characters, however large or deeply nested it is."""
    try:
        text = _BoundedRepr(limit).repr(value)
    except Exception:  # a foreign class with a broken __repr__, or an integer with more digits than Python converts
        text = f"<{type(value).__name__}>"
    return text if len(text) <= limit else text[: limit - 3] + "..."


def brief(error: BaseException) -> str:
    """Return the message of a library's exception, truncated if long, or the exception's type if it has no message."""
    text = " ".join(str(error).split())
    message = text if len(text) <= _MAX_MESSAGE else f"{text[:_MAX_MESSAGE]}..."
    return message or type(error).__name__


def plural(count: int, noun: str, ending: str = "s") -> str:
    """Return a noun as it follows a number in a message: `step` after 1, otherwise `steps`."""
    return noun if count == 1 else f"{noun}{ending}"


def counted(count: int, noun: str, ending: str = "s") -> str:
    """Return a number with its noun for a message: `1 step`, `2 steps`."""
    return f"{count} {plural(count, noun, ending)}"


class _BoundedRepr(reprlib.Repr):
    """A `repr` that stops after about `limit` characters, so that its cost does not depend on the value's size or depth."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.maxlevel = 20
        self.maxtuple = self.maxlist = self.maxset = self.maxfrozenset = self.maxdeque = self.maxdict = limit
        # reprlib cuts these in the middle. At this length the cut comes after `limit`, where `shown` truncates anyway.
        self.maxstring = self.maxlong = self.maxother = 2 * limit + 10

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        """Keep the order of the keys, which reprlib would sort."""
        if x and level <= 0:
            return "{...}"
        items = islice(x.items(), self.maxdict)
        return (
            "{" + ", ".join(f"{self.repr1(key, level - 1)}: {self.repr1(one, level - 1)}" for key, one in items) + "}"
        )
