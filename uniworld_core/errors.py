"""The errors of this package: what the user can put right. Every other exception is a bug, or the machine's."""

from __future__ import annotations

from collections.abc import Sequence


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
