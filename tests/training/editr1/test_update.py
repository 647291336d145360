"""The passes of an epoch: which pictures are trained on, and on which the policy is held at the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from uniworld.training.config.editr1 import EditR1Config
from uniworld.training.editr1.advantage import advantages
from uniworld.training.editr1.groups import plan_epoch
from uniworld.training.editr1.prompts import EditPrompt
from uniworld.training.editr1.rollout import Rollout
from uniworld.training.editr1.update import plan_passes


def test_all_pictures_of_prompts_to_preserve_have_a_kl_weight(config_of: Callable[..., EditR1Config]) -> None:
    config = config_of("preserve.weight=3", "preserve.start=1", "loss.kl=2", "advantage.filter=published")
    condition: Any = None
    rollouts = [
        Rollout(group, EditPrompt("a", "a", (), preserve=preserve), condition, torch.zeros(3, 1), ())
        for group, preserve in zip(plan_epoch(None, 3, 3, 0, 0), (True, False, True))
    ]
    # The filter leaves out the first two groups, and the last picture has no score.
    rewards = np.array([0.5] * 6 + [0.1, 0.6, np.nan])
    found = advantages(rewards, [0] * 3 + [1] * 3 + [2] * 3, config.advantage)
    assert found.valid.tolist() == [False] * 6 + [True, True, False]

    def weights(epoch: int) -> list[list[tuple[int, int, float, float]]]:
        passes = plan_passes(rollouts, found, config, epoch)
        return [
            [(one.rollout.group.number, *values) for values in zip(one.items, one.weights, one.kl_weights)]
            for one in passes
        ]

    assert weights(0) == [[(2, 0, 1.0, 2.0), (2, 1, 1.0, 2.0)]]
    assert weights(1) == [
        [(0, 0, 0.0, 3.0), (0, 1, 0.0, 3.0)],
        [(0, 2, 0.0, 3.0)],
        [(2, 0, 1.0, 5.0), (2, 1, 1.0, 5.0)],
        [(2, 2, 0.0, 3.0)],
    ]
