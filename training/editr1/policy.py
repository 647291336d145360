"""The policies of a run as states of one model: theta trains, old paints the rollouts, reference holds theta back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


@torch.no_grad()
def blend(old: Mapping[str, Tensor], theta: Mapping[str, Tensor], decay: float) -> None:
    """Update the old policy in place: old = decay * old + (1 - decay) * theta."""
    for name, tensor in old.items():
        tensor.mul_(decay).add_(theta[name].detach().to(tensor), alpha=1.0 - decay)
