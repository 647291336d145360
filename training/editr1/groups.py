"""The plan of an epoch: which samples are rolled out, k times each, and the published order of the same (for comparison).

A group is k samples of one prompt *and* its pictures. The published trainer compares prompts only, so that two pictures
with the same instruction share one mean (scripts/train_nft_kontext.py, `DistributedKRepeatSampler`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...uniworld_core.errors import UniWorldError

# Separate the random streams of orders, rollouts and training noise.
_ORDER, _ROLLOUT, _NOISE, _TIMES, _STEP = 1, 2, 3, 4, 5


@dataclass(frozen=True)
class Group:
    """One prompt with its pictures, painted k times.

    Attributes:
        number: position of the group in the epoch.
        sample: index of the sample in the data.
        seeds: seed of the starting noise of each of the k pictures.
    """

    number: int
    sample: int
    seeds: tuple[int, ...]


def stream_seed(seed: int, *path: int) -> int:
    """Return a seed (63 bits) for a place in the run, such as (kind, epoch, group). It depends on these numbers alone."""
    text = " ".join(map(str, (seed, *path)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def plan_epoch(
    count: int | None, groups: int, k: int, seed: int, epoch: int, retired: Collection[int] = frozenset()
) -> list[Group]:
    """Plan an epoch from (seed, epoch) and the retired samples alone.

    Samples are drawn without repetition: an order of all samples is used up before a new one begins, so that samples are
    seen about equally often.

    Args:
        count: number of samples; None for data that never ends, whose samples are numbered upwards.
        groups: groups of the epoch.
        k: pictures per group.
        retired: samples that are left out. Others take their places.

    Raises:
        UniWorldError: fewer samples are left than groups.
    """
    first = epoch * groups
    if count is None:
        chosen = list(range(first, first + groups))
    else:
        check_groups(count - len(retired), groups)
        chosen = [_in_order(count, seed, position) for position in range(first, first + groups)]
        # The end of one order and the start of the next share samples.
        if len(set(chosen)) < groups or not set(chosen).isdisjoint(retired):
            chosen = _without_repetition(chosen, count, seed, epoch, retired)
    return [
        Group(number, sample, tuple(stream_seed(seed, _ROLLOUT, epoch, number, item) for item in range(k)))
        for number, sample in enumerate(chosen)
    ]


def check_groups(count: int, groups: int) -> None:
    """Raise UniWorldError if there are fewer samples than groups of an epoch."""
    if count < groups:
        raise UniWorldError(
            f"There are {count} samples, and each epoch needs {groups} different ones: add samples, or lower "
            "editr1.groups."
        )


def _in_order(count: int, seed: int, position: int) -> int:
    turn, place = divmod(position, count)
    generator = torch.Generator("cpu").manual_seed(stream_seed(seed, _ORDER, turn))
    return int(torch.randperm(count, generator=generator)[place])


def _without_repetition(
    chosen: Sequence[int], count: int, seed: int, epoch: int, retired: Collection[int]
) -> list[int]:
    unique = [one for one in dict.fromkeys(chosen) if one not in retired]
    generator = torch.Generator("cpu").manual_seed(stream_seed(seed, _ORDER, epoch, count))
    taken = {*unique, *retired}
    others = [one for one in torch.randperm(count, generator=generator).tolist() if one not in taken]
    return unique + others[: len(chosen) - len(unique)]


def training_noise_seed(seed: int, epoch: int, group: int, item: int, time: int, shared: bool) -> int:
    """Return the seed of the noise of one training term.

    Args:
        shared: all items of the group get the same noise at a time, so that what it adds to all of them cancels.
    """
    return stream_seed(seed, _NOISE, epoch, group, -1 if shared else item, time)


def step_noise_seed(seed: int, step: int) -> int:
    """Return the seed of the noise of one step of a picture's rollout.

    Args:
        seed: the picture's own seed.
    """
    return stream_seed(seed, _STEP, step)


def times_seed(seed: int, epoch: int, group: int, item: int, shared: bool) -> int:
    """Return the seed of the noise levels of one sample; `shared` as in `training_noise_seed`."""
    return stream_seed(seed, _TIMES, epoch, group, -1 if shared else item)


def published_order(
    prompts: Sequence[str], banned: Collection[str], batch: int, k: int, world: int, seed: int, epoch: int
) -> Tensor:
    """Return the published order of one sampling batch: indices (world, batch).

    Args:
        prompts: prompt of every sample.
        banned: prompts that are left out.
        batch: samples per process.
        k: samples per prompt.
        world: number of processes.
        seed, epoch: the generator is seeded with their sum; `epoch` is the sampler's, counted over batches.

    Raises:
        UniWorldError: the number of samples of a batch is not a multiple of k, or there are fewer prompts than groups.
    """
    total = world * batch
    if total % k:
        raise UniWorldError(f"{total} samples are not a multiple of k = {k}: choose another batch size.")
    groups = total // k
    valid = [index for index, prompt in enumerate(prompts) if prompt not in set(banned)]
    check_groups(len(valid), groups)
    generator = torch.Generator("cpu").manual_seed(seed + epoch)
    chosen = torch.tensor(valid)[torch.randperm(len(valid), generator=generator)[:groups]]
    repeated = chosen.repeat_interleave(k)
    return repeated[torch.randperm(total, generator=generator)].reshape(world, batch)
