"""What trains: the parts of the recipe by name, and the tensors of each."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import nn

from ...uniworld_core import UniWorld
from ...uniworld_core.errors import UniWorldError
from ...uniworld_core.families.uniworld_v1.checkpoint import NAME, UniWorldParts
from ...uniworld_core.loading.storage import ComputeModule, set_compute

# FLUX's image branch, as the published stage 2 trains it (train_denoiser.py, `get_trainable_params`): in the double
# blocks the image side's modulation and attention, in the single blocks the modulation, q, k, v and their norms.
_DOUBLE = r"transformer_blocks\.\d+\.(norm1\.linear|attn\.(to_q|to_k|to_v|to_out|norm_q|norm_k))\."
_SINGLE = r"single_transformer_blocks\.\d+\.(norm\.linear|attn\.(to_q|to_k|to_v|norm_q|norm_k))\."

# name of a part: the tensors of `DenoiseTower` that belong to it.
TRAINABLE_PARTS: dict[str, re.Pattern[str]] = {
    "denoise_projector": re.compile(r"projectors\.denoise_projector\."),
    "siglip_projector": re.compile(r"projectors\.siglip_projector\."),
    "image_branch": re.compile(rf"dit\.transformer\.({_DOUBLE}|{_SINGLE})"),
    "dit": re.compile(r"dit\.transformer\."),
}


def check_family(model: UniWorld) -> None:
    """Raises UniWorldError unless a model is of the family that trains."""
    if not isinstance(model.parts, UniWorldParts):
        raise UniWorldError(f"model.checkpoint is of {model.family.name}, and {NAME} is what can be trained.")


def part_of(name: str, parts: Sequence[str]) -> str | None:
    """The first of `parts` that the tensor of that name belongs to, or None."""
    return next((part for part in parts if TRAINABLE_PARTS[part].match(name)), None)


def set_trainable(tower: nn.Module, parts: Sequence[str]) -> dict[str, nn.Parameter]:
    """Let the tensors of `parts` train, in float32, and freeze all others.

    Args:
        tower: a `DenoiseTower`.
        parts: names in `TRAINABLE_PARTS`.

    Returns:
        {name in the tower: parameter} of what trains.

    Raises:
        UniWorldError: an unknown part, none, or one without a tensor in this model.
    """
    unknown = [part for part in parts if part not in TRAINABLE_PARTS]
    if unknown or not parts:
        raise UniWorldError(
            f"The parts to train are {list(parts)}; name at least one of {', '.join(TRAINABLE_PARTS)} and no others."
        )
    chosen: dict[str, nn.Parameter] = {}
    for name, parameter in tower.named_parameters():
        trains = part_of(name, parts) is not None
        parameter.requires_grad_(trains)
        if trains:
            # Optimizer steps of 1e-6 vanish in bfloat16.
            parameter.data = parameter.data.float()
            chosen[name] = parameter
    for module in tower.modules():
        # What trains whole takes float32, and autocast lowers what may be lowered.
        if isinstance(module, ComputeModule) and all(parameter.requires_grad for parameter in module.parameters()):
            set_compute(module, torch.float32)
    for part in parts:
        if not any(TRAINABLE_PARTS[part].match(name) for name in chosen):
            raise UniWorldError(f"This model has no tensor of the part '{part}': take it out of stage.parts.")
    return chosen
