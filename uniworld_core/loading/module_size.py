"""The size of a module, in a file of its own because it is used where torch must not be imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def module_bytes(module: torch.nn.Module) -> int:
    """Return the size of a module's parameters and buffers in bytes."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
