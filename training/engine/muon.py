"""Muon for matrices and AdamW for all else, as one optimizer."""

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
    """PyTorch's Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) over matrices, AdamW over the rest.

    Muon's steps are scaled to the size of AdamW's (arXiv 2502.16982, section 2.2), so that one learning rate can serve both.
    Its Newton-Schulz iteration runs in bfloat16, as PyTorch has it, or in float32 on a CPU without instructions for
    bfloat16, where it would take 20 to 40 times as long.

    Args:
        matrices: of two dimensions.
        others: of any.
        lr: of the others.
        matrix_lr: of the matrices; None is `lr`.
        betas, eps: AdamW's.
        weight_decay: of both.

    Raises:
        UniWorldError: this PyTorch has no Muon.
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
                    f"Muon needs PyTorch 2.9 or later and this is {torch.__version__}: take AdamW, or update."
                )
            rate = lr if matrix_lr is None else matrix_lr
            self.parts.append(
                torch.optim.Muon(matrices, rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
            )
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """One step of both. Raises TypeError if a closure is given."""
        if closure is not None:
            raise TypeError("Muon takes no closure.")
        for part in self.parts:
            with _InFloat32() if _is_slow(part) else contextlib.nullcontext():
                part.step()

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        """Let the parts see what this holds: groups, whose rates are set from outside, and what is kept by parameter."""
        for part, group in zip(self.parts, self.param_groups, strict=True):
            part.param_groups = [group]
            part.state = self.state


class _InFloat32(TorchFunctionMode):
    """Makes copies in float32 where bfloat16 ones are asked for: PyTorch's Muon has no setting for its iteration's dtype."""

    def __torch_function__(self, function: Any, types: object, args: Any = (), kwargs: Any = None) -> object:
        if function is Tensor.bfloat16:
            return args[0].to(torch.float32, copy=True)
        return function(*args, **(kwargs or {}))


def _is_slow(part: Optimizer) -> bool:
    """Whether the part is Muon, on a CPU without instructions for bfloat16."""
    if isinstance(part, torch.optim.AdamW):
        return False
    return choose_dtype(None, part.param_groups[0]["params"][0].device) == torch.float32
