"""Re-weight a cache with another edit-weight function; the edited region does not depend on the function."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ....uniworld_core.editing.weights import edit_weight
from ...config.settings import NO_WEIGHT
from ...data.cache import Cache, CacheKey
from ...objective.batch import EncodedSample


class ReweightedCache(Cache):
    """A cache with another edit-weight function than it was filled with."""

    def __init__(self, folder: Path, key: CacheKey, weight: str) -> None:
        super().__init__(folder, key)
        self.weight = weight

    def __getitem__(self, index: int) -> EncodedSample:
        item = super().__getitem__(index)
        return replace(item, weight=reweight(item.weight, self.weight))


def reweight(weight_hw: Tensor | None, function: str) -> Tensor | None:
    """Compute the edit weight of another function over the same edit; None, meaning 1 everywhere, for "none".

    This is exact. Each function is above 1 for all x = total area / edited area above 1, so the edited region is where the
    old weight is above 1. If it is 1 everywhere, nothing or everything was edited, and every function is 1 everywhere.
    """
    if weight_hw is None or function == NO_WEIGHT:
        return None
    return edit_weight((weight_hw > 1)[None], function)[0]
