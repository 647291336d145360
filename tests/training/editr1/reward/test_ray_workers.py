"""A reward on Ray workers: a worker that dies or hangs is replaced, and nothing is lost."""

from __future__ import annotations

import os
import signal

import pytest
from uniworld.training.config.editr1 import EditR1Config
from uniworld.training.config.file import load_any
from uniworld.training.editr1.reward.protocol import RewardFailure, RewardItem
from uniworld.training.editr1.reward.ray_workers import RayReward
from uniworld.training.shapes.editr1.provide import ShapesPrompts, providers

ray = pytest.importorskip("ray")


@pytest.mark.slow
def test_workers_score_die_and_hang() -> None:
    config = load_any("nano_editr1", ["reward.ray=local", "reward.workers=2", "reward.batch=2", "reward.timeout=60"])
    assert isinstance(config, EditR1Config)
    tasks = [ShapesPrompts(("depth",), 3, 64).read(index) for index in range(5)]
    pictures = [task.task.target if number % 2 else task.references[0] for number, task in enumerate(tasks)]  # type: ignore[attr-defined]
    items = [RewardItem(task.prompt, task.references, one, task=task.task) for task, one in zip(tasks, pictures)]
    reward = providers().open_reward(config)
    assert isinstance(reward, RayReward)
    try:
        scores = reward.score(items)
        assert [score == 1.0 for score in scores] == [False, True] * 2 + [False]
        os.kill(ray.get(reward.actors[0].process.remote()), signal.SIGKILL)
        assert reward.score(items) == scores
        os.kill(ray.get(reward.actors[1].process.remote()), signal.SIGSTOP)
        reward._timeout = 5.0
        again = reward.score(items)
        assert again == scores or all(isinstance(one, RewardFailure) for one in again if one not in scores)
    finally:
        reward.close()
