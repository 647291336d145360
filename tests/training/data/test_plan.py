"""The order of the samples for any number of samples, sizes and processes."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from uniworld.training.data.plan import Plan, painted_sizes
from uniworld.uniworld_core.images.sizes import Size, size_by_aspect

some_sizes = st.lists(st.sampled_from([(64, 64), (64, 96), (96, 64), (160, 96)]), min_size=1, max_size=60)
plans = st.builds(
    lambda sizes, batch_size, seed: (sizes, Plan(torch.tensor(sizes), batch_size, seed)),
    some_sizes,
    st.integers(1, 9),
    st.integers(-3, 2**63),
)


@given(plans, st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_every_sample_comes_once_per_epoch_except_for_fill(case: tuple[list, Plan], epoch: int) -> None:
    sizes, plan = case
    counts = Counter[int]()
    slots = 0
    for step in range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch):
        assert plan.epoch(step) == epoch
        batch = plan.batch(step)
        counts.update(slot.sample for slot in batch)
        slots += len(batch)
    assert set(counts) == set(range(len(sizes)))
    per_size = Counter(sizes)
    fill = sum(-count % plan.batch_size for count in per_size.values())
    assert slots == len(sizes) + fill
    for index, size in enumerate(sizes):
        # The last batch of a size repeats that size's first samples.
        assert counts[index] <= 1 + -(-(-per_size[size] % plan.batch_size) // per_size[size])


@given(plans, st.integers(0, 10**12))
@settings(max_examples=60, deadline=None)
def test_a_batch_has_one_size_and_positions_that_follow_the_step(case: tuple[list, Plan], step: int) -> None:
    sizes, plan = case
    batch = plan.batch(step)
    assert {Size(*sizes[slot.sample]) for slot in batch} == {plan.size(step)}
    assert [slot.position for slot in batch] == list(range(step * plan.batch_size, (step + 1) * plan.batch_size))


@given(plans, st.integers(0, 50), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_a_step_does_not_depend_on_earlier_ones_and_processes_partition_it(
    case: tuple[list, Plan], step: int, world: int
) -> None:
    sizes, plan = case
    batch = plan.batch(step)
    again = Plan(torch.tensor(sizes), plan.batch_size, plan.seed)
    shares = [again.batch(step)[rank::world] for rank in range(world)]
    assert sorted(slot for share in shares for slot in share) == batch


def test_epochs_and_seeds_differ() -> None:
    sizes = torch.full((50, 2), 64)
    plan, other = Plan(sizes, 50, 0), Plan(sizes, 50, 1)
    orders = [[slot.sample for slot in each.batch(step)] for each in (plan, other) for step in range(3)]
    assert all(orders[i] != orders[j] for i in range(6) for j in range(i))


def test_batches_of_different_sizes_are_interleaved() -> None:
    plan = Plan(torch.tensor([(64, 64)] * 50 + [(64, 96)] * 50), 5, 0)
    order = [plan.size(step).width for step in range(plan.steps_per_epoch)]
    changes = sum(one != other for one, other in pairwise(order))
    assert changes > 4


def test_painted_sizes_are_those_of_the_nearest_ratio() -> None:
    sizes = [(512, 512), (480, 640), (640, 480), (333, 1000)]
    painted = painted_sizes(torch.tensor(sizes), 512 * 512).tolist()
    expected = [size_by_aspect(h, w, 512 * 512) for h, w in sizes]
    assert painted == [[size.height, size.width] for size in expected]


def test_unreadable_targets_get_the_most_common_size() -> None:
    sizes = torch.tensor([(0, 0), (512, 512), (480, 640), (482, 640), (0, 0), (0, 0)])
    painted = painted_sizes(sizes, 512 * 512)
    assert painted[0].tolist() == painted[2].tolist() == painted[4].tolist()
    assert painted[0].tolist() != painted[1].tolist()


def test_an_empty_plan_is_rejected() -> None:
    with pytest.raises(ValueError, match="None of the 2 targets can be read"):
        painted_sizes(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="needs sizes of shape"):
        Plan(torch.zeros(0, 2), 1, 0)
    with pytest.raises(ValueError, match="The batch size is 0"):
        Plan(torch.ones(2, 2), 0, 0)
    with pytest.raises(ValueError, match="The step is -1"):
        Plan(torch.ones(2, 2), 1, 0).batch(-1)


def test_millions_of_samples_are_stored_in_tensors() -> None:
    plan = Plan(torch.tensor([(64, 64), (64, 96)], dtype=torch.int16).repeat(1_000_000, 1), 64, 0)
    assert plan.steps_per_epoch == 31250
    assert len({slot.sample for step in range(40, 60) for slot in plan.batch(10**9 + step)}) == 20 * 64
    assert all(not isinstance(value, (list, dict)) for value in vars(plan).values())
