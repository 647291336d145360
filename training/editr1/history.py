"""The samples that a run has painted and mastered so far, over all epochs.

Published: flow_grpo/stat_tracking.py keeps the same as `history_prompts` and `banned_prompts`, by prompt and in memory only.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

from .advantage import Advantages


@dataclass
class SampleHistory:
    """Samples by their index in the data.

    Attributes:
        painted: samples with at least one score.
        mastered: samples whose group was flat and good in some epoch. A sample stays mastered.
    """

    painted: set[int] = field(default_factory=set)
    mastered: set[int] = field(default_factory=set)

    def add(self, found: Advantages, samples: Mapping[Hashable, int]) -> None:
        """Add an epoch.

        Args:
            found: the advantages of the epoch.
            samples: {group: its sample}.
        """
        self.painted.update(samples[group] for group in found.stats)
        self.mastered.update(samples[group] for group in found.mastered)

    def to_json(self) -> dict[str, list[int]]:
        """Return the history as JSON values."""
        return {"painted": sorted(self.painted), "mastered": sorted(self.mastered)}

    @classmethod
    def from_json(cls, values: Mapping[str, list[int]]) -> SampleHistory:
        """Read the values of `to_json`."""
        return cls(set(values["painted"]), set(values["mastered"]))
