"""Models within a memory budget: the least recently used are evicted first."""

from __future__ import annotations

import gc

import pytest
import torch
from uniworld.nodes.host import PlainHost
from uniworld.uniworld_core.loading.memory import ModelMemory, module_bytes

CPU = torch.device("cpu")
SIZE = 400


def module() -> torch.nn.Module:
    return torch.nn.Linear(9, 10)  # 90 + 10 parameters of 4 bytes


@pytest.fixture
def hold():
    """Hold a module that can be reloaded; `reads` counts the loads of each."""

    def hold(memory: ModelMemory, device: torch.device = CPU):
        reads = []

        def read() -> torch.nn.Module:
            reads.append(1)
            return module()

        return memory.manage(module(), device, read), reads

    return hold


def test_bytes_of_a_module():
    assert module_bytes(module()) == SIZE


def test_without_a_budget_all_models_stay(hold):
    memory = ModelMemory()
    held = [hold(memory) for _ in range(3)]
    for one, _ in held:
        one.on_device(10**12)
    assert memory.used() == 3 * SIZE


def test_the_least_recently_used_is_evicted_first(hold):
    memory = ModelMemory(2 * SIZE)
    (a, a_reads), (b, b_reads), (c, _) = hold(memory), hold(memory), hold(memory)
    a.on_device(), b.on_device(), a.on_device(), c.on_device()
    assert (a.resident, b.resident, c.resident) == (True, False, True)
    assert memory.used() == 2 * SIZE
    b.on_device()
    assert (a.resident, b_reads, a_reads) == (False, [1], [])


def test_working_memory_counts(hold):
    memory = ModelMemory(2 * SIZE)
    (a, _), (b, _) = hold(memory), hold(memory)
    a.on_device(), b.on_device(SIZE // 2)
    assert (a.resident, b.resident) == (False, True)


def test_a_module_larger_than_the_budget_runs_while_all_others_are_offloaded(hold):
    memory = ModelMemory(SIZE // 2)
    (a, _), (b, _) = hold(memory), hold(memory)
    a.on_device()
    assert b.on_device()(torch.zeros(1, 9)).shape == (1, 10)
    assert (a.resident, b.resident) == (False, True)


def test_what_cannot_be_read_again_stays_on_a_cpu():
    memory = ModelMemory(SIZE)
    a, b = memory.manage(module(), CPU), memory.manage(module(), CPU)
    first = a.on_device()
    b.on_device()
    assert a.on_device() is first


def test_a_device_is_freed_to_the_cpu(hold):
    # The meta device takes the role of a GPU: evicted weights are moved, not reloaded.
    memory = ModelMemory(SIZE)
    moves = []
    held, reads = hold(memory, torch.device("meta"))
    held.on_device()
    held._module.to = lambda device: moves.append(str(device)) or held._module  # type: ignore[method-assign, assignment, func-returns-value]
    hold(memory)[0].on_device()
    assert (moves, reads, held.resident) == (["cpu"], [], False)


def test_empty_moves_everything_out(hold):
    memory = ModelMemory()
    (a, _), (b, _) = hold(memory), hold(memory)
    a.on_device(), b.on_device()
    memory.offload_all()
    assert memory.used() == 0


def test_released_models_are_not_counted(hold):
    memory = ModelMemory()
    held, _ = hold(memory)
    held.on_device()
    del held
    gc.collect()
    assert memory.used() == 0


def test_within_a_budget_models_are_read_to_the_cpu_first():
    assert PlainHost(memory=ModelMemory(1)).offload_device("default") == CPU
    assert PlainHost().offload_device("cpu") == CPU
