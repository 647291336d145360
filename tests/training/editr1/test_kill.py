"""Runs with rewards that are killed anywhere resume to the same bits, and several processes get the same numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from uniworld.training.config.editr1 import EditR1Config
from uniworld.training.config.file import to_toml
from uniworld.training.editr1.loop import train_editr1
from uniworld.training.engine import checkpoints
from uniworld.training.run.folder import CHECKPOINTS

# Trains in forked children, so that the libraries are imported once. Each but the last is killed at its place.
KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
import torch
from uniworld.training.config.file import load_any
from uniworld.training.editr1 import policy, store, trainer
from uniworld.training.editr1.loop import open_base_model, train_editr1
from uniworld.training.editr1.providers import PROMPTS, Providers
from uniworld.training.editr1.rollout import encode
from uniworld.training.engine import checkpoints
import torch.distributed.checkpoint, torch.distributed.checkpoint.state_dict

class Red:
    name = "red"
    def score(self, items):
        return [float(np.asarray(item.picture)[..., 0].mean() / 255) for item in items]
    def close(self):
        pass

def killing(owner, name, calls, before=True):
    plain = getattr(owner, name)
    left = [calls]
    def call(*arguments, **named):
        left[0] -= 1
        if before and not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        result = plain(*arguments, **named)
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(owner, name, call)

torch.set_num_threads(1)
config = load_any({config!r})
model = open_base_model(config, torch.device("cpu"))  # imports what the children need
encode(model, PROMPTS["metadata"](config).read(0), config)
model.vae
PLACES = [
    (store.EpochStore, "keep_latents", 2, True),
    (store.EpochStore, "keep_scores", 1, False),
    (trainer, "blend", 1, False),
    (checkpoints, "_finish", 1, True),
    (checkpoints, "_finish", 1, False),
    None,
]
for place in PLACES:
    child = os.fork()
    if not child:
        if place is not None:
            killing(*place)
        train_editr1(config, Path({folder!r}), Providers(PROMPTS, {{"red": lambda config: Red()}}), progress=False)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    wanted = 0 if place is None else signal.SIGKILL
    assert status == wanted, (place and place[1:], status)
"""

PARALLEL = """
from pathlib import Path
import numpy as np
from uniworld.training.config.file import load_any
from uniworld.training.editr1.loop import train_editr1
from uniworld.training.editr1.providers import PROMPTS, Providers

class Red:
    name = "red"
    def score(self, items):
        return [float(np.asarray(item.picture)[..., 0].mean() / 255) for item in items]
    def close(self):
        pass

for engine in ("data", "fsdp"):
    config = load_any({config!r}, [f"run.parallel={{engine}}"])
    train_editr1(config, Path({folder!r}) / engine, Providers(PROMPTS, {{"red": lambda config: Red()}}), progress=False)
"""


def state_of(run: Path) -> dict[str, torch.Tensor]:
    newest = checkpoints.latest(run / CHECKPOINTS)
    assert newest is not None
    return checkpoints.read_tensors(newest, "")


def test_a_run_that_is_killed_anywhere_resumes_to_the_same_bits(
    tmp_path: Path,
    config_of: Callable[..., EditR1Config],
    providers_of: Callable[..., Any],
    processes: Callable[..., Any],
    rows: Callable[[Path], list[dict[str, Any]]],
) -> None:
    config = config_of("run.steps=2")
    train_editr1(config, tmp_path / "whole", providers_of(), progress=False)
    file = tmp_path / "killed.toml"
    file.write_text(to_toml(config), encoding="utf-8")
    (done,) = processes(KILLED.format(config=str(file), folder=str(tmp_path / "killed")))
    assert done.returncode == 0, done.stderr
    assert rows(tmp_path / "whole") == rows(tmp_path / "killed")
    left, right = state_of(tmp_path / "whole"), state_of(tmp_path / "killed")
    assert sorted(left) == sorted(right)
    assert not [
        name for name in left if name.startswith("random/") is False and not torch.equal(left[name], right[name])
    ]


@pytest.mark.slow
def test_two_processes_get_the_numbers_of_one(
    tmp_path: Path,
    config_of: Callable[..., EditR1Config],
    providers_of: Callable[..., Any],
    processes: Callable[..., Any],
) -> None:
    config = config_of("run.steps=2", "optimizer.eps=1e-3")
    train_editr1(config, tmp_path / "one", providers_of(), progress=False)
    file = tmp_path / "two.toml"
    file.write_text(to_toml(config), encoding="utf-8")
    for done in processes(PARALLEL.format(config=str(file), folder=str(tmp_path)), size=2):
        assert done.returncode == 0, done.stderr
    left, lines = state_of(tmp_path / "one"), (tmp_path / "one" / "metrics.jsonl").read_text().splitlines()
    for engine in ("data", "fsdp"):
        right = state_of(tmp_path / engine)
        for name in left:
            if name.startswith(("weights/", "old/", "ema/", "optimizer/")):
                torch.testing.assert_close(left[name], right[name], rtol=1e-5, atol=1e-6, msg=f"{engine} {name}")
        others = (tmp_path / engine / "metrics.jsonl").read_text().splitlines()
        for one, two in zip(map(json.loads, lines), map(json.loads, others), strict=True):
            assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
            assert one["reward"] == pytest.approx(two["reward"], abs=1e-5)
