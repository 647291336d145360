"""Caches that let a run skip blocks whose result hardly changes from step to step. Importing this imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import UniWorldError, shown

# The first is the default.
CACHES = ("off", "light", "strong")


@contextmanager
def caching(painter: Any, cache: str) -> Iterator[None]:
    """Within it, a painter caches. Nothing is kept from one run to the next, so that equal runs give equal pictures.

    Args:
        cache: one of `CACHES`.

    Raises:
        UniWorldError: the name is unknown, or the painter has no cache.
    """
    if cache not in CACHES:
        raise UniWorldError(f"cache is {shown(cache)}; it must be one of {', '.join(CACHES)}.")
    if cache == "off":
        yield
        return
    enter = getattr(painter, "caching", None)
    if enter is None:
        raise UniWorldError(f"cache is {cache!r}, and this model has no cache: set it to off.")
    with enter(cache):
        yield
