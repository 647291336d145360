"""The error for what the user can put right; every other exception is a bug of this package."""

from __future__ import annotations


class UniWorldError(ValueError):
    """A value, file or setting that cannot be used. The message says what is wrong, its value, and what to do.

    The command line prints it and ends with exit code 2. A plain `ValueError` (numpy's "cannot reshape array", say) is a bug:
    exit code 1, with how to report it.
    """
