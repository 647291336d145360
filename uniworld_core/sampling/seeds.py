"""Seeds of random generators."""

from __future__ import annotations

from ..errors import UniWorldError, shown


def check_seed(seed: int) -> int:
    """The seed, if torch's generators take it. Raises UniWorldError unless it is a whole number from 0 to 2**64 - 1."""
    if not isinstance(seed, int) or not 0 <= seed < 2**64:
        raise UniWorldError(f"A seed is {shown(seed)}; it must be a whole number from 0 to 2**64 - 1.")
    return seed
