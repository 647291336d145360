"""Linear layers that add low-rank products to their outputs while a network runs. No weight is ever changed.

One mechanism therefore serves floats, 8-bit, NF4 and mapped weights, and blocks that are streamed from system RAM or disk;
without a LoRA the network is what it was, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn import functional as F

# A (r, I) and B (O, r) with the strength in it, of one LoRA.
LowRank: TypeAlias = "tuple[torch.Tensor, torch.Tensor]"


@dataclass(frozen=True, eq=False)
class ScaledProduct:
    """The low-rank product of one layer as stored.

    Attributes:
        down, up: A (r, I) and B (O, r), in the dtype of the file.
        scale: the factor with which it was trained.
    """

    down: torch.Tensor
    up: torch.Tensor
    scale: float

    def at(self, strength: float, device: torch.device, dtype: torch.dtype) -> LowRank:
        """Return A and B on a device, with scale and strength in B. Each is rounded to `dtype` once."""
        up = self.up.to(device, torch.float32) * (self.scale * strength)
        return self.down.to(device, dtype), up.to(dtype)


class _WithLowRank(nn.Module):
    """Put before the class of a linear layer, it adds low-rank products to its output."""

    low_rank: tuple[LowRank, ...]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        output = super().forward(input)  # type: ignore[misc]  # of the layer's own class
        for down, up in self.low_rank:
            output = output + F.linear(F.linear(input, down.to(input.dtype)), up.to(input.dtype))
        return output


@cache
def _adapted(kind: type[Any]) -> type[Any]:
    """Return the subclass of a linear layer's class that adds low-rank products."""
    return type(f"{kind.__name__}WithLowRank", (_WithLowRank, kind), {})


@contextmanager
def adapted(layers: Sequence[tuple[nn.Module, LowRank]]) -> Iterator[None]:
    """Within it, layers add low-rank products to their outputs, in addition to those of an enclosing block.

    Args:
        layers: linear layers with A and B, on the device on which they run.
    """
    before: list[tuple[nn.Module, type[nn.Module], tuple[LowRank, ...]]] = []
    try:
        for layer, product in layers:
            # An instance's own `forward`, as hooks set it, would take the place of the class's without notice.
            assert "forward" not in vars(layer), "a hook on the layer itself"
            earlier = vars(layer).get("low_rank", ())
            before.append((layer, type(layer), earlier))
            if not earlier:
                kind: Any = type(layer)
                layer.__class__ = _adapted(kind)
            layer.low_rank = (*earlier, product)  # type: ignore[assignment]
        yield
    finally:
        for layer, kind, earlier in reversed(before):
            layer.__class__ = kind
            if earlier:
                layer.low_rank = earlier  # type: ignore[assignment]
            else:
                vars(layer).pop("low_rank", None)


def place_on(
    network: nn.Module,
    products: Mapping[str, ScaledProduct],
    strength: float,
    device: torch.device,
    dtype: torch.dtype,
) -> list[tuple[nn.Module, LowRank]]:
    """Return the layers of a network with their products at a strength, on a device.

    Args:
        products: {layer: product}.
        strength: 1 as trained.
        dtype: the compute dtype.
    """
    return [(network.get_submodule(name), product.at(strength, device, dtype)) for name, product in products.items()]
