"""Seeds of random generators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import UniWorldError, shown


def check_seed(seed: int) -> int:
    """Check a seed and return it. Raises UniWorldError unless it is a whole number from 0 to 2**64 - 1, torch's range."""
    if not isinstance(seed, int) or not 0 <= seed < 2**64:
        raise UniWorldError(f"A seed is {shown(seed)}; it must be a whole number from 0 to 2**64 - 1.")
    return seed


def seeds_of_items(seed: int | Sequence[int], items: int) -> list[int]:
    """Return the seeds of a batch: one serves all items, and an item may have several.

    Raises:
        UniWorldError: a seed is out of range, or their number does not match.
    """
    seeds: list[Any] = list(seed) if isinstance(seed, (list, tuple, range)) else [seed]
    for one in seeds:
        check_seed(one)
    if not seeds or (items not in (1, len(seeds)) and len(seeds) != 1):
        raise UniWorldError(
            f"There are {len(seeds)} seeds for a condition of {items} items: give one seed, or one per item."
        )
    return seeds * items if len(seeds) == 1 else seeds
