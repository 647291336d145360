"""Seeds of random generators."""

from __future__ import annotations

from ..errors import UniWorldError, shown


def check_seed(seed: int) -> int:
    """Check a seed and return it. Raises UniWorldError unless it is a whole number from 0 to 2**64 - 1, torch's range."""
    if not isinstance(seed, int) or not 0 <= seed < 2**64:
        raise UniWorldError(f"A seed is {shown(seed)}; it must be a whole number from 0 to 2**64 - 1.")
    return seed
