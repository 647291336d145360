"""Layers whose weights are held in another form than the arithmetic's, and cast when they are used.

Each takes the place of a layer in a built network by a change of its class, so that names, hooks and the network's own
code stay as they are. Their `forward` is plain tensor code that torch.compile traces without a graph break.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .quantized import NF4Tensor, ScaledTensor, dequantize_nf4


class CastLinear(nn.Linear):
    """A linear layer whose weight takes the dtype of its input when it is used."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.linear(input, self.weight.to(input.dtype), self.bias)


class ScaledLinear(nn.Linear):
    """A linear layer whose weight is 8-bit numbers with a scale.

    The weight is scaled and not the output: sums of up to 127 times a weight overflow float16.
    """

    weight_scale: torch.Tensor

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        # The product is computed in float32, the scale's dtype, and rounded once.
        weight = self.weight.to(input.dtype).mul_(self.weight_scale)
        return F.linear(input, weight, self.bias)


class NF4Linear(nn.Linear):
    """A linear layer whose weight is packed as bitsandbytes packs NF4."""

    weight_absmax: torch.Tensor
    weight_block: int

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        shape = torch.Size((self.out_features, self.in_features))
        weight = dequantize_nf4(self.weight, self.weight_absmax, self.weight_block, shape, input.dtype)
        return F.linear(input, weight, self.bias)


class CastEmbedding(nn.Embedding):
    """A table of rows that are looked up where the table is, and then cast and moved to the ids' device.

    Attributes:
        row_dtype: what they are cast to.
    """

    row_dtype: torch.dtype

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        rows = super().forward(input.to(self.weight.device))
        return rows.to(device=input.device, dtype=self.row_dtype)


def hold_linear(layer: nn.Linear, weight: torch.Tensor | ScaledTensor | NF4Tensor, compute: torch.dtype) -> None:
    """Give a plain linear layer its weight, and the class that computes with it in `compute`."""
    if isinstance(weight, NF4Tensor):
        layer.__class__ = NF4Linear
        layer.register_buffer("weight_absmax", weight.absmax, persistent=False)
        layer.weight_block = weight.block  # type: ignore[assignment]
        values = weight.packed
    elif isinstance(weight, ScaledTensor) and weight.scale is not None:
        layer.__class__ = ScaledLinear
        layer.register_buffer("weight_scale", weight.scale, persistent=False)
        values = weight.values
    else:
        values = weight.values if isinstance(weight, ScaledTensor) else weight
        if values.dtype != compute:
            layer.__class__ = CastLinear
    layer.weight = nn.Parameter(values, requires_grad=False)


def hold_embedding(layer: nn.Embedding, table: torch.Tensor, compute: torch.dtype) -> None:
    """Give a plain embedding its table, and the class that gives rows in `compute`."""
    if table.dtype != compute:
        layer.__class__ = CastEmbedding
        layer.row_dtype = compute  # type: ignore[assignment]
    layer.weight = nn.Parameter(table, requires_grad=False)
