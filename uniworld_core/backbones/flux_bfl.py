"""FLUX's transformer under Black Forest Labs' names, which ComfyUI, GGUF's converter and most LoRA trainers use.

Source: black-forest-labs/flux, `model.py`; the mapping is the inverse of diffusers' `convert_flux_to_diffusers.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from ..errors import UniWorldError


@dataclass(frozen=True)
class JoinedTensor:
    """A tensor that is made of others.

    Attributes:
        parts: names of the tensors, which are concatenated along rows.
        swap_halves: whether the first and the second half of the rows change places.
    """

    parts: tuple[str, ...]
    swap_halves: bool = False

    def join(self, tensors: Iterable[torch.Tensor]) -> torch.Tensor:
        """The tensor, of its parts in order. The parts are never changed: they may be views of a mapped file."""
        tensor = torch.cat(list(tensors))
        return torch.cat(tensor.chunk(2)[::-1]) if self.swap_halves else tensor


# BFL's name of a layer, and diffusers' names of what is in it.
_OUTER: dict[str, tuple[str, ...]] = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
_DOUBLE: dict[str, tuple[str, ...]] = {
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
}
_DOUBLE_NORMS = {
    "img_attn.norm.query_norm.scale": "attn.norm_q.weight",
    "img_attn.norm.key_norm.scale": "attn.norm_k.weight",
    "txt_attn.norm.query_norm.scale": "attn.norm_added_q.weight",
    "txt_attn.norm.key_norm.scale": "attn.norm_added_k.weight",
}
_SINGLE: dict[str, tuple[str, ...]] = {
    "modulation.lin": ("norm.linear",),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
}
_SINGLE_NORMS = {
    "norm.query_norm.scale": "attn.norm_q.weight",
    "norm.key_norm.scale": "attn.norm_k.weight",
}
# diffusers keeps (scale, shift) in the last modulation, BFL (shift, scale).
_SWAPPED = "final_layer.adaLN_modulation.1"


def bfl_tensors(names: Iterable[str], double_blocks: int, single_blocks: int) -> dict[str, JoinedTensor]:
    """{BFL's name: of which diffusers' tensors it is made} of a FLUX transformer.

    Args:
        names: of all tensors of diffusers' FluxTransformer2DModel; one without guidance embedding has fewer.
        double_blocks, single_blocks: how many the transformer has.

    Raises:
        UniWorldError: a tensor is missing, or one is left over.
    """
    layers = dict(_OUTER)
    norms: dict[str, str] = {}
    for i in range(double_blocks):
        ours, theirs = f"double_blocks.{i}.", f"transformer_blocks.{i}."
        layers |= {ours + name: tuple(theirs + part for part in parts) for name, parts in _DOUBLE.items()}
        norms |= {ours + name: theirs + part for name, part in _DOUBLE_NORMS.items()}
    for i in range(single_blocks):
        ours, theirs = f"single_blocks.{i}.", f"single_transformer_blocks.{i}."
        layers |= {ours + name: tuple(theirs + part for part in parts) for name, parts in _SINGLE.items()}
        norms |= {ours + name: theirs + part for name, part in _SINGLE_NORMS.items()}
    table = {
        f"{name}.{end}": JoinedTensor(tuple(f"{part}.{end}" for part in parts), name == _SWAPPED)
        for name, parts in layers.items()
        for end in ("weight", "bias")
    }
    table |= {name: JoinedTensor((part,)) for name, part in norms.items()}
    present = set(names)
    if not any(name.startswith("time_text_embed.guidance_embedder.") for name in present):
        table = {name: joined for name, joined in table.items() if not name.startswith("guidance_in.")}
    used = {part for joined in table.values() for part in joined.parts}
    if used != present:
        raise UniWorldError(
            f"The transformer is not FLUX's: missing are {sorted(used - present)[:5]}, unknown {sorted(present - used)[:5]}. "
            "Use the published weights."
        )
    return table
