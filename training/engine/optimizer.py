"""Optimizers and their learning rate, and the gradient's norm over every process."""

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
    """The optimizer of the settings over float32 parameters, which may be FSDP2's shards (AdamW alone takes those).

    Raises:
        UniWorldError: Prodigy is not installed or PyTorch has no Muon, or the parameters are spread.
    """
    chosen = list(parameters)
    if settings.name == "adamw":
        # One tensor at a time where some are spread and some are not, which the grouped kernels do not take.
        return torch.optim.AdamW(
            chosen, settings.lr, settings.betas, settings.eps, settings.weight_decay, foreach=_foreach(chosen)
        )
    if any(is_sharded(parameter) for parameter in chosen):
        raise UniWorldError(
            f"{settings.name.capitalize()} needs whole tensors in each process and run.parallel is 'fsdp': "
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
    with contextlib.redirect_stdout(io.StringIO()):  # it prints a remark on weight decay
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
    """The learning rate of a step, from its number alone, so that a resumed run needs no schedule's state.

    The factors are those of diffusers' `optimization.py`, which the published trainer uses: a warm-up begins at 0.

    Args:
        step: 0 for the first.
        steps: of the whole run.
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
    """Let the next step use this rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def gradient_norm(parameters: Iterable[nn.Parameter]) -> float:
    """The 2-norm of all gradients together. Of spread ones the squares are added up over the processes: call it on all."""
    whole: list[Tensor] = []
    spread: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is not None:
            (spread if is_sharded(parameter) else whole).append(local(parameter.grad).float().square().sum())
    total = _sum(whole)
    if spread:
        shared = _sum(spread)
        torch.distributed.all_reduce(shared)
        total = total.to(shared) + shared
    return float(total.sqrt())


def scale_gradients(parameters: Iterable[nn.Parameter], factor: float) -> None:
    """Multiply every gradient in place."""
    for parameter in parameters:
        if parameter.grad is not None:
            local(parameter.grad).mul_(factor)


def clip_factor(norm: float, limit: float) -> float:
    """What to multiply gradients of that norm with to bring them within the limit; a limit of 0 leaves them."""
    # The small number is torch.nn.utils.clip_grad_norm_'s, against division by zero.
    return min(1.0, limit / (norm + 1e-6)) if limit else 1.0


def is_sharded(tensor: Tensor) -> bool:
    """Whether the tensor is FSDP2's: each process holds some rows of it."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """The rows of a spread tensor that lie here; any other tensor itself. It shares memory with it."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def _sum(squares: list[Tensor]) -> Tensor:
    return torch.stack([one.double() for one in squares]).sum() if squares else torch.zeros((), dtype=torch.float64)


def _foreach(parameters: list[nn.Parameter]) -> bool | None:
    # None lets AdamW choose.
    return None if len({is_sharded(parameter) for parameter in parameters}) < 2 else False
