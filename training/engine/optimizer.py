"""Optimizers, learning-rate schedules, and gradient clipping over all processes."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...uniworld_core.errors import UniWorldError
from ..config.settings import OptimizerSettings
from .muon import Muon


def make_optimizer(parameters: Iterable[nn.Parameter], settings: OptimizerSettings) -> Optimizer:
    """Return the configured optimizer over float32 parameters. Only AdamW supports parameters sharded by FSDP2.

    Raises:
        UniWorldError: Prodigy is not installed, PyTorch does not have Muon, or the optimizer does not support sharding.
    """
    chosen = list(parameters)
    if settings.name == "adamw":
        # The foreach kernels cannot mix sharded and unsharded tensors.
        return torch.optim.AdamW(
            chosen, settings.lr, settings.betas, settings.eps, settings.weight_decay, foreach=_foreach(chosen)
        )
    if any(is_sharded(parameter) for parameter in chosen):
        raise UniWorldError(
            f"optimizer.name is {settings.name!r}, which does not support the sharded parameters of run.parallel = 'fsdp': "
            "set run.parallel = 'data', or optimizer.name = 'adamw'."
        )
    if settings.name == "muon":
        matrices = [parameter for parameter in chosen if parameter.ndim == 2]
        others = [parameter for parameter in chosen if parameter.ndim != 2]
        return Muon(matrices, others, settings.lr, None, settings.betas, settings.eps, settings.weight_decay)
    try:
        from prodigyopt import Prodigy
    except ImportError as error:
        raise UniWorldError("optimizer.name is 'prodigy', which is not installed: pip install prodigyopt.") from error
    with contextlib.redirect_stdout(io.StringIO()):  # prodigyopt prints a note about weight decay
        return Prodigy(
            chosen,
            lr=settings.lr,
            betas=settings.betas,
            beta3=settings.prodigy_beta3 or None,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            decouple=settings.prodigy_decouple,
            use_bias_correction=settings.prodigy_use_bias_correction,
            safeguard_warmup=settings.prodigy_safeguard_warmup,
            d_coef=settings.prodigy_d_coef,
        )


def learning_rate(settings: OptimizerSettings, step: int, steps: int) -> float:
    """Return the learning rate of a step. It depends only on the step, so resuming needs no scheduler state.

    The factors are those of diffusers' `optimization.py`, which the published trainer uses: warm-up starts at 0.

    Args:
        settings: optimizer and schedule.
        step: the step, counted from 0.
        steps: total steps of the run.
    """
    if settings.schedule == "constant":
        return settings.lr
    if step < settings.warmup:
        return settings.lr * step / settings.warmup
    if settings.schedule == "constant_with_warmup":
        return settings.lr
    done = (step - settings.warmup) / max(1, steps - settings.warmup)
    return settings.lr * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def gradient_norm(parameters: Iterable[nn.Parameter]) -> float:
    """Return the global 2-norm of all gradients. Collective if parameters are sharded: squares are summed over processes."""
    unsharded: list[Tensor] = []
    sharded: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is not None:
            (sharded if is_sharded(parameter) else unsharded).append(local(parameter.grad).float().square().sum())
    total = _sum(unsharded)
    if sharded:
        reduced = _sum(sharded)
        torch.distributed.all_reduce(reduced)
        total = total.to(reduced) + reduced
    return float(total.sqrt())


def take_step(optimizer: Optimizer, norm: float, clip: float, rate: float) -> float:
    """Clip the gradients, take a step, and drop the gradients. Return the learning rate that was used.

    Args:
        norm: `gradient_norm` of all parameters.
        clip: largest norm; 0 disables clipping.
        rate: the learning rate. Prodigy multiplies it by its own estimate.
    """
    scale_gradients((one for group in optimizer.param_groups for one in group["params"]), clip_factor(norm, clip))
    set_learning_rate(optimizer, rate)
    used = rate * optimizer.param_groups[0].get("d", 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return used


def scale_gradients(parameters: Iterable[nn.Parameter], factor: float) -> None:
    """Multiply every gradient in place."""
    for parameter in parameters:
        if parameter.grad is not None:
            local(parameter.grad).mul_(factor)


def clip_factor(norm: float, limit: float) -> float:
    """Return the factor that clips gradients of this norm to the limit; a limit of 0 disables clipping."""
    # Epsilon against division by zero, the same as in torch.nn.utils.clip_grad_norm_.
    return min(1.0, limit / (norm + 1e-6)) if limit else 1.0


def is_sharded(tensor: Tensor) -> bool:
    """Return whether FSDP2 shards the tensor: each process then has some of its rows."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """Return this process's rows of a sharded tensor, or any other tensor itself. The result shares its memory."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def _sum(squares: list[Tensor]) -> Tensor:
    return torch.stack([one.double() for one in squares]).sum() if squares else torch.zeros((), dtype=torch.float64)


def _foreach(parameters: list[nn.Parameter]) -> bool | None:
    # None lets AdamW choose.
    return None if len({is_sharded(parameter) for parameter in parameters}) < 2 else False
