"""The errors of this package: what the user can put right. Every other exception is a bug, or the machine's."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from itertools import islice
from typing import Any

_SAID = 300


class UniWorldError(ValueError):
    """A value, file or setting that cannot be used. The message says what is wrong, its value, and what to do.

    The command line prints it and ends with exit code 2. A plain `ValueError` (numpy's "cannot reshape array", say) is a bug:
    exit code 1, with how to report it.

    Attributes:
        problems: what is wrong, a sentence each; the message alone unless more are given.
    """

    def __init__(self, message: str = "", problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = list(problems) or [message]


class RunFailed(UniWorldError):
    """Work that was asked for rightly, had begun and cannot go on; the message says why. What it kept stays. Exit code 1."""


def shown(value: object, limit: int = 80) -> str:
    """A value as it may stand in a sentence: at most `limit` characters, whatever it holds and however it is nested."""
    try:
        text = _Short(limit).repr(value)
    except Exception:  # of a class of other people, or a number of more digits than Python writes
        text = f"<{type(value).__name__}>"
    return text if len(text) <= limit else text[: limit - 3] + "..."


def brief(error: BaseException) -> str:
    """What a library's exception says, cut where it is long, with its type where that says more."""
    text = " ".join(str(error).split())
    said = text if len(text) <= _SAID else f"{text[:_SAID]}..."
    return said or type(error).__name__


class _Short(reprlib.Repr):
    """Python's own form of a value as far as `limit` characters need it, so that neither size nor depth costs anything."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.maxlevel = 20
        self.maxtuple = self.maxlist = self.maxset = self.maxfrozenset = self.maxdeque = self.maxdict = limit
        self.maxstring = self.maxlong = self.maxother = 2 * limit + 10  # these are cut in the middle, behind the limit

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        """With the keys in their order, where reprlib sorts them."""
        if x and level <= 0:
            return "{...}"
        items = islice(x.items(), self.maxdict)
        return (
            "{" + ", ".join(f"{self.repr1(key, level - 1)}: {self.repr1(one, level - 1)}" for key, one in items) + "}"
        )
