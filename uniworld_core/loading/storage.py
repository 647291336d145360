"""How the weights of a part are stored in memory, independently of its compute dtype and device.

A storage places each tensor of the files in a built network: as floats of one dtype (`FloatStorage`), or in the form of a
`storage` setting (`NamedStorage`), such as 8 bits, 4 bits, or the mapped file itself. Networks work with every storage,
because they read compute dtype and device from a `ComputeModule`, never from their parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from ..errors import UniWorldError, shown
from .dtypes import choose_dtype, usable_device
from .layers import set_embedding_table, set_linear_weight
from .meta import place
from .options import STORAGES
from .quantized import (
    FP8,
    NF4Tensor,
    ScaledTensor,
    StoredTensor,
    as_floats,
    bitsandbytes,
    quantize_fp8,
    quantize_int8,
    quantize_nf4,
)


class ComputeModule(nn.Module):
    """A module with a compute dtype and device of its own, independent of how its weights are stored.

    Like weights, both follow `to`, `float`, `cuda` and similar methods. `set_compute` sets them if the weights have another
    dtype, or only some of them are moved.
    """

    def __init__(self) -> None:
        super().__init__()
        self.streamed = False  # whether its networks get their blocks from elsewhere as they run
        # Not a buffer, because DDP would broadcast it at every step. Not `torch.empty`, which `build` redirects to "meta".
        self._compute = torch.zeros(0)

    @property
    def dtype(self) -> torch.dtype:
        """The compute dtype, and dtype of float inputs."""
        return self._compute.dtype

    @property
    def device(self) -> torch.device:
        """The compute device, and device of inputs."""
        return self._compute.device

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The networks within it whose blocks can be streamed: those that its own code calls."""
        return ()

    @property
    def working_bytes(self) -> int:
        """Bytes that it typically needs to compute, in addition to its weights, if the caller announces nothing else."""
        return 0

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        self._compute = fn(self._compute)
        return super()._apply(fn, recurse)


def set_compute(module: nn.Module, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> None:
    """Set the compute dtype and device of a module and all modules in it; None keeps the current value."""
    for part in module.modules():
        if isinstance(part, ComputeModule):
            part._compute = torch.zeros(0, dtype=dtype or part.dtype, device=device or part.device)


# Bytes from which on a part on a CPU is mapped. Smaller ones are copied, which lets their files change while they run.
MAPPED_BYTES = 2**28


class Precision(Enum):
    """The precision that the weights of a layer need in memory."""

    # Any form, 4 bits included.
    ANY = "any"
    # Floats of 16 bits or more: the layer is sensitive, or too small for quantization to save memory.
    FLOAT = "float"
    # The compute dtype, because the network's own code reads the dtype from the weight.
    COMPUTE = "compute"


@runtime_checkable
class Storage(Protocol):
    """How the weights of one part are stored in memory."""

    @property
    def compute(self) -> torch.dtype:
        """The compute dtype of the part."""

    def for_part(self, file_bytes: int, device: torch.device | str) -> Storage:
        """Return the storage for a part whose weights take `file_bytes` in the files, on that device."""

    def put(
        self, network: nn.Module, name: str, tensor: StoredTensor, device: torch.device | str, precision: Precision
    ) -> None:
        """Place a tensor of the files.

        Args:
            network: its parameters are on the meta device until they are placed.
            name: name of the tensor in the network.
            tensor: as in the file, and possibly mapped. Copy it before you change it or close the file.
            precision: the precision that the tensor needs.
        """


@dataclass(frozen=True)
class FloatStorage:
    """Floats of one dtype, which is also the compute dtype. Integers keep theirs, and quantized weights are dequantized.

    Attributes:
        compute: the dtype.
    """

    compute: torch.dtype

    def for_part(self, file_bytes: int, device: torch.device | str) -> FloatStorage:
        """Return this storage (`Storage.for_part`)."""
        return self

    def put(
        self, network: nn.Module, name: str, tensor: StoredTensor, device: torch.device | str, precision: Precision
    ) -> None:
        """Place a copy, converted and transferred in one step. It does not refer to the file (`Storage.put`)."""
        floats = as_floats(tensor, self.compute, device)
        place(network, name, floats.clone() if floats is tensor else floats)


@dataclass(frozen=True)
class NamedStorage:
    """A `storage` setting. Linear layers store their weights in its form, and cast or dequantize them at each use.

    Attributes:
        name: one of `STORAGES`. `auto` keeps quantized weights as stored in the files, and converts floats to the
            compute dtype. `bfloat16` dequantizes. The others quantize all weights that are not in their form yet.
        compute: the compute dtype.
        mapped: whether weights on a CPU refer to the mapped files if they need no conversion; 16-bit floats are then cast
            at each use. The system can reclaim their memory at any time, but the files must not change.
    """

    name: str
    compute: torch.dtype
    mapped: bool = False

    def for_part(self, file_bytes: int, device: torch.device | str) -> NamedStorage:
        """Return this storage, with `mapped` set for large parts on a CPU (`Storage.for_part`)."""
        mapped = torch.device(device).type == "cpu" and file_bytes >= MAPPED_BYTES
        return replace(self, mapped=mapped)

    def put(
        self, network: nn.Module, name: str, tensor: StoredTensor, device: torch.device | str, precision: Precision
    ) -> None:
        """Place a tensor in the form of the setting (`Storage.put`)."""
        mapped: StoredTensor | None = None  # refers to the file, so a copy of it is placed
        if not self.mapped and torch.device(device).type == "cpu":
            if isinstance(tensor, torch.Tensor):
                mapped = (
                    tensor  # not copied yet: converting most tensors makes a copy anyway, and two would raise the peak
                )
            else:
                tensor = tensor.clone()

        def own(weights: torch.Tensor) -> torch.Tensor:
            return weights.clone() if weights is mapped else weights

        path, _, leaf = name.rpartition(".")
        layer = network.get_submodule(path)
        typed = leaf == "weight" and precision is not Precision.COMPUTE
        # Not subclasses, such as the layer in nn.MultiheadAttention: its owner reads the weight directly.
        if typed and type(layer) is nn.Linear:
            weights = self._linear(tensor, device, precision)
            set_linear_weight(layer, own(weights) if isinstance(weights, torch.Tensor) else weights, self.compute)
        elif typed and type(layer) is nn.Embedding:
            set_embedding_table(layer, own(self._floats(tensor, device)), self.compute)
        else:
            place(network, name, own(as_floats(tensor, self.compute, device)))

    def _linear(self, tensor: StoredTensor, device: torch.device | str, precision: Precision) -> StoredTensor:
        if self.name == "auto" and not isinstance(tensor, torch.Tensor):
            return tensor.to(device)
        if precision is Precision.FLOAT or self.name in ("auto", "bfloat16"):
            return self._floats(tensor, device)
        if self.name == "nf4":
            return (
                tensor.to(device)
                if isinstance(tensor, NF4Tensor)
                else quantize_nf4(as_floats(tensor, torch.float32, device))
            )
        eight = torch.int8 if self.name == "int8" else FP8
        if isinstance(tensor, ScaledTensor) and tensor.values.dtype == eight:
            return tensor.to(device)
        quantize = quantize_int8 if self.name == "int8" else quantize_fp8
        return quantize(as_floats(tensor, torch.float32, device))

    def _floats(self, tensor: StoredTensor, device: torch.device | str) -> torch.Tensor:
        """Convert to floats: 16-bit ones if the storage allows them and the compute dtype is wider, else the compute dtype."""
        dtype = self.compute
        if dtype.itemsize > 2:
            if self.name == "bfloat16":
                dtype = torch.bfloat16
            elif self.mapped and isinstance(tensor, torch.Tensor) and tensor.itemsize == 2:
                dtype = tensor.dtype
        return as_floats(tensor, dtype, device)


def named_storage(name: str, dtype: torch.dtype | None, device: torch.device | str) -> NamedStorage:
    """Return the storage of a `storage` setting.

    Args:
        name: one of `STORAGES`.
        dtype: the compute dtype; None for the default of `choose_dtype`.

    Raises:
        UniWorldError: the name is unknown, the dtype is not usable on the device, or the device or an installed library does
            not support this storage.
    """
    if name not in STORAGES:
        raise UniWorldError(f"storage is {shown(name)}; it must be one of {', '.join(STORAGES)}.")
    compute = choose_dtype(dtype, device)
    if name == "nf4":
        bitsandbytes()
    if name in ("fp8", "nf4") and (kind := usable_device(device).type) not in ("cpu", "cuda", "xpu"):
        raise UniWorldError(f"storage {name!r} does not work on {kind!r} devices: choose int8 or bfloat16.")
    return NamedStorage(name, compute)


def choose_storage(chosen: torch.dtype | Storage | None, device: torch.device | str) -> Storage:
    """Return a storage itself, or a `FloatStorage` of a dtype; None stands for the default of `choose_dtype`.

    Raises:
        UniWorldError: the device or dtype is not usable.
    """
    if isinstance(chosen, Storage):
        choose_dtype(chosen.compute, device)
        return chosen
    return FloatStorage(choose_dtype(chosen, device))
