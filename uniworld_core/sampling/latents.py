"""FLUX latents: the shift and scale between the VAE's side and the DiT's, and previews without the VAE."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..errors import UniWorldError
from ..loading.settings import listed, number, optional, read_json, shown

# Channels of a FLUX latent (FLUX.1-dev's vae/config.json, latent_channels).
CHANNELS = 16

# What a VAE's configuration may say of them.
SHIFT, SCALE = optional(number(-1e6, 1e6)), number(1e-6, 1e6)

# A map from a cell's channels to its colour in -1..1: layers with ReLU between them, each a row for every input and, last,
# one of offsets.
RGB = tuple[tuple[tuple[float, ...], ...], ...]
# Beside a VAE that is not FLUX's: its own map, as {"layers": [...]}.
RGB_FILE = "latent_rgb.json"
_LAYERS = listed(listed(listed(number(-1e6, 1e6), 1, 1024), 2, 1025), 1, 4)
# Least-squares map from FLUX's 16 DiT-side latent channels (figures as published with ComfyUI's latent_formats.Flux).
FLUX_RGB: RGB = (
    (
        (-0.0346, 0.0244, 0.0681),
        (0.0034, 0.021, 0.0687),
        (0.0275, -0.0668, -0.0433),
        (-0.0174, 0.016, 0.0617),
        (0.0859, 0.0721, 0.0329),
        (0.0004, 0.0383, 0.0115),
        (0.0405, 0.0861, 0.0915),
        (-0.0236, -0.0185, -0.0259),
        (-0.0245, 0.025, 0.118),
        (0.1008, 0.0755, -0.0421),
        (-0.0515, 0.0201, 0.0011),
        (0.0428, -0.0012, -0.0036),
        (0.0817, 0.0765, 0.0749),
        (-0.1264, -0.0522, -0.1103),
        (-0.028, -0.0881, -0.0499),
        (-0.1262, -0.0982, -0.0778),
        (-0.0329, -0.0718, -0.0851),
    ),
)


@dataclass(frozen=True)
class LatentFormat:
    """How the DiT sees the VAE's latents: (z - shift) * scale. The defaults are FLUX.1-dev's.

    Attributes:
        shift, scale: of vae/config.json.
        rgb: the colours of previews; a VAE that is not FLUX's may bring its own in vae/latent_rgb.json.
    """

    shift: float = 0.1159
    scale: float = 0.3611
    rgb: RGB = FLUX_RGB

    @classmethod
    def of(cls, flux: str | Path) -> LatentFormat:
        """The format of a FLUX folder's VAE. Raises UniWorldError if its configuration is missing or damaged."""
        file = Path(flux) / "vae" / "config.json"
        raw = read_json(file)
        shift: Any = raw.get("shift_factor")
        scale: Any = raw.get("scaling_factor")
        if not SHIFT.holds(shift) or not SCALE.holds(scale):
            raise UniWorldError(
                f"{file} has shift_factor {shown(shift)} and scaling_factor {shown(scale)}, expected {SHIFT.expected}, and "
                f"{SCALE.expected}: choose a FLUX.1-dev folder in diffusers layout."
            )
        own = file.with_name(RGB_FILE)
        return cls(float(shift or 0.0), float(scale), _read_rgb(own) if own.is_file() else FLUX_RGB)

    def to_dit(self, z: torch.Tensor) -> torch.Tensor:
        """From the VAE's own latent to the DiT's side."""
        return (z - self.shift) * self.scale

    def from_dit(self, x: torch.Tensor) -> torch.Tensor:
        """From the DiT's side to the VAE's own latent."""
        return x / self.scale + self.shift


def _read_rgb(file: Path) -> RGB:
    """The map of a file. Raises UniWorldError if it holds none."""
    layers: Any = read_json(file).get("layers")
    if not _LAYERS.holds(layers) or not _joined(layers):
        raise UniWorldError(
            f"{file} does not map {CHANNELS} channels to three: each of its layers must be a table of numbers with a row "
            "for every input and one of offsets. Correct it or delete it."
        )
    return tuple(tuple(tuple(float(value) for value in row) for row in layer) for layer in layers)


def _joined(layers: list[list[list[float]]]) -> bool:
    """Whether each layer takes what the one before it gives, the first all channels, and the last gives three colours."""
    widths = [CHANNELS, *(len(layer[0]) for layer in layers)]
    fits = (
        len(layer) == before + 1 and all(len(row) == after for row in layer)
        for layer, before, after in zip(layers, widths, widths[1:])
    )
    return widths[-1] == 3 and all(fits)


def cell_colours(x_xC: torch.Tensor, rgb: RGB) -> torch.Tensor:
    """Colours (..., 3), in -1..1 or a little outside, of cells of a DiT-side latent (..., C)."""
    for i, layer in enumerate(rgb):
        *factors, offset = torch.tensor(layer, dtype=torch.float32)
        x_xC = (x_xC.relu() if i else x_xC) @ torch.stack(factors) + offset
    return x_xC


def preview(latent_Chw: torch.Tensor, side: int = 512, rgb: RGB = FLUX_RGB) -> Image.Image:
    """A quick look at a DiT-side latent (16, h, w), scaled so that its longer side is `side` pixels.

    Args:
        rgb: of its `LatentFormat`.
    """
    rgb_hw3 = cell_colours(latent_Chw.float().cpu().permute(1, 2, 0), rgb)
    image = Image.fromarray(((rgb_hw3 + 1.0) * 127.5).clamp(0, 255).to(torch.uint8).numpy())
    ratio = side / max(image.size)
    return image.resize(
        (max(1, round(image.width * ratio)), max(1, round(image.height * ratio))), Image.Resampling.BILINEAR
    )
