"""Muon for matrices and AdamW for all other parameters, as one optimizer."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from ...uniworld_core.errors import UniWorldError
from ...uniworld_core.loading.dtypes import choose_dtype


class Muon(Optimizer):
    """PyTorch's Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) for matrices, AdamW for the rest.

    Muon's updates are scaled to the RMS of AdamW's (arXiv 2502.16982, section 2.2), so one learning rate fits both. Its
    Newton-Schulz iteration runs in bfloat16, as in PyTorch, or in float32 on CPUs without bfloat16 instructions, where
    bfloat16 takes 20 to 40 times as long.

    Args:
        matrices: two-dimensional parameters.
        others: all other parameters.
        lr: learning rate of `others`.
        matrix_lr: learning rate of `matrices`; None means `lr`.
        betas, eps: AdamW's.
        weight_decay: weight decay of both.

    Raises:
        UniWorldError: this PyTorch does not have Muon.
    """

    def __init__(
        self,
        matrices: Sequence[nn.Parameter],
        others: Sequence[nn.Parameter],
        lr: float,
        matrix_lr: float | None = None,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self.parts: list[Optimizer] = []
        if others:
            self.parts.append(torch.optim.AdamW(others, lr, betas, eps, weight_decay))
        if matrices:
            if not hasattr(torch.optim, "Muon"):
                raise UniWorldError(
                    f"Muon needs PyTorch 2.9 or later, but this is {torch.__version__}: use AdamW, or update PyTorch."
                )
            rate = lr if matrix_lr is None else matrix_lr
            self.parts.append(
                torch.optim.Muon(matrices, rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
            )
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share_state()

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """Perform one step of both optimizers. Raises TypeError if a closure is given."""
        if closure is not None:
            raise TypeError("Muon does not support closures.")
        for part in self.parts:
            with _InFloat32() if _is_slow(part) else contextlib.nullcontext():
                part.step()

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        super().load_state_dict(state_dict)
        self._share_state()

    def _share_state(self) -> None:
        """Let both optimizers share this one's parameter groups, whose rates the caller sets, and its state."""
        for part, group in zip(self.parts, self.param_groups, strict=True):
            part.param_groups = [group]
            part.state = self.state


class _InFloat32(TorchFunctionMode):
    """Replaces `Tensor.bfloat16` by a float32 copy: PyTorch's Muon has no setting for its iteration's dtype."""

    def __torch_function__(self, function: Any, types: object, args: Any = (), kwargs: Any = None) -> object:
        if function is Tensor.bfloat16:
            return args[0].to(torch.float32, copy=True)
        return function(*args, **(kwargs or {}))


def _is_slow(part: Optimizer) -> bool:
    """Return whether the optimizer is Muon on a CPU without bfloat16 instructions."""
    if isinstance(part, torch.optim.AdamW):
        return False
    return choose_dtype(None, part.param_groups[0]["params"][0].device) == torch.float32
