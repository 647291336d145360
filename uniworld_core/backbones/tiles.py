"""Pictures that need too much memory at once: a VAE computes them in tiles."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeVar

import torch

from ..loading.offload import explain_out_of_memory, release_frames
from ..loading.storage import ComputeModule

T = TypeVar("T")

# Side of a tile in pixels. ComfyUI has the same.
TILE = 512


def at_once_or_in_tiles(
    vae: ComputeModule, compute: Callable[[], T], tiled: Callable[[], AbstractContextManager[None]]
) -> T:
    """Compute at once, or in tiles if there is not enough memory for that.

    Tiles are the second choice, as they change the result: the middle block attends over the whole picture.

    Args:
        vae: the VAE, named in errors.
        compute: encodes or decodes a picture.
        tiled: makes a context in which the VAE computes in tiles.

    Raises:
        OutOfMemory: a tile does not fit either.
    """
    with explain_out_of_memory(vae, "picture"):
        try:
            return compute()
        except torch.OutOfMemoryError as error:
            release_frames(error)
        with tiled():
            return compute()
