"""Training with several processes: the losses of one process, other numbers of processes on resume, and lost processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from uniworld.training.config.file import to_toml
from uniworld.training.config.settings import Config
from uniworld.training.engine import checkpoints
from uniworld.training.run.loop import train

# Older versions shard models only on GPUs.
ENGINES = ("data", "fsdp") if hasattr(torch.cpu.current_stream(), "record_event") else ("data",)

Configure = Callable[..., Config]
Processes = Callable[..., list]

# Trains each given configuration in its folder. Rank 0 starts each one late, which must not matter.
PROGRAM = """
import os, time
from pathlib import Path
import torch
from uniworld.training.config.file import load_config
from uniworld.training.run.loop import train
torch.set_num_threads(1)
for config, folder in {runs!r}:
    time.sleep(0.3 * (os.environ["RANK"] == "0"))
    train(load_config(config), Path(folder))
os._exit(0)  # about one gloo process in forty aborts during its shutdown
"""

# Rank 1 exits silently in the middle of the run.
DYING = """
import os, sys
from pathlib import Path
from uniworld.training.config.file import load_config
from uniworld.training.run.loop import train
from uniworld.training.run.trainer import Trainer
original = Trainer.train
def dying(self, *arguments):
    if self.step == 2 and self.world.rank == 1:
        os._exit(9)
    return original(self, *arguments)
Trainer.train = dying
try:
    train(load_config({config!r}), Path({folder!r}))
except ValueError as error:
    print(error)
    sys.stdout.flush()
    os._exit(2)
"""


def write(config: Config, folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder.with_suffix(".toml")
    file.write_text(to_toml(config), encoding="utf-8")
    return str(file)


# Three samples per step over two processes: one has two passes, the other has one and a dummy pass.
SETTINGS = ("run.batch_size=3", "run.micro_batch_size=1", "run.steps=4", "run.save_every=2")


def test_two_processes_give_the_losses_of_one_with_either_parallelism(
    tiny_config: Configure, processes: Processes, losses: Callable[[Path], list[float]], tmp_path: Path
) -> None:
    prompts = ('validation.prompts=[{prompt = "A cat."}]', "validation.steps=1", "validation.size=32")
    runs = []
    for engine in ENGINES:
        config = tiny_config(*SETTINGS, *prompts, f"run.parallel={engine}", "run.validate_every=2")
        runs.append((write(config, tmp_path / engine), str(tmp_path / engine)))
    done = processes(PROGRAM.format(runs=runs), 2)
    assert all(one.returncode == 0 for one in done), done[0].stderr
    train(tiny_config(*SETTINGS, *prompts, "run.validate_every=2"), tmp_path / "alone")
    alone = losses(tmp_path / "alone")
    for engine in ENGINES:
        assert losses(tmp_path / engine) == pytest.approx(alone, rel=1e-5)
        assert len(list((tmp_path / engine / "validation").iterdir())) == 2
        for prefix in (checkpoints.WEIGHTS, checkpoints.EMA):
            kept, wanted = (
                checkpoints.read_tensors(tmp_path / name / "checkpoints" / "step-00000004", prefix)
                for name in (engine, "alone")
            )
            assert kept.keys() == wanted.keys()
            for name, value in wanted.items():
                # Adam divides by the gradient's magnitude, which amplifies rounding where the gradient is nearly 0.
                torch.testing.assert_close(kept[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_run_resumes_with_one_process_and_again_with_two(
    tiny_config: Configure, processes: Processes, losses: Callable[[Path], list[float]], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    two = write(tiny_config(*SETTINGS, "run.parallel=data", "run.steps=2"), tmp_path / "two")
    six = write(tiny_config(*SETTINGS, f"run.parallel={ENGINES[-1]}", "run.steps=6"), tmp_path / "six")
    first = processes(PROGRAM.format(runs=[(two, str(folder))]), 2)
    assert all(one.returncode == 0 for one in first), first[0].stderr
    assert train(tiny_config(*SETTINGS, "run.steps=4"), folder).steps == 4
    last = processes(PROGRAM.format(runs=[(six, str(folder))]), 2)
    assert all(one.returncode == 0 for one in last), last[0].stderr
    train(tiny_config(*SETTINGS, "run.steps=6"), tmp_path / "alone")
    assert losses(folder) == pytest.approx(losses(tmp_path / "alone"), rel=1e-5)


@pytest.mark.slow
def test_when_a_process_dies_the_others_exit_with_a_sentence_and_keep_the_checkpoint(
    tiny_config: Configure, processes: Processes, tmp_path: Path
) -> None:
    config = tiny_config(*SETTINGS, "run.save_every=1", "run.steps=50")
    folder = tmp_path / "run"
    left, dead = processes(DYING.format(config=write(config, tmp_path / "dying"), folder=str(folder)), 2)
    assert dead.returncode == 9
    assert left.returncode == 2, left.stderr
    assert "Another of the 2 training processes exited" in left.stdout
    newest = checkpoints.latest(folder / "checkpoints")
    assert newest is not None
    checkpoints.verify(newest)
