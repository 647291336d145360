"""Schedules of the old policy, which paints the rollouts: how much of it stays after each epoch.

Published: `return_decay` in scripts/train_nft_kontext.py.
"""

from __future__ import annotations

from collections.abc import Callable

from ..config.editr1 import DECAYS

# {name: decay after a number of optimizer steps}. "on_policy" replaces the old policy by the trained one after each epoch.
_RULES: dict[str, Callable[[int], float]] = {
    "on_policy": lambda step: 0.0,
    "slow": lambda step: min(0.001 * step, 0.5),
    "late": lambda step: 0.0 if step <= 75 else min(0.0075 * (step - 75), 0.999),
}
# The published numbers (config.decay_type) of the same.
PUBLISHED_DECAYS = dict(enumerate(DECAYS))


def old_decay(name: str, step: int) -> float:
    """Return the share of the old policy that stays: old = decay * old + (1 - decay) * theta.

    Args:
        name: one of `DECAYS`.
        step: number of optimizer steps done.
    """
    return _RULES[name](step)
