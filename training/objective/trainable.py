"""The trainable parts by name, and the parameters of each."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import nn

from ...uniworld_core import UniWorld
from ...uniworld_core.errors import UniWorldError
from ...uniworld_core.families.uniworld_v1.checkpoint import UniWorldParts
from ...uniworld_core.families.uniworld_v1.painting import NAME
from ...uniworld_core.loading.storage import ComputeModule, set_compute

# FLUX's image branch, as the published stage 2 trains it (train_denoiser.py, `get_trainable_params`): modulation and
# attention of the image stream in double blocks; modulation, q, k, v and their norms in single blocks.
_DOUBLE = r"transformer_blocks\.\d+\.(norm1\.linear|attn\.(to_q|to_k|to_v|to_out|norm_q|norm_k))\."
_SINGLE = r"single_transformer_blocks\.\d+\.(norm\.linear|attn\.(to_q|to_k|to_v|norm_q|norm_k))\."

# {part: pattern of its parameters' names in `DenoiseTower`}
TRAINABLE_PARTS: dict[str, re.Pattern[str]] = {
    "denoise_projector": re.compile(r"projectors\.denoise_projector\."),
    "siglip_projector": re.compile(r"projectors\.siglip_projector\."),
    "image_branch": re.compile(rf"dit\.transformer\.({_DOUBLE}|{_SINGLE})"),
    "dit": re.compile(r"dit\.transformer\."),
}


def check_family(model: UniWorld) -> None:
    """Check that the model's family can be trained. Raises UniWorldError otherwise."""
    if not isinstance(model.parts, UniWorldParts):
        raise UniWorldError(f"model.checkpoint is a {model.family.name} model; only {NAME} can be trained.")


def part_of(name: str, parts: Sequence[str]) -> str | None:
    """Return the first of `parts` that the parameter belongs to, or None."""
    return next((part for part in parts if TRAINABLE_PARTS[part].match(name)), None)


def set_trainable(tower: nn.Module, parts: Sequence[str]) -> dict[str, nn.Parameter]:
    """Make the parameters of `parts` trainable, in float32, and freeze all others.

    Args:
        tower: a `DenoiseTower`.
        parts: names in `TRAINABLE_PARTS`.

    Returns:
        {name in the tower: trainable parameter}.

    Raises:
        UniWorldError: `parts` is empty or has an unknown name, or this model has no parameter of a part.
    """
    unknown = [part for part in parts if part not in TRAINABLE_PARTS]
    if unknown or not parts:
        raise UniWorldError(f"The parts to train are {list(parts)}; give one or more of {', '.join(TRAINABLE_PARTS)}.")
    chosen: dict[str, nn.Parameter] = {}
    for name, parameter in tower.named_parameters():
        trains = part_of(name, parts) is not None
        parameter.requires_grad_(trains)
        if trains:
            # A learning rate of 1e-6 is below bfloat16's resolution: updates would round to nothing.
            parameter.data = parameter.data.float()
            chosen[name] = parameter
    for module in tower.modules():
        # Modules that train completely compute in float32; autocast lowers the operations that it may lower.
        if isinstance(module, ComputeModule) and all(parameter.requires_grad for parameter in module.parameters()):
            set_compute(module, torch.float32)
    for part in parts:
        if not any(TRAINABLE_PARTS[part].match(name) for name in chosen):
            raise UniWorldError(f"This model has no parameters of the part '{part}': remove it from stage.parts.")
    return chosen
