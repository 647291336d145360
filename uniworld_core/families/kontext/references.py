"""The references of FLUX.1 Kontext: their latents, and the positions of their tokens.

Shapes: B batch, C latent channels, h, w latent sides, N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image

from ...backbones.flux_vae import VAE
from ...errors import UniWorldError
from ...images.pictures import to_image
from ...images.sizes import DEFAULT_SIDE, Size
from ...sampling.packing import grid_positions
from .sizes import preferred_size

# Value of the first axis of the positions. The painted picture and the text have 0.
FIRST_AXIS = 1


def reference_sizes(pictures: Sequence[Sequence[Image.Image]], side: int = DEFAULT_SIDE) -> list[Size]:
    """Return the sizes in which the VAE gets the references of a batch: one for each place in the lists of the items.

    Args:
        pictures: the references of each item.
        side: the sizes are of about the area of a square with this side.

    Raises:
        UniWorldError: the items have different numbers of references, or their sizes differ.
    """
    sizes = [[preferred_size(picture.height, picture.width, side) for picture in item] for item in pictures]
    if any(item != sizes[0] for item in sizes):
        raise UniWorldError(
            "The prompts of the batch have references of different numbers or aspect ratios: encode them one by one, or crop "
            "the pictures to the same aspect ratio."
        )
    return sizes[0]


def encode_references(
    vae: VAE, pictures: Sequence[Sequence[Image.Image]], side: int | None = None
) -> tuple[torch.Tensor, ...]:
    """Encode the references of a batch to normalized latents, each (B, C, h, w), in order.

    Args:
        pictures: the references of each item, of any size.
        side: they are resized to about the area of a square with this side; None for the VAE's native side.

    Raises:
        UniWorldError: as `reference_sizes`.
    """
    latents, sizes = [], reference_sizes(pictures, vae.native_side if side is None else side)
    for size, column in zip(sizes, zip(*pictures)):
        resized = [picture.resize((size.width, size.height), Image.Resampling.LANCZOS) for picture in column]
        latents.append(vae.latent_format.to_model(vae.encode(to_image(resized))))
    return tuple(latents)


def reference_positions(grids: Sequence[tuple[int, int]], device: torch.device) -> torch.Tensor:
    """Return the positions (N, 3) of the tokens of all references, float32.

    The first one starts at row and column 0. Each further one is put below or beside all before it, wherever its far side
    is nearer, so that no two share a position. This is how ComfyUI places several references (`offset`); diffusers'
    pipeline takes one.

    Args:
        grids: rows and columns of tokens of each reference.
    """
    pieces, bottom, right = [torch.zeros(0, 3, device=device)], 0, 0
    for rows, columns in grids:
        beside = bottom + rows > right + columns
        row, column = (0, right) if beside else (bottom, 0)
        pieces.append(
            grid_positions(rows, columns, device, FIRST_AXIS) + torch.tensor([0.0, row, column], device=device)
        )
        bottom, right = max(bottom, row + rows), max(right, column + columns)
    return torch.cat(pieces)
