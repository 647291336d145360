"""The EMA: its formula, and equal results for any number of processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from uniworld.training.engine.ema import ShardedEMA, ema_decay

SHAPES = {"matrix": (7, 3), "vector": (5,), "short": (1, 4), "scalar_like": (1,)}
UPDATES = 12
LIMIT = 0.5

# Each process averages the same random walk of the weights; rank 0 saves the gathered result.
PROGRAM = """
import json, os, torch
from torch import nn, distributed
from uniworld.training.engine.ema import ShardedEMA
distributed.init_process_group("gloo")
rank, world = distributed.get_rank(), distributed.get_world_size()
torch.manual_seed(0)
named = {{name: nn.Parameter(torch.randn(shape)) for name, shape in {shapes}.items()}}
if {sharded}:
    from torch.distributed.fsdp import fully_shard
    module = nn.ParameterDict(named)
    fully_shard(module)
    named = dict(module.named_parameters())
ema = ShardedEMA(named, {limit}, rank, world)
for step in range({updates}):
    for name, shape in {shapes}.items():
        parameter, change = named[name], torch.randn(shape)
        if {sharded}:
            from torch.distributed.tensor import distribute_tensor
            change = distribute_tensor(change, parameter.device_mesh, parameter.placements)
        parameter.data.add_(change)
    ema.update()
raw = {{name: value.full_tensor() if {sharded} else value.detach().clone() for name, value in named.items()}}
with ema.applied():
    applied = {{name: (value.full_tensor() if {sharded} else value.detach().clone()) for name, value in named.items()}}
again = {{name: value.full_tensor() if {sharded} else value.detach() for name, value in named.items()}}
whole = dict(ema.gather())
assert all(torch.equal(applied[name], whole[name]) for name in whole)
assert all(torch.equal(raw[name], again[name]) for name in raw)
held = sum(rows.numel() for rows in ema.local_rows.values())
everyone = [None] * world
distributed.all_gather_object(everyone, held)
if rank == 0:
    values = {{name: value.tolist() for name, value in whole.items()}}
    with open({out!r}, "w") as file:
        json.dump({{"ema": values, "held": everyone}}, file)
distributed.barrier()
os._exit(0)  # about one gloo process in forty aborts during its shutdown
"""


def plain_average() -> dict[str, torch.Tensor]:
    """The program's random walk, averaged by the formula in one process."""
    torch.manual_seed(0)
    weights = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    average = {name: value.clone() for name, value in weights.items()}
    for update in range(UPDATES):
        decay = min((1 + update) / (10 + update), LIMIT)
        for name, shape in SHAPES.items():
            weights[name] += torch.randn(shape)
            average[name] = decay * average[name] + (1 - decay) * weights[name]
    return average


class TestDecay:
    def test_starts_low_and_reaches_its_limit(self) -> None:
        assert [ema_decay(update, 0.999) for update in (0, 1, 90)] == [1 / 10, 2 / 11, 91 / 100]
        assert ema_decay(10**6, 0.999) == 0.999


class TestAverage:
    def test_starts_as_a_copy_of_the_weights(self) -> None:
        parameter = nn.Parameter(torch.ones(3))
        ema = ShardedEMA({"one": parameter}, 0.9)
        parameter.data.fill_(5.0)
        assert dict(ema.gather())["one"].tolist() == [1.0, 1.0, 1.0]

    def test_of_bfloat16_weights_is_float32(self) -> None:
        parameter = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
        ema = ShardedEMA({"one": parameter}, 0.999)
        ema.updates = 10**6
        parameter.data.fill_(2.0)
        ema.update()
        assert dict(ema.gather())["one"].dtype == torch.float32
        # bfloat16 cannot represent 1.001.
        assert dict(ema.gather())["one"][0] == pytest.approx(1.001, abs=1e-6)

    def test_is_applied_within_the_block_and_undone_even_after_an_error(self) -> None:
        parameter = nn.Parameter(torch.ones(3))
        ema = ShardedEMA({"one": parameter}, 0.9)
        parameter.data.fill_(5.0)

        within = []

        def fail() -> None:
            with ema.applied():
                within.extend(parameter.tolist())
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        assert within == [1.0, 1.0, 1.0]
        assert parameter.tolist() == [5.0, 5.0, 5.0]

    def test_in_one_process_matches_the_formula(self) -> None:
        torch.manual_seed(0)
        named = {name: nn.Parameter(torch.randn(shape)) for name, shape in SHAPES.items()}
        ema = ShardedEMA(named, LIMIT)
        for _ in range(UPDATES):
            for parameter in named.values():
                parameter.data.add_(torch.randn(parameter.shape))
            ema.update()
        torch.testing.assert_close(dict(ema.gather()), plain_average(), rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize(
        ("world", "sharded"), [(2, False), pytest.param(3, False, marks=pytest.mark.slow), (2, True)]
    )
    def test_sharded_over_processes_matches_the_formula(
        self, world: int, sharded: bool, processes: Callable[..., list], tmp_path: Path
    ) -> None:
        out = tmp_path / "average.json"
        done = processes(
            PROGRAM.format(shapes=SHAPES, limit=LIMIT, updates=UPDATES, out=str(out), sharded=sharded), world
        )
        assert all(one.returncode == 0 for one in done), done[0].stderr
        found = json.loads(out.read_text(encoding="utf-8"))
        for name, value in plain_average().items():
            torch.testing.assert_close(torch.tensor(found["ema"][name]), value, rtol=1e-6, atol=1e-6)
        numbers = sum(torch.Size(shape).numel() for shape in SHAPES.values())
        assert sum(found["held"]) == numbers
        # No process stores more than its share, up to one indivisible row per tensor.
        assert max(found["held"]) <= numbers / world + sum(torch.Size(shape[1:]).numel() for shape in SHAPES.values())
