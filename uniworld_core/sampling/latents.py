"""Latents: how a model sees what its VAE makes of pictures, and previews without the VAE."""

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

# A map from a cell's channels to its colour in -1..1: layers with ReLU between them, each a row for every input and, last,
# one of offsets.
RGB: TypeAlias = "tuple[tuple[tuple[float, ...], ...], ...]"
# Beside a VAE that has a map of its own: {"layers": [...]}.
RGB_FILE = "latent_rgb.json"
_LAYERS = listed(listed(listed(number(-1e6, 1e6), 1, 1024), 2, 1025), 1, 4)


@dataclass(frozen=True)
class LatentFormat:
    """The latents of a family, and how its model sees those that its VAE makes: (z - shift) * scale.

    Attributes:
        name: of the family of latents, such as "flux": models of one name paint latents for each other's VAEs.
        channels: of a cell.
        factor: pixels of a cell, a side.
        pack: cells of one token of the model, a side.
        shift, scale: numbers, or one of each for every channel.
        rgb: the colours of previews, of latents on the model's side.
        ndim: 4 for latents (B, C, h, w); 5 for (B, C, 1, h, w), as VAEs made for videos have.
    """

    name: str
    channels: int
    factor: int
    pack: int
    shift: float | tuple[float, ...]
    scale: float | tuple[float, ...]
    rgb: RGB
    ndim: int = 4

    @property
    def unit(self) -> int:
        """Pixels of one token, a side: sides of pictures are multiples of it."""
        return self.factor * self.pack

    def shape(self, batch: int, size: Size) -> tuple[int, ...]:
        """The shape of latents of pictures of a size in pixels.

        Raises:
            UniWorldError: a side is no positive multiple of `unit`, or the picture is over 4096x4096 pixels in all.
        """
        check_size(size.height, size.width, self.unit)
        frames = (1,) * (self.ndim - 4)
        return batch, self.channels, *frames, size.height // self.factor, size.width // self.factor

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether latents of that shape can be of this format and be packed."""
        one_frame = tuple(shape[2:-2]) == (1,) * (self.ndim - 4)
        return self._packs(shape) and 0 not in shape and shape[1] == self.channels and one_frame

    def size(self, shape: Sequence[int], taker: str = "the model") -> Size:
        """The size in pixels of the pictures of latents of that shape.

        Args:
            taker: what is to take them, for the sentence of an error.

        Raises:
            UniWorldError: they are not of this format, or larger than what is painted.
        """
        if not self.fits(shape):
            raise self._refused(shape, taker)
        return check_size(shape[-2] * self.factor, shape[-1] * self.factor, self.unit)

    def token_count(self, shape: Sequence[int]) -> int:
        """Packed tokens of one latent of that shape, whatever its channels.

        Raises:
            UniWorldError: it cannot be packed.
        """
        if not self._packs(shape):
            raise self._refused(shape, "the model")
        return (shape[-2] // self.pack) * (shape[-1] // self.pack)

    def to_model(self, z: torch.Tensor) -> torch.Tensor:
        """From the VAE's own latents (B, C, ...) to the model's side."""
        return (z - self._of_channels(self.shift, z)) * self._of_channels(self.scale, z)

    def from_model(self, x: torch.Tensor) -> torch.Tensor:
        """From the model's side to the VAE's own latents (B, C, ...)."""
        return x / self._of_channels(self.scale, x) + self._of_channels(self.shift, x)

    def _packs(self, shape: Sequence[int]) -> bool:
        return len(shape) == self.ndim and not any(side % self.pack for side in shape[-2:])

    def _refused(self, shape: Sequence[int], taker: str) -> UniWorldError:
        frames = "1, " * (self.ndim - 4)
        return UniWorldError(
            f"The latent has shape {list(shape)}; {taker} takes (batch, {self.channels}, {frames}height/{self.factor}, "
            f"width/{self.factor}) of pictures whose sides are multiples of {self.unit}."
        )

    def _of_channels(self, value: float | tuple[float, ...], like: torch.Tensor) -> float | torch.Tensor:
        if isinstance(value, tuple):
            return like.new_tensor(value).reshape(-1, *(1,) * (self.ndim - 2))
        return value


def read_rgb(file: Path, channels: int) -> RGB:
    """The map of a file, from so many channels. Raises UniWorldError if it holds none."""
    layers: Any = read_json(file).get("layers")
    if not _LAYERS.holds(layers) or not _joined(layers, channels):
        raise UniWorldError(
            f"{file} does not map {channels} channels to three: each of its layers must be a table of numbers with a row "
            "for every input and one of offsets. Correct it or delete it."
        )
    return tuple(tuple(tuple(float(value) for value in row) for row in layer) for layer in layers)


def _joined(layers: list[list[list[float]]], channels: int) -> bool:
    """Whether each layer takes what the one before it gives, the first all channels, and the last gives three colours."""
    widths = [channels, *(len(layer[0]) for layer in layers)]
    fits = (
        len(layer) == before + 1 and all(len(row) == after for row in layer)
        for layer, before, after in zip(layers, widths, widths[1:])
    )
    return widths[-1] == 3 and all(fits)


def cell_colours(x_xC: torch.Tensor, rgb: RGB) -> torch.Tensor:
    """Colours (..., 3), in -1..1 or a little outside, of cells of a latent (..., C) on the model's side."""
    for i, layer in enumerate(rgb):
        *factors, offset = torch.tensor(layer, dtype=torch.float32)
        x_xC = (x_xC.relu() if i else x_xC) @ torch.stack(factors) + offset
    return x_xC


def preview(latent: torch.Tensor, rgb: RGB, side: int = 512) -> Image.Image:
    """A quick look at a latent (C, h, w) or (C, 1, h, w) on the model's side, its longer side `side` pixels.

    Args:
        rgb: of its `LatentFormat`.
    """
    latent_Chw = latent if latent.ndim == 3 else latent[:, 0]
    rgb_hw3 = cell_colours(latent_Chw.float().cpu().permute(1, 2, 0), rgb)
    image = Image.fromarray(((rgb_hw3 + 1.0) * 127.5).clamp(0, 255).to(torch.uint8).numpy())
    ratio = side / max(image.size)
    return image.resize(
        (max(1, round(image.width * ratio)), max(1, round(image.height * ratio))), Image.Resampling.BILINEAR
    )
