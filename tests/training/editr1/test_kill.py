"""Runs with rewards that are killed anywhere resume to the same bits, and several processes get the same numbers."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from uniworld.training.config.editr1 import EditR1Config
from uniworld.training.config.file import to_toml
from uniworld.training.editr1.loop import train_editr1
from uniworld.training.engine import checkpoints
from uniworld.training.run.folder import CHECKPOINTS

# Trains in forked children, so that the libraries are imported once. {steps} are (run, place, killed ranks): a child of each
# of these ranks is killed at the place, before or after a call of a function. Without a place, the run finishes.
FORKING = """
import os, signal
from pathlib import Path
import numpy as np
import torch
from uniworld.training.config.file import load_any
from uniworld.training.editr1 import store, trainer
from uniworld.training.editr1.loop import open_base_model, train_editr1
from uniworld.training.editr1.providers import PROMPTS, Providers
from uniworld.training.editr1.rollout import encode
from uniworld.training.engine import checkpoints
from uniworld.uniworld_core.errors import RunFailed
import torch.distributed.checkpoint, torch.distributed.checkpoint.state_dict

OWNERS = {{"store": store.EpochStore, "trainer": trainer, "checkpoints": checkpoints}}

class Red:
    name = "red"
    def score(self, items):
        return [float(np.asarray(item.picture)[..., 0].mean() / 255) for item in items]
    def close(self):
        pass

def killing(owner, name, calls, before):
    plain = getattr(OWNERS[owner], name)
    left = [calls]
    def call(*arguments, **named):
        left[0] -= 1
        if before and not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        result = plain(*arguments, **named)
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(OWNERS[owner], name, call)

def train(config, folder, place):
    if place:
        killing(*place)
    try:
        train_editr1(config, folder, Providers(PROMPTS, {{"red": lambda config: Red()}}), progress=False)
    except RunFailed as error:  # the other process was killed
        os._exit(9 if "exited, so rank" in str(error) else 1)
    os._exit(0)

rank = int(os.environ["RANK"])
torch.set_num_threads(1)
config = load_any({config!r})
model = open_base_model(config, torch.device("cpu"))  # imports what the children need
encode(model, PROMPTS["metadata"](config).read(0), config)
model.vae
for (run, place, killed), port in zip({steps!r}, {ports!r}):
    child = os.fork()
    if not child:
        os.environ["MASTER_PORT"] = str(port)
        settings = ["run.parallel=fsdp", "policy.kind=full"] if "fsdp" in run else []
        train(load_any({config!r}, settings), Path({folder!r}) / run, place if rank in killed else None)
    _, status = os.waitpid(child, 0)
    wanted = 0 if not place else signal.SIGKILL if rank in killed else 9 << 8
    assert status == wanted, (rank, run, place, status)
"""


@pytest.fixture
def train_in_children(processes: Callable[..., Any], tmp_path: Path) -> Callable[..., None]:
    """`train_in_children(config, steps, size)`: train in `size` processes, and be killed; see `FORKING`."""

    def train(config: EditR1Config, steps: list[tuple[str, Any, tuple[int, ...]]], size: int = 1) -> None:
        file = tmp_path / "children.toml"
        file.write_text(to_toml(config), encoding="utf-8")
        with ExitStack() as stack:  # a port for each step: a child of the step before may still hold its own
            sockets = [stack.enter_context(socket.socket()) for _ in steps]
            for one in sockets:
                one.bind(("127.0.0.1", 0))
            ports = [one.getsockname()[1] for one in sockets]
        program = FORKING.format(config=str(file), folder=str(tmp_path), steps=steps, ports=ports)
        for done in processes(program, size=size):
            assert done.returncode == 0, done.stderr

    return train


def state_of(run: Path) -> dict[str, torch.Tensor]:
    newest = checkpoints.latest(run / CHECKPOINTS)
    assert newest is not None
    return checkpoints.read_tensors(newest, "")


def assert_same_bits(left: Path, right: Path) -> None:
    """Theta, old, EMA, optimizer and the random state of every process are equal to the last bit."""
    one, two = state_of(left), state_of(right)
    assert sorted(one) == sorted(two)
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


def test_a_run_that_is_killed_anywhere_resumes_to_the_same_bits(
    tmp_path: Path,
    config_of: Callable[..., EditR1Config],
    train_in_children: Callable[..., None],
    rows: Callable[[Path], list[dict[str, Any]]],
) -> None:
    places: list[Any] = [
        ("store", "keep_latents", 2, True),
        ("store", "keep_scores", 1, False),
        ("trainer", "blend", 1, False),
        ("checkpoints", "_finish", 1, True),
        ("checkpoints", "_finish", 1, False),
        None,
    ]
    steps = [("whole", None, ()), *(("killed", place, (0,)) for place in places)]
    train_in_children(config_of("run.steps=2"), steps)
    assert rows(tmp_path / "whole") == rows(tmp_path / "killed")
    assert_same_bits(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.slow
def test_two_processes_get_the_numbers_of_one_and_resume_to_the_same_bits(
    tmp_path: Path,
    config_of: Callable[..., EditR1Config],
    providers_of: Callable[..., Any],
    train_in_children: Callable[..., None],
    rows: Callable[[Path], list[dict[str, Any]]],
) -> None:
    config = config_of("run.steps=2", "optimizer.eps=1e-3", "loss.kl=0.1")
    steps = [
        ("data", None, ()),
        ("fsdp", None, ()),
        ("fsdp-killed", ("store", "keep_latents", 1, False), (0,)),
        ("fsdp-killed", ("checkpoints", "_write_tensors", 1, True), (1,)),
        ("fsdp-killed", ("trainer", "blend", 2, False), (0, 1)),
        ("fsdp-killed", None, ()),
    ]
    train_in_children(config, steps, 2)
    assert rows(tmp_path / "fsdp") == rows(tmp_path / "fsdp-killed")
    assert_same_bits(tmp_path / "fsdp", tmp_path / "fsdp-killed")
    # "data" trains adapters and "fsdp" everything. Sums in another order differ by rounding.
    full = config_of("run.steps=2", "optimizer.eps=1e-3", "loss.kl=0.1", "policy.kind=full")
    # Rounding may change a pixel of a painted picture by 1 of 255, and with it the reward and every advantage.
    for name, alone in (("data", config), ("fsdp", full)):
        train_editr1(alone, tmp_path / f"{name}-alone", providers_of(), progress=False)
        left, right = state_of(tmp_path / f"{name}-alone"), state_of(tmp_path / name)
        for key in left:
            if not key.startswith("random/"):
                torch.testing.assert_close(left[key], right[key], rtol=1e-4, atol=1e-5, msg=f"{name} {key}")
        for one, two in zip(rows(tmp_path / f"{name}-alone"), rows(tmp_path / name), strict=True):
            assert one == pytest.approx(two, rel=1e-3, abs=1e-5)
