"""FLUX's VAE, and others of its architecture: pictures to latents and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..errors import UniWorldError, shown
from ..images.sizes import check_image
from ..loading.meta import build
from ..loading.parts import NetworkPart
from ..loading.settings import FLAG, WIDTH, choice, exactly, listed, optional, read_json, take, whole
from ..loading.storage import ComputeModule
from ..loading.weights import Shards
from ..sampling.latents import LatentFormat
from .flux_latents import CHANNELS, FLUX_LATENTS, SCALE, SHIFT, read_latent_format
from .tiles import TILE, at_once_or_in_tiles

# Number of down blocks and of up blocks. Each transition between two halves or doubles the sides, so a cell has 8 pixels.
BLOCKS = 4
_DOWN, _UP = choice("DownEncoderBlock2D"), choice("UpDecoderBlock2D")
_SIDE = whole(1, 4096)
_RULES = {
    "in_channels": exactly(3, "because pictures are RGB"),
    "out_channels": exactly(3, "because pictures are RGB"),
    "latent_channels": CHANNELS,
    "block_out_channels": listed(WIDTH, 1, 16),
    "down_block_types": listed(_DOWN, BLOCKS, BLOCKS),
    "up_block_types": listed(_UP, BLOCKS, BLOCKS),
    "layers_per_block": whole(1, 16),
    "norm_num_groups": WIDTH,
    "act_fn": choice("silu", "swish", "mish", "gelu", "relu"),
    "sample_size": _SIDE,
    "scaling_factor": SCALE,
    "shift_factor": SHIFT,
    **dict.fromkeys(("use_quant_conv", "use_post_quant_conv", "mid_block_add_attention"), optional(FLAG)),
}


class VAE(ComputeModule):
    """diffusers' AutoencoderKL. It returns its own latents, which `latent_format` converts for the DiT.

    Args:
        autoencoder: the network.
        base: the family's latent format, of which the network's configuration replaces channels, shift and scale.
    """

    def __init__(self, autoencoder: Any, base: LatentFormat = FLUX_LATENTS) -> None:
        super().__init__()
        self._base = base
        # Any: diffusers' type hints omit methods that are set at run time.
        self.autoencoder: Any = autoencoder

    @classmethod
    def from_pretrained(
        cls, flux: str | Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> VAE:
        """Load `vae` of a FLUX folder in diffusers layout.

        Raises:
            UniWorldError: a file is missing or damaged, or does not match the configuration. The message names it.
        """
        return vae_part(flux).load(dtype, device)

    @property
    def _config(self) -> Any:
        return self.autoencoder.config

    @property
    def latent_format(self) -> LatentFormat:
        """The family's latent format, with the channels, shift and scale of this autoencoder."""
        config = self._config
        shift, scale = float(config.shift_factor or 0.0), float(config.scaling_factor)
        return replace(self._base, channels=int(config.latent_channels), shift=shift, scale=scale)

    @property
    def native_side(self) -> int:
        """Side in pixels of the square pictures that the model was trained for (`read_native_side`)."""
        return _native_side(int(self._config.sample_size))

    @torch.inference_mode()
    def decode(self, z_BChw: torch.Tensor) -> torch.Tensor:
        """Decode unscaled VAE latents (B, C, H/8, W/8) to pictures (B, H, W, 3), float32 in 0..1.

        Raises:
            UniWorldError: the shape of the latents is invalid, or a value is not finite.
        """
        channels, factor = int(self._config.latent_channels), self._base.factor
        if z_BChw.ndim != 4 or z_BChw.shape[1] != channels or 0 in z_BChw.shape:
            raise UniWorldError(
                f"The latent has shape {list(z_BChw.shape)}; this VAE takes (batch, {channels}, height/{factor}, "
                f"width/{factor})."
            )
        if not torch.isfinite(z_BChw).all():
            raise UniWorldError("The latent has NaN or infinite values: check the sampler that produced it.")
        z = z_BChw.to(self.device, self.dtype)
        pixels: torch.Tensor = at_once_or_in_tiles(
            self, lambda: self.autoencoder.decode(z, return_dict=False)[0], self._tiled
        )
        return (pixels.float() * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)

    @torch.no_grad()
    def encode(self, image_BHWC: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Encode pictures (B, H, W, 3) in 0..1 to unscaled VAE latents (B, C, H/8, W/8), float32.

        Args:
            generator: samples from the posterior, as in training; None takes its mode.

        Raises:
            UniWorldError: the shape is invalid, or the sides are not multiples of 16.
        """
        check_image(image_BHWC.shape, self._base.unit)
        # Bit-identical to the published code: 2x - 1 rounds differently, and so do convolutions in another memory layout.
        pixels = ((image_BHWC.permute(0, 3, 1, 2).contiguous() - 0.5) / 0.5).to(self.device, self.dtype)
        posterior: Any = at_once_or_in_tiles(self, lambda: self.autoencoder.encode(pixels).latent_dist, self._tiled)
        z = posterior.mode() if generator is None else posterior.sample(generator=generator)
        return z.float()

    @contextmanager
    def _tiled(self) -> Iterator[None]:
        autoencoder = self.autoencoder
        before = autoencoder.use_tiling, autoencoder.tile_sample_min_size, autoencoder.tile_latent_min_size
        tiles = True, TILE, TILE // self._base.factor
        try:
            autoencoder.use_tiling, autoencoder.tile_sample_min_size, autoencoder.tile_latent_min_size = tiles
            yield
        finally:
            autoencoder.use_tiling, autoencoder.tile_sample_min_size, autoencoder.tile_latent_min_size = before


# Working memory in bytes per pixel: the widest layers hold four tensors of 128 channels in float32.
PIXEL_BYTES = 4 * 128 * 4

# `sample_size` in FLUX.1-dev's vae/config.json, for folders whose configuration omits it.
NATIVE_SIDE = 1024


def read_native_side(flux: str | Path) -> int:
    """Return the side in pixels of the square pictures that a FLUX model was trained for: `sample_size` of its VAE.

    Raises:
        UniWorldError: the configuration is missing, or the size is not a whole number from 1 to 4096.
    """
    file = Path(flux) / "vae" / "config.json"
    side = int(take(read_json(file), {"sample_size": _SIDE}, str(file)).get("sample_size", NATIVE_SIDE))
    return _native_side(side)


def _native_side(sample_size: int) -> int:
    # Smaller values carry no information: diffusers writes 32 if no size was given.
    return sample_size if sample_size >= 64 else NATIVE_SIDE


def vae_part(flux: str | Path) -> NetworkPart[VAE]:
    """Open the VAE of a FLUX folder without loading it. Raises UniWorldError if the configuration is missing or invalid."""
    from diffusers import AutoencoderKL

    folder = Path(flux) / "vae"
    raw = read_json(folder / "config.json")
    if raw.get("_class_name") != "AutoencoderKL":
        raise UniWorldError(
            f"{folder / 'config.json'} has _class_name {shown(raw.get('_class_name'))}, expected 'AutoencoderKL': "
            "copy the vae folder of a FLUX.1 model in diffusers layout."
        )
    read_latent_format(flux)
    settings = take(raw, _RULES, str(folder / "config.json"))
    shards, channels = Shards(folder), settings.get("block_out_channels", [])
    if len(channels) != BLOCKS:
        raise UniWorldError(
            f"{folder / 'config.json'} has {len(channels)} block_out_channels; FLUX's VAE has {BLOCKS}, which make a latent "
            "an eighth of the picture: copy the vae folder of a FLUX.1 model in diffusers layout."
        )
    layers = settings.get("layers_per_block", 1)
    shards.check_depth(layers, ("encoder.down_blocks.0.resnets.",), folder / "config.json")
    return NetworkPart(
        lambda: build(lambda: AutoencoderKL.from_config(settings), folder / "config.json"),
        shards,
        VAE,
        precise=("*",),  # it has convolutions; its few linear layers are small
    )
