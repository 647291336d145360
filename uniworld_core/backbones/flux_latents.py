"""Latent format and noise shift of FLUX.1-dev, shared by all families with its VAE and transformer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import UniWorldError, shown
from ..loading.settings import number, optional, read_json, take, whole
from ..sampling.flow import Shift
from ..sampling.latents import RGB, RGB_FILE, LatentFormat, read_rgb

# Valid values in a VAE's configuration.
CHANNELS, SHIFT, SCALE = whole(1, 256), optional(number(-1e6, 1e6)), number(1e-6, 1e6)

# Linear least-squares map from the 16 channels on the DiT's side. Source: ComfyUI's latent_formats.Flux.
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

# FLUX.1-dev's vae/config.json: latent_channels, shift_factor, scaling_factor, and cells of 2 ** (blocks - 1) pixels. Its
# transformer packs 2 by 2 cells into a token.
FLUX_LATENTS = LatentFormat("flux", channels=16, factor=8, pack=2, shift=0.1159, scale=0.3611, rgb=FLUX_RGB)

# FLUX.1-dev's scheduler_config.json.
FLUX_SHIFT = Shift(base_tokens=256, max_tokens=4096, base_mu=0.5, max_mu=1.15)


def read_latent_format(flux: str | Path) -> LatentFormat:
    """Read the latent format of a FLUX folder's VAE. vae/latent_rgb.json, if present, defines the colors of previews.

    Raises:
        UniWorldError: the configuration is missing or damaged.
    """
    file = Path(flux) / "vae" / "config.json"
    raw = read_json(file)
    shift: Any = raw.get("shift_factor")
    scale: Any = raw.get("scaling_factor")
    if not SHIFT.holds(shift) or not SCALE.holds(scale):
        raise UniWorldError(
            f"{file} has shift_factor {shown(shift)} and scaling_factor {shown(scale)}, expected {SHIFT.expected}, and "
            f"{SCALE.expected}: copy the file of a FLUX.1 folder in diffusers layout."
        )
    channels = int(take(raw, {"latent_channels": CHANNELS}, str(file)).get("latent_channels", FLUX_LATENTS.channels))
    own = file.with_name(RGB_FILE)
    rgb = read_rgb(own, channels) if own.is_file() else FLUX_LATENTS.rgb
    return replace(FLUX_LATENTS, channels=channels, shift=float(shift or 0.0), scale=float(scale), rgb=rgb)
