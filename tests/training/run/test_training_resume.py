"""A run that is killed at any time resumes to losses that are bit-identical to an uninterrupted run's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from uniworld.training.config.file import to_toml
from uniworld.training.config.settings import Config
from uniworld.training.engine import checkpoints
from uniworld.training.run.loop import train

KILLS = 4
STEPS = 24

# Forks trainers of one run in turn and kills each at a random time after its first step; the last one may finish.
PROGRAM = """
import os, random, signal, sys, time
from pathlib import Path
import torch
import diffusers, transformers
from uniworld.training.run import loop, validate
from uniworld.training.config.file import load_config
from uniworld.training.data import cache, loader
from torch.distributed import checkpoint
torch.set_num_threads(1)
config, run = load_config({config!r}), Path({run!r})
checkpoints = run / "checkpoints"
rng = random.Random(0)
kills = 0
for attempt in range({kills} + 1):
    before = len(list(checkpoints.glob("step-*"))) if checkpoints.is_dir() else 0
    child = os.fork()
    if child == 0:
        loop.train(config, run)
        os._exit(0)
    if attempt < {kills}:
        # Wait for a new checkpoint before the kill, so that the run makes progress; the time itself is random.
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and len(list(checkpoints.glob("step-*"))) <= before:
            time.sleep(0.001)
        time.sleep(rng.random() * 0.15)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    kills += os.WIFSIGNALED(status)
    if not os.WIFSIGNALED(status):
        assert status == 0, status
        break
print(kills)
"""


@pytest.mark.slow
def test_a_repeatedly_killed_run_has_the_losses_and_weights_of_an_uninterrupted_one(
    tiny_config: Callable[..., Config],
    processes: Callable[..., list],
    losses: Callable[[Path], list[float]],
    tmp_path: Path,
) -> None:
    config = tiny_config(f"run.steps={STEPS}", "run.save_every=1", "run.keep=0", "run.batch_size=1")
    (tmp_path / "config.toml").write_text(to_toml(config), encoding="utf-8")
    program = PROGRAM.format(config=str(tmp_path / "config.toml"), run=str(tmp_path / "killed"), kills=KILLS)
    (done,) = processes(program)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= KILLS // 2

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the number of threads changes the rounding of sums
    try:
        train(config, tmp_path / "whole")
    finally:
        torch.set_num_threads(threads)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    for prefix in (checkpoints.WEIGHTS, checkpoints.EMA, checkpoints.OPTIMIZER):
        killed, whole = (
            checkpoints.read_tensors(tmp_path / name / "checkpoints" / f"step-{STEPS:08d}", prefix)
            for name in ("killed", "whole")
        )
        assert killed.keys() == whole.keys()
        assert all(torch.equal(killed[name], whole[name]) for name in whole)
