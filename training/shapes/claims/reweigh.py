"""A cache whose edits weigh by another function than when it was made: what was edited is the same, whatever it weighs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ....uniworld_core.editing.masks import edit_weight
from ...config.settings import NO_WEIGHT
from ...data.cache import Cache, CacheKey
from ...objective.batch import EncodedSample


class Reweighed(Cache):
    """A cache whose edits weigh something else than when it was made."""

    def __init__(self, folder: Path, key: CacheKey, weight: str) -> None:
        super().__init__(folder, key)
        self.weight = weight

    def __getitem__(self, index: int) -> EncodedSample:
        item = super().__getitem__(index)
        return replace(item, weight=reweigh(item.weight, self.weight))


def reweigh(weight_hw: Tensor | None, function: str) -> Tensor | None:
    """The edit weight of another function over the same edit; None, for 1 everywhere, with "none".

    Exact: each function is above 1 for all x = total area / edited area above 1, so where the old weight is above 1
    lies the edit. Where it is 1 everywhere, nothing or all was edited, and then every function gives 1 everywhere.
    """
    if weight_hw is None or function == NO_WEIGHT:
        return None
    return edit_weight((weight_hw > 1)[None], function)[0]
