"""The plan of an epoch depends on (seed, epoch) alone."""

from __future__ import annotations

from collections import Counter

import pytest
from uniworld.training.editr1.groups import plan_epoch, times_seed, training_noise_seed
from uniworld.training.editr1.times import draw_times
from uniworld.uniworld_core.errors import UniWorldError


def test_the_same_seed_and_epoch_give_the_same_plan() -> None:
    assert plan_epoch(10, 4, 3, seed=5, epoch=7) == plan_epoch(10, 4, 3, seed=5, epoch=7)
    assert plan_epoch(10, 4, 3, seed=5, epoch=7) != plan_epoch(10, 4, 3, seed=6, epoch=7)


def test_every_picture_of_a_run_has_its_own_seed() -> None:
    seeds = [seed for epoch in range(20) for group in plan_epoch(10, 4, 3, 5, epoch) for seed in group.seeds]
    assert len(set(seeds)) == 20 * 4 * 3


@pytest.mark.parametrize(("count", "groups"), [(8, 4), (10, 4), (7, 5), (4, 4)])
def test_samples_are_seen_about_equally_often_and_never_twice_in_an_epoch(count: int, groups: int) -> None:
    epochs = [[group.sample for group in plan_epoch(count, groups, 2, 0, epoch)] for epoch in range(4 * count)]
    assert all(len(set(epoch)) == groups for epoch in epochs)
    seen = Counter(sample for epoch in epochs for sample in epoch)
    assert sorted(seen) == list(range(count))
    if count % groups == 0:
        assert len(set(seen.values())) == 1


def test_endless_data_is_always_fresh() -> None:
    samples = [group.sample for epoch in range(5) for group in plan_epoch(None, 4, 2, 0, epoch)]
    assert samples == list(range(20))


def test_too_few_samples_are_refused() -> None:
    for count, retired in ((3, ()), (5, (0, 4))):
        with pytest.raises(UniWorldError, match="3 samples, and each epoch needs 4"):
            plan_epoch(count, 4, 2, 0, 0, retired)


def test_others_take_the_places_of_retired_samples() -> None:
    plain = [[group.sample for group in plan_epoch(10, 4, 2, 0, epoch)] for epoch in range(9)]
    without = [[group.sample for group in plan_epoch(10, 4, 2, 0, epoch, {0, 1, 2, 3})] for epoch in range(9)]
    assert {sample for epoch in without for sample in epoch} == set(range(4, 10))
    assert all(len(set(epoch)) == 4 for epoch in without)
    # Epochs that draw no retired sample do not change.
    kept = [epoch for epoch in plain if min(epoch) > 3]
    assert all(epoch in without for epoch in kept)


def test_shared_noise_is_equal_within_a_group_only() -> None:
    assert training_noise_seed(0, 1, 2, 3, 4, shared=True) == training_noise_seed(0, 1, 2, 5, 4, shared=True)
    different = {training_noise_seed(0, 1, group, 3, time, shared=True) for group in range(3) for time in range(3)}
    assert len(different) == 9
    assert training_noise_seed(0, 1, 2, 3, 4, shared=False) != training_noise_seed(0, 1, 2, 5, 4, shared=False)
    assert times_seed(0, 1, 2, 3, shared=True) == times_seed(0, 1, 2, 4, shared=True)


def test_times_are_different_levels_of_the_schedule() -> None:
    times = draw_times(6, 5, seed=3)
    assert len(set(times)) == 5
    assert set(times) <= set(range(6))
    assert draw_times(6, 9, seed=3) == draw_times(6, 6, seed=3)
