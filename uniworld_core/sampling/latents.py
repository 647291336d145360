"""Latent formats: normalization of latents, and previews without the VAE.

Unscaled latents z are those of the VAE: what its encoder returns and its decoder takes. Normalized latents are those of the
DiT, (z - shift) * scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from PIL import Image

from ..errors import UniWorldError
from ..images.sizes import Size, check_size
from ..loading.settings import listed, number, read_json

# Maps a cell's channels to its color in -1..1: linear layers with ReLU between them. Each layer is a table with a row of
# factors per input, and a last row of offsets.
RGB: TypeAlias = "tuple[tuple[tuple[float, ...], ...], ...]"
# File in a VAE's folder with the map of that VAE: {"layers": [...]}.
RGB_FILE = "latent_rgb.json"
_LAYERS = listed(listed(listed(number(-1e6, 1e6), 1, 1024), 2, 1025), 1, 4)


@dataclass(frozen=True)
class LatentFormat:
    """Format of the latents of a family. Unscaled VAE latents z are normalized to (z - shift) * scale.

    Attributes:
        name: name of the format, such as "flux". Models and VAEs with the same name are compatible.
        channels: channels of a cell.
        factor: side of a cell in pixels.
        pack: side of a token in cells.
        shift, scale: one number each, or one per channel.
        rgb: maps normalized latents to the colors of previews.
        ndim: 4 for latents (B, C, h, w); 5 for (B, C, 1, h, w), the shape of video VAEs.
        in_comfyui: whether ComfyUI has models and VAEs for such latents.
    """

    name: str
    channels: int
    factor: int
    pack: int
    shift: float | tuple[float, ...]
    scale: float | tuple[float, ...]
    rgb: RGB
    ndim: int = 4
    in_comfyui: bool = True

    @property
    def unit(self) -> int:
        """Side of one token in pixels. Sides of pictures are multiples of it."""
        return self.factor * self.pack

    def shape(self, batch: int, size: Size) -> tuple[int, ...]:
        """Return the shape of the latents of `batch` pictures of a size.

        Raises:
            UniWorldError: a side is not a positive multiple of `unit`, or the picture has more than 4096x4096 pixels.
        """
        check_size(size.height, size.width, self.unit)
        frames = (1,) * (self.ndim - 4)
        return batch, self.channels, *frames, size.height // self.factor, size.width // self.factor

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether a shape is valid for latents of this format."""
        one_frame = tuple(shape[2:-2]) == (1,) * (self.ndim - 4)
        return self._packs(shape) and 0 not in shape and shape[1] == self.channels and one_frame

    def size(self, shape: Sequence[int], taker: str = "the model") -> Size:
        """Return the size in pixels of the pictures that latents of this shape decode to.

        Args:
            taker: what takes the latents, for the error.

        Raises:
            UniWorldError: the shape is invalid, or the picture has more than 4096x4096 pixels.
        """
        if not self.fits(shape):
            raise self._shape_error(shape, taker)
        return check_size(shape[-2] * self.factor, shape[-1] * self.factor, self.unit)

    def token_count(self, shape: Sequence[int]) -> int:
        """Return the number of packed tokens of one latent of this shape, with any number of channels.

        Raises:
            UniWorldError: the sides are not multiples of `pack`.
        """
        if not self._packs(shape):
            raise self._shape_error(shape, "the model")
        return (shape[-2] // self.pack) * (shape[-1] // self.pack)

    def to_model(self, z: torch.Tensor) -> torch.Tensor:
        """Normalize unscaled VAE latents (B, C, ...)."""
        return (z - self._of_channels(self.shift, z)) * self._of_channels(self.scale, z)

    def from_model(self, x: torch.Tensor) -> torch.Tensor:
        """Convert normalized latents (B, C, ...) to unscaled VAE latents."""
        return x / self._of_channels(self.scale, x) + self._of_channels(self.shift, x)

    def _packs(self, shape: Sequence[int]) -> bool:
        return len(shape) == self.ndim and not any(side % self.pack for side in shape[-2:])

    def _shape_error(self, shape: Sequence[int], taker: str) -> UniWorldError:
        frames = "1, " * (self.ndim - 4)
        return UniWorldError(
            f"The latent has shape {list(shape)}; {taker} takes (batch, {self.channels}, {frames}height/{self.factor}, "
            f"width/{self.factor}), for pictures whose sides are multiples of {self.unit}."
        )

    def _of_channels(self, value: float | tuple[float, ...], like: torch.Tensor) -> float | torch.Tensor:
        if isinstance(value, tuple):
            return like.new_tensor(value).reshape(-1, *(1,) * (self.ndim - 2))
        return value


def read_rgb(file: Path, channels: int) -> RGB:
    """Read the color map of a VAE with `channels` channels. Raises UniWorldError if the file is invalid."""
    layers: Any = read_json(file).get("layers")
    if not _LAYERS.holds(layers) or not _widths_match(layers, channels):
        raise UniWorldError(
            f"{file} must map {channels} channels to three: the first layer needs {channels + 1} rows, each further layer one "
            "row more than the columns before it, and the last layer three columns. Correct it or delete it."
        )
    return tuple(tuple(tuple(float(value) for value in row) for row in layer) for layer in layers)


def _widths_match(layers: list[list[list[float]]], channels: int) -> bool:
    """Whether each layer takes the output of the previous one, the first `channels` inputs, and the last gives 3 outputs."""
    widths = [channels, *(len(layer[0]) for layer in layers)]
    fits = (
        len(layer) == before + 1 and all(len(row) == after for row in layer)
        for layer, before, after in zip(layers, widths, widths[1:])
    )
    return widths[-1] == 3 and all(fits)


def cell_colors(x_xC: torch.Tensor, rgb: RGB) -> torch.Tensor:
    """Return colors (..., 3), in about -1..1, of normalized latent cells (..., C)."""
    for i, layer in enumerate(rgb):
        *factors, offset = torch.tensor(layer, dtype=torch.float32)
        x_xC = (x_xC.relu() if i else x_xC) @ torch.stack(factors) + offset
    return x_xC


def preview(latent: torch.Tensor, rgb: RGB, side: int = 512, visible: torch.Tensor | None = None) -> Image.Image:
    """Render a preview of a normalized latent (C, h, w) or (C, 1, h, w), without the VAE.

    Args:
        rgb: `rgb` of the latent's format.
        side: longer side of the preview in pixels.
        visible: (h, w), True at the cells to show; the others are gray. None shows all.
    """
    latent_Chw = latent if latent.ndim == 3 else latent[:, 0]
    rgb_hw3 = cell_colors(latent_Chw.float().cpu().permute(1, 2, 0), rgb)
    if visible is not None:
        rgb_hw3 = rgb_hw3 * visible.cpu()[..., None]
    image = Image.fromarray(((rgb_hw3 + 1.0) * 127.5).clamp(0, 255).to(torch.uint8).numpy())
    ratio = side / max(image.size)
    return image.resize(
        (max(1, round(image.width * ratio)), max(1, round(image.height * ratio))), Image.Resampling.BILINEAR
    )
