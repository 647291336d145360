"""SIGMAS, with the shift that they were computed with.

Every family shifts its noise levels in its own way. Noise levels of another model are valid numbers, and only give a worse
image. In ComfyUI the model itself holds the shift, so that they cannot be mixed up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ...uniworld_core.errors import UniWorldError

if TYPE_CHECKING:
    from torch import Tensor

    from ...uniworld_core.sampling.flow import Shift

# Attribute of the tensor. ComfyUI's sigma nodes return new tensors without it: their noise levels are used as they are.
_ATTRIBUTE: Final = "uniworld_origin"


@dataclass(frozen=True)
class SigmasOrigin:
    """The shift of noise levels, and the name of the family whose model has it."""

    shift: Shift
    family: str


def to_sigmas(levels: Tensor, shift: Shift, family: str) -> Tensor:
    """Return noise levels as SIGMAS that know their shift and the family that it belongs to."""
    setattr(levels, _ATTRIBUTE, SigmasOrigin(shift, family))
    return levels


def check_origin(sigmas: Tensor, shift: Shift, family: str) -> None:
    """Raise UniWorldError if SIGMAS have another shift than the model that paints. Without an origin, they are accepted.

    Args:
        shift: the shift of the model.
        family: name of its family.
    """
    origin: SigmasOrigin | None = getattr(sigmas, _ATTRIBUTE, None)
    if origin is None or origin.shift == shift:
        return
    theirs = f"another model of {family}" if origin.family == family else origin.family
    raise UniWorldError(
        f"The sigmas were computed for {theirs}, whose noise levels are shifted differently from those of the model that "
        f"paints, {family}: connect the same dit to the scheduler and to the sampler, or leave sigmas unconnected."
    )
