"""Loss weights of edits: a small edit counts as much in the loss as a large one.

Shapes: B items, H rows, W columns of the picture; h, w rows and columns of the latent.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import UniWorldError
from .masks import cell_blocks

# The paper's candidates for w(x), with x = total area / edited area (arXiv 2506.03147); each is 1 at x = 1. The published code
# (univa/utils/get_mask.py, get_weight) implements the logarithmic ("log") and the exponential root ("exp") one.
WEIGHT_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "logarithmic": lambda x: torch.log2(x) + 1,
    "linear": lambda x: x,
    "exponential_root": lambda x: 2 ** (x**0.5 - 1),
    "quadratic_root": lambda x: (x**0.5 - 1) ** 2 + 1,
}
WEIGHT_FUNCTION = "logarithmic"  # default of the published programs and of the paper
WEIGHT_DECIMALS = 6  # as in get_weight
_FLOAT32_WHOLE = 2.0**24  # above, all float32 values are integers, and rounding by scaling could overflow


def edit_weight(latent_Bhw: Tensor, function: str = WEIGHT_FUNCTION) -> Tensor:
    """Compute loss weights over the latent: 1 outside the edit, w(total area / edited area) inside.

    Args:
        latent_Bhw: bool (B, h, w), `EditMask.latent`.
        function: a name in `WEIGHT_FUNCTIONS`.

    Returns:
        float32 (B, h, w), always finite. An item without marked cells is 1 everywhere.

    Raises:
        UniWorldError: the function is unknown, or shape or dtype of the mask is invalid.
    """
    if function not in WEIGHT_FUNCTIONS:
        raise UniWorldError(
            f"The weight function '{function}' is not known; choose one of {', '.join(WEIGHT_FUNCTIONS)}."
        )
    if latent_Bhw.ndim != 3 or latent_Bhw.dtype != torch.bool or 0 in latent_Bhw.shape:
        raise UniWorldError(
            f"Edit weights need a bool mask (batch, rows, columns), but got {latent_Bhw.dtype} of shape "
            f"{list(latent_Bhw.shape)}; pass EditMask.latent."
        )
    edited_B = latent_Bhw.sum(dim=(1, 2)).clamp(min=1)
    weight_B = WEIGHT_FUNCTIONS[function](latent_Bhw[0].numel() / edited_B)
    weight_B = torch.where(weight_B < _FLOAT32_WHOLE, weight_B.round(decimals=WEIGHT_DECIMALS), weight_B)
    weight_B = weight_B.clamp(max=torch.finfo(torch.float32).max)
    return torch.where(latent_Bhw, weight_B[:, None, None], torch.ones_like(weight_B[:, None, None]))


def weight_picture(weight_Bhw: Tensor, height: int, width: int) -> Tensor:
    """Render weights as an IMAGE (B, H, W, 3) with one block per cell; gray = w / (largest w of the item).

    The edit is white and the rest has gray 1/w: middle gray if the edit counts twice as much. A white picture means that all
    cells have the same weight.
    """
    relative_Bhw = weight_Bhw / weight_Bhw.amax(dim=(1, 2), keepdim=True)
    return cell_blocks(relative_Bhw, height, width).unsqueeze(-1).expand(-1, -1, -1, 3).contiguous()
