"""The arithmetic of a training pass: autocast, and the attention that is fast in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def autocast(device: torch.device | str, dtype: torch.dtype) -> Iterator[None]:
    """Autocast to `dtype`; nothing for float32.

    On a CPU attention is taken apart into plain matrix products: the backward pass of torch's fused one in bfloat16 takes
    several times as long there.
    """
    kind = torch.device(device).type
    fused = torch.backends.cuda.flash_sdp_enabled()
    lower = dtype != torch.float32
    if kind == "cpu" and lower:
        torch.backends.cuda.enable_flash_sdp(False)
    try:
        with torch.autocast(kind, dtype, enabled=lower):
            yield
    finally:
        torch.backends.cuda.enable_flash_sdp(fused)
