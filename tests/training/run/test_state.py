"""A restored state continues exactly: later steps equal those of an uninterrupted run."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import torch
from torch import nn
from torch.optim import Optimizer
from uniworld.training.config.settings import OptimizerSettings
from uniworld.training.engine.checkpoints import CheckpointSaver, read_meta
from uniworld.training.engine.ema import ShardedEMA
from uniworld.training.engine.optimizer import make_optimizer
from uniworld.training.engine.parallel import World
from uniworld.training.objective.step import DenoiseTower
from uniworld.training.run.setup import PreparedModel
from uniworld.training.run.state import TrainingState

ALONE = World(0, 1, torch.device("cpu"), "data")


class Toy(nn.Module):
    """Parameters with special cases: a vector before the matrices, which Muon reorders, a frozen one and an unused one."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.bias = nn.Parameter(torch.randn(4, generator=generator))
        self.frozen = nn.Parameter(torch.arange(4.0), requires_grad=False)
        self.inner = nn.Linear(4, 4, bias=False)
        self.inner.weight.data = torch.randn(4, 4, generator=generator)
        self.unmet = nn.Parameter(torch.randn(2, 2, generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ((self.inner(x) + self.bias) * self.frozen).square().mean()


def built(name: str, seed: int) -> tuple[PreparedModel, Optimizer, ShardedEMA]:
    toy = Toy(seed)
    trained = {key: parameter for key, parameter in toy.named_parameters() if parameter.requires_grad}
    made = make_optimizer(trained.values(), OptimizerSettings(name=name, lr=0.1, weight_decay=0.01))
    return PreparedModel(cast(DenoiseTower, toy), toy, trained, ""), made, ShardedEMA(trained, 0.9)


def step(model: PreparedModel, optimizer: Optimizer, ema: ShardedEMA) -> None:
    model.wrapped(torch.randn(3, 4)).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    ema.update()


def state_of(made: tuple[PreparedModel, Optimizer, ShardedEMA]) -> TrainingState:
    return TrainingState(*made, ALONE)


def resumed(
    made: tuple[PreparedModel, Optimizer, ShardedEMA], folder: Path, name: str
) -> tuple[PreparedModel, Optimizer, ShardedEMA]:
    saver = CheckpointSaver(folder, ALONE)
    saver.save(1, state_of(made).tensors(), {"state": state_of(made).values()})
    saver.wait()
    saver.close()
    again = built(name, 1)
    checkpoint = folder / "step-00000001"
    state_of(again).restore(checkpoint, read_meta(checkpoint)["state"])
    return again


@pytest.mark.parametrize("name", ["adamw", "muon", "prodigy"])
@pytest.mark.parametrize("steps", [0, 2])
def test_steps_after_restoring_equal_those_of_the_uninterrupted_run(name: str, steps: int, tmp_path: Path) -> None:
    if name == "prodigy":
        pytest.importorskip("prodigyopt")
    torch.manual_seed(5)
    made = built(name, 0)
    for _ in range(steps):
        step(*made)
    again = resumed(made, tmp_path, name)
    drawn = torch.get_rng_state()
    for _ in range(3):
        step(*made)
    torch.set_rng_state(drawn)
    for _ in range(3):
        step(*again)
    assert all(torch.equal(one, other) for one, other in zip(made[0].trained.values(), again[0].trained.values()))
    assert all(torch.equal(made[2].local_rows[key], again[2].local_rows[key]) for key in made[2].local_rows)
    assert state_of(made).values() == state_of(again).values()


def test_saving_the_state_of_an_unused_optimizer_does_not_change_it(tmp_path: Path) -> None:
    made = built("adamw", 0)
    assert not [key for key in state_of(made).tensors() if key.startswith("optimizer/")]
    assert not made[1].state
