"""The gradient of an epoch: passes over the valid pictures at their noise levels, each with up to three policies."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from ...uniworld_core.sampling import flow
from ..config.editr1 import EditR1Config
from ..engine.parallel import World, without_sync
from ..engine.precision import autocast
from .advantage import Advantages
from .groups import times_seed, training_noise_seed
from .loss import loss_terms, optimality
from .policy import Policy
from .rollout import Rollout
from .times import draw_times


@dataclass(frozen=True)
class TrainingPass:
    """Some pictures of one group, each at its noise level of this turn.

    Attributes:
        rollout: the group.
        items: indices of the pictures in the group.
        levels: index in the schedule of each.
        seeds: seed of the noise of each.
        r: `optimality` of each.
        weights: weight of each in the sum that is the loss; 0 in passes that only keep processes in step.
    """

    rollout: Rollout
    items: tuple[int, ...]
    levels: tuple[int, ...]
    seeds: tuple[int, ...]
    r: tuple[float, ...]
    weights: tuple[float, ...]


def plan_passes(rollouts: Sequence[Rollout], found: Advantages, config: EditR1Config, epoch: int) -> list[TrainingPass]:
    """Plan this process's passes. The weights are those of a sum over all processes, before `mean` is applied."""
    settings, seed, micro = config.editr1, config.run.seed, config.run.micro_batch_size
    r_of = optimality(torch.from_numpy(found.values), config.loss).tolist()
    passes = []
    for rollout in rollouts:
        number, first = rollout.group.number, rollout.group.number * settings.group_size
        valid = [item for item in range(len(rollout.latents)) if found.valid[first + item]]
        times = {
            item: draw_times(settings.steps, settings.times, times_seed(seed, epoch, number, item, settings.shared))
            for item in valid
        }
        for turn in range(settings.times):
            for start in range(0, len(valid), micro):
                items = tuple(valid[start : start + micro])
                levels = tuple(times[item][turn] for item in items)
                seeds = tuple(
                    training_noise_seed(seed, epoch, number, item, level, settings.shared)
                    for item, level in zip(items, levels)
                )
                r = tuple(r_of[first + item] for item in items)
                passes.append(TrainingPass(rollout, items, levels, seeds, r, (1.0,) * len(items)))
    return passes


def backward(
    policy: Policy,
    rollouts: Sequence[Rollout],
    found: Advantages,
    sigmas: Tensor,
    config: EditR1Config,
    world: World,
    epoch: int,
    dtype: torch.dtype,
) -> tuple[float, float | None]:
    """Accumulate the gradient of the epoch's mean loss. Collective.

    Returns:
        That loss, without KL, and the mean KL, which is None if it has no weight and is not computed.
    """
    passes = plan_passes(rollouts, found, config, epoch)
    counts = world.gather([len(passes)])
    total = float(counts.sum()) if config.editr1.mean == "published" else float(found.valid.sum()) * config.editr1.times
    # DDP and FSDP2 need the same passes in every process.
    idle = [_idle_pass(rollouts[0])] * (int(counts.max()) - len(passes))
    sums = [0.0, 0.0]
    for number, one in enumerate([*passes, *idle]):
        last = number == len(passes) + len(idle) - 1
        share = len(one.items) if config.editr1.mean == "published" else 1
        weights = torch.tensor(one.weights, dtype=torch.float64, device=world.device) / (share * total)
        with nullcontext() if last else without_sync(policy.wrapped):
            loss, kl = _pass(policy, one, weights, sigmas, config, world, dtype)
        sums[0] += loss
        sums[1] += kl
    loss, kl = world.gather(sums).sum(dim=0).tolist()
    return loss, kl if config.loss.kl else None


def _pass(
    policy: Policy,
    one: TrainingPass,
    weights_B: Tensor,
    sigmas: Tensor,
    config: EditR1Config,
    world: World,
    dtype: torch.dtype,
) -> tuple[float, float]:
    """Run forward and backward on one pass. Return its parts of the loss and of the KL."""
    device, guidance, settings = world.device, config.editr1.guidance, config.loss
    x0 = one.rollout.latents[list(one.items)]
    noise = torch.stack([_noise(seed, x0.shape[1:]) for seed in one.seeds])
    sigma_B = sigmas[list(one.levels)]
    xt = flow.add_noise(x0, noise, sigma_B.reshape(-1, *(1,) * (x0.ndim - 1)))
    x0, xt, sigma_B = (tensor.to(device) for tensor in (x0, xt, sigma_B))
    arguments = (xt, sigma_B, one.rollout.condition, guidance)
    on_policy = config.editr1.old == "on_policy"
    with torch.no_grad(), autocast(device, dtype):
        v_old = v_reference = None
        if not on_policy:
            with policy.as_old():
                v_old = policy.wrapped(*arguments)
        if settings.kl:
            with policy.as_reference():
                v_reference = policy.wrapped(*arguments)
    with autocast(device, dtype):
        v = policy.wrapped(*arguments)
    # The old policy becomes theta after each epoch if it is on policy, and theta has not moved since.
    v_old = v.detach() if v_old is None else v_old
    r_B = torch.tensor(one.r, dtype=torch.float64, device=device)
    terms = loss_terms(v, v_old, v.detach() if v_reference is None else v_reference, x0, xt, sigma_B, r_B, settings)
    # DDP and FSDP2 average gradients over processes; the factor turns that into a sum.
    ((terms.total(settings.kl) * weights_B).sum() * world.size).backward()
    return float((terms.policy.detach() * weights_B).sum()), float((terms.kl.detach() * weights_B).sum())


def _noise(seed: int, shape: Sequence[int]) -> Tensor:
    return torch.randn(tuple(shape), generator=torch.Generator("cpu").manual_seed(seed))


def _idle_pass(rollout: Rollout) -> TrainingPass:
    return TrainingPass(rollout, (0,), (0,), (0,), (0.5,), (0.0,))
