"""How a part's weights are held in memory, apart from the dtype and the device that it computes in.

A storage decides what becomes of each tensor of the files: floats of one dtype today (`FloatStorage`). Others replace
layers before the weights are placed (`prepare`) and place what these hold (`put`): a float8 weight that is cast when
used, an int8 one with a scale per row, a packed 4-bit one, or the mapped tensor of the file itself. The networks' code
is the same for all of them, since a `ComputeModule` says what to compute in and where, and never its parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from .dtypes import choose_dtype
from .weights import place


class ComputeModule(nn.Module):
    """A module that knows the dtype and the device that it computes in, whatever its weights are held in.

    Both follow `to`, `float`, `cuda` and the like, as the weights do; `set_compute` sets them where only a part of the
    weights is moved, or where these have another dtype than the arithmetic.
    """

    def __init__(self) -> None:
        super().__init__()
        # Not a buffer, which DDP would broadcast at every step. Not of `torch.empty`, which `build` sends to "meta".
        self._compute = torch.zeros(0)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its arithmetic, and of the floats that it takes."""
        return self._compute.dtype

    @property
    def device(self) -> torch.device:
        """Where it computes, and what it takes is to be."""
        return self._compute.device

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        self._compute = fn(self._compute)
        return super()._apply(fn, recurse)


def set_compute(module: nn.Module, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> None:
    """Set the dtype and the device that `module`, and every module in it, computes in; None keeps the one it has."""
    for part in module.modules():
        if isinstance(part, ComputeModule):
            part._compute = torch.zeros(0, dtype=dtype or part.dtype, device=device or part.device)


@runtime_checkable
class Storage(Protocol):
    """How the weights of one part are held."""

    @property
    def compute(self) -> torch.dtype:
        """The dtype of the part's arithmetic."""

    def prepare(self, network: nn.Module, plain: tuple[str, ...]) -> None:
        """Replace the layers that hold something else than plain floats, before any weight is placed.

        Args:
            network: its parameters are on the meta device.
            plain: ends of names of layers that must hold plain floats, since the network's own code reads their dtype.
        """

    def put(self, network: nn.Module, name: str, tensor: torch.Tensor, device: torch.device | str) -> None:
        """Place a tensor of the files.

        Args:
            name: where it belongs in the network.
            tensor: as in the file, and possibly mapped: a copy must be made of what is to be changed or outlive the file.
        """


@dataclass(frozen=True)
class FloatStorage:
    """Floats of one dtype, which the part also computes in; whole numbers keep their own.

    Attributes:
        compute: the dtype.
    """

    compute: torch.dtype

    def prepare(self, network: nn.Module, plain: tuple[str, ...]) -> None:
        """Nothing: every layer stays as it is."""

    def put(self, network: nn.Module, name: str, tensor: torch.Tensor, device: torch.device | str) -> None:
        """Place a copy, in one step of conversion and transfer; even what needs neither, so that the file can go."""
        dtype = self.compute if tensor.is_floating_point() else tensor.dtype
        place(network, name, tensor.to(device=device, dtype=dtype, copy=True))


def choose_storage(chosen: torch.dtype | Storage | None, device: torch.device | str) -> Storage:
    """The storage that is meant: itself, or plain floats of a dtype; None takes the dtype of `choose_dtype`.

    Raises:
        UniWorldError: the device cannot be used here, or the dtype cannot hold a model.
    """
    if isinstance(chosen, Storage):
        choose_dtype(chosen.compute, device)
        return chosen
    return FloatStorage(choose_dtype(chosen, device))
