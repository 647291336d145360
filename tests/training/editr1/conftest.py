"""Fixtures: prompts in the published format, a reward without a judge, and configurations of the tiny model on both."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from uniworld.training.config.editr1 import EditR1Config
from uniworld.training.config.file import load_any
from uniworld.training.editr1.loop import train_editr1
from uniworld.training.editr1.providers import PROMPTS, Providers
from uniworld.training.editr1.reward.protocol import RewardFailure, RewardItem, Score

TINY = """
[model]
checkpoint = "tiny"
dtype = "float32"
t5_length = 0
[editr1]
groups = 2
group_size = 3
steps = 2
side = 32
times = 1
guidance = 3.5
[policy]
rank = 2
alpha = 4.0
[advantage]
filter = "none"
[reward]
name = "red"
[optimizer]
lr = 1e-3
[run]
steps = 3
micro_batch_size = 2
device = "cpu"
sheet_every = 0
tensorboard = false
"""


class RedReward:
    """Rewards red. `fail` names pictures by the order in which they are scored."""

    name = "red"

    def __init__(self, fail: Sequence[int] = ()) -> None:
        self.fail, self.seen = set(fail), 0

    def score(self, items: Sequence[RewardItem]) -> list[Score]:
        scores: list[Score] = []
        for item in items:
            red = float(np.asarray(item.picture)[..., 0].mean() / 255)
            scores.append(RewardFailure("no judge") if self.seen in self.fail else red)
            self.seen += 1
        return scores

    def close(self) -> None:
        pass


@pytest.fixture(scope="session")
def metadata(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of four prompts with pictures, in the published format; tests only read it."""
    folder = tmp_path_factory.mktemp("prompts")
    (folder / "images").mkdir()
    rng, lines = np.random.default_rng(0), []
    for number in range(4):
        name = f"images/{number}.png"
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(folder / name)
        lines.append(json.dumps({"prompt": f"Paint it {number}.", "image": name, "requirement": "red"}))
    file = folder / "train_metadata.jsonl"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


@pytest.fixture
def config_of(tmp_path: Path, metadata: Path) -> Callable[..., EditR1Config]:
    """`config_of("run.steps=2", ...)`: the tiny model on these prompts, with these overrides."""
    file = tmp_path / "config.toml"
    file.write_text(TINY, encoding="utf-8")

    def make(*overrides: str) -> EditR1Config:
        config = load_any(file, [f"data.metadata={metadata}", *overrides])
        assert isinstance(config, EditR1Config)
        return config

    return make


@pytest.fixture(scope="session")
def first_epoch(tmp_path_factory: pytest.TempPathFactory, metadata: Path) -> Path:
    """The folder of a run of the tiny model on these prompts after one epoch; tests only read it."""
    folder = tmp_path_factory.mktemp("first")
    (folder / "config.toml").write_text(TINY, encoding="utf-8")
    config = load_any(folder / "config.toml", [f"data.metadata={metadata}", "run.steps=1"])
    assert isinstance(config, EditR1Config)
    train_editr1(config, folder / "run", Providers(PROMPTS, {"red": lambda config: RedReward()}), progress=False)
    return folder / "run"


@pytest.fixture
def providers_of() -> Callable[..., Providers]:
    """`providers_of(reward)`: the published prompts and this reward."""
    return lambda reward=None: Providers(PROMPTS, {"red": lambda config: reward or RedReward()})


@pytest.fixture
def red_reward() -> type[RedReward]:
    """The reward, to be made with failures."""
    return RedReward


@pytest.fixture
def rows() -> Callable[[Path], list[dict[str, Any]]]:
    """`rows(run)`: the metrics of a run without times."""
    times = ("seconds", "rollout_seconds")

    def read(run: Path) -> list[dict[str, Any]]:
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [{key: value for key, value in json.loads(line).items() if key not in times} for line in lines]

    return read
