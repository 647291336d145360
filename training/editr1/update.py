"""The gradient of an epoch: passes over pictures at their noise levels, each with up to three policies.

These are the valid pictures, which the loss trains on, and all pictures of prompts to preserve.
"""

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
        weights: weight of each in the sum that is the policy loss; 0 for pictures that are only preserved, and in passes that
            only keep processes in step.
        kl_weights: weight of each one's KL in the loss.
    """

    rollout: Rollout
    items: tuple[int, ...]
    levels: tuple[int, ...]
    seeds: tuple[int, ...]
    r: tuple[float, ...]
    weights: tuple[float, ...]
    kl_weights: tuple[float, ...]


def plan_passes(rollouts: Sequence[Rollout], found: Advantages, config: EditR1Config, epoch: int) -> list[TrainingPass]:
    """Plan this process's passes. The weights are those of a sum over all processes, before `mean` is applied."""
    settings, seed, micro = config.editr1, config.run.seed, config.run.micro_batch_size
    r_of = optimality(torch.from_numpy(found.values), config.loss).tolist()
    passes = []
    for rollout in rollouts:
        number, first = rollout.group.number, rollout.group.number * settings.group_size
        hold = config.preserve.weight if rollout.prompt.preserve and config.preserve.acts_in(epoch) else 0.0
        valid = [bool(found.valid[first + item]) for item in range(len(rollout.latents))]
        used = [item for item, trained in enumerate(valid) if trained or hold]
        times = {
            item: draw_times(settings.steps, settings.times, times_seed(seed, epoch, number, item, settings.shared))
            for item in used
        }
        for turn in range(settings.times):
            for start in range(0, len(used), micro):
                items = tuple(used[start : start + micro])
                levels = tuple(times[item][turn] for item in items)
                seeds = tuple(
                    training_noise_seed(seed, epoch, number, item, level, settings.shared)
                    for item, level in zip(items, levels)
                )
                r = tuple(r_of[first + item] if valid[item] else 0.5 for item in items)
                weights = tuple(float(valid[item]) for item in items)
                kl_weights = tuple(config.loss.kl * weight + hold for weight in weights)
                passes.append(TrainingPass(rollout, items, levels, seeds, r, weights, kl_weights))
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
        That loss, without KL, and the mean KL of the pictures with a weight of it, which is None if there are none.
    """
    passes = plan_passes(rollouts, found, config, epoch)
    counts, with_kl = world.gather(
        [len(passes), sum(weight > 0 for one in passes for weight in one.kl_weights)]
    ).unbind(1)
    total = float(counts.sum()) if config.editr1.mean == "published" else float(found.valid.sum()) * config.editr1.times
    # DDP and FSDP2 need the same passes in every process, each with the same policies.
    idle = [_idle_pass(rollouts[0])] * (int(counts.max()) - len(passes))
    all_with_kl = world.size > 1 and bool(with_kl.sum() > 0)
    sums = [0.0, 0.0]
    for number, one in enumerate([*passes, *idle]):
        last = number == len(passes) + len(idle) - 1
        share = len(one.items) if config.editr1.mean == "published" else 1
        with nullcontext() if last else without_sync(policy.wrapped):
            loss, kl = _pass(policy, one, share * total, sigmas, config, world, dtype, all_with_kl)
        sums[0] += loss
        sums[1] += kl
    loss, kl = world.gather(sums).sum(dim=0).tolist()
    if config.editr1.mean != "published":
        kl *= total / max(1.0, float(with_kl.sum()))
    return loss, kl if with_kl.sum() > 0 else None


def _pass(
    policy: Policy,
    one: TrainingPass,
    total: float,
    sigmas: Tensor,
    config: EditR1Config,
    world: World,
    dtype: torch.dtype,
    with_kl: bool,
) -> tuple[float, float]:
    """Run forward and backward on one pass. Return its parts of the loss and of the KL, which are sums divided by `total`."""
    device, guidance = world.device, config.editr1.guidance
    with_kl = with_kl or any(one.kl_weights)
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
        if with_kl:
            with policy.as_reference():
                v_reference = policy.wrapped(*arguments)
    with autocast(device, dtype):
        v = policy.wrapped(*arguments)
    # The old policy becomes theta after each epoch if it is on policy, and theta has not moved since.
    v_old = v.detach() if v_old is None else v_old
    r_B = torch.tensor(one.r, dtype=torch.float64, device=device)
    terms = loss_terms(v, v_old, v.detach() if v_reference is None else v_reference, x0, xt, sigma_B, r_B, config.loss)
    weights_B, kl_weights_B = (
        torch.tensor(values, dtype=torch.float64, device=device) / total for values in (one.weights, one.kl_weights)
    )
    policy_loss = (terms.policy * weights_B).sum()
    loss = policy_loss + (terms.kl * kl_weights_B).sum() if with_kl else policy_loss
    # DDP and FSDP2 average gradients over processes; the factor turns that into a sum.
    (loss * world.size).backward()
    return float(policy_loss.detach()), float((terms.kl.detach() * (kl_weights_B > 0)).sum() / total)


def _noise(seed: int, shape: Sequence[int]) -> Tensor:
    return torch.randn(tuple(shape), generator=torch.Generator("cpu").manual_seed(seed))


def _idle_pass(rollout: Rollout) -> TrainingPass:
    return TrainingPass(rollout, (0,), (0,), (0,), (0.5,), (0.0,), (0.0,))
