"""Layers whose weights are stored in another form than the compute dtype, and cast or dequantized at each use.

They replace layers of a built network by assigning to `__class__`, so names, hooks and the network's own code do not change.
Their `forward` is plain tensor code that torch.compile traces without a graph break. It moves what is on another device, as
ComfyUI leaves layers that do not fit a GPU: first as stored, which is the smaller form, then it casts.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .quantized import NF4Tensor, ScaledTensor, dequantize_nf4


class CastLinear(nn.Linear):
    """A linear layer that casts its weight to the dtype of the input."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.linear(input, self.weight.to(input.device).to(input.dtype), _beside(self.bias, input))


class ScaledLinear(nn.Linear):
    """A linear layer with an 8-bit weight and a scale.

    The scale is applied to the weight, not to the output, because sums of unscaled values (up to 127) overflow float16.
    """

    weight_scale: torch.Tensor

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        # The product is computed in float32, the scale's dtype, and rounded once.
        weight = self.weight.to(input.device).to(input.dtype).mul_(self.weight_scale.to(input.device))
        return F.linear(input, weight, _beside(self.bias, input))


class NF4Linear(nn.Linear):
    """A linear layer whose weight is NF4 in bitsandbytes' layout."""

    weight_absmax: torch.Tensor
    weight_block: int

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        shape = torch.Size((self.out_features, self.in_features))
        packed, absmax = self.weight.to(input.device), self.weight_absmax.to(input.device)
        weight = dequantize_nf4(packed, absmax, self.weight_block, shape, input.dtype)
        return F.linear(input, weight, _beside(self.bias, input))


def _beside(bias: torch.Tensor | None, input: torch.Tensor) -> torch.Tensor | None:
    return None if bias is None else bias.to(input.device)


class CastEmbedding(nn.Embedding):
    """An embedding that looks up rows on the device of its table, then casts them and moves them to the device of the ids.

    Attributes:
        row_dtype: dtype of the returned rows.
    """

    row_dtype: torch.dtype

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        rows = super().forward(input.to(self.weight.device))
        return rows.to(device=input.device, dtype=self.row_dtype)


# The classes above.
STORED_LAYERS: tuple[type[nn.Module], ...] = (CastLinear, ScaledLinear, NF4Linear, CastEmbedding)


def set_linear_weight(layer: nn.Linear, weight: torch.Tensor | ScaledTensor | NF4Tensor, compute: torch.dtype) -> None:
    """Set the weight of a plain linear layer, and the class that computes with it in dtype `compute`."""
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


def set_embedding_table(layer: nn.Embedding, table: torch.Tensor, compute: torch.dtype) -> None:
    """Set the table of a plain embedding, and the class that returns rows in dtype `compute`."""
    if table.dtype != compute:
        layer.__class__ = CastEmbedding
        layer.row_dtype = compute  # type: ignore[assignment]
    layer.weight = nn.Parameter(table, requires_grad=False)
