"""Qwen-Image's VAE: pictures to latents with one frame, (B, C, 1, h, w), and back."""

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
from ..loading.settings import FLAG, SHARE, WIDTH, exactly, listed, number, read_json, take, whole
from ..loading.storage import ComputeModule
from ..loading.weights import Shards
from ..sampling.latents import RGB, RGB_FILE, LatentFormat, read_rgb
from .qwen_image_classes import diffusers_class
from .tiles import TILE, at_once_or_in_tiles

# Distance in pixels of two tiles.
TILE_STRIDE = 448
# Number of blocks on each side. Each transition between two halves or doubles the sides, so a cell has 8 pixels.
BLOCKS = 4
CHANNELS = 16
# Working memory in bytes per pixel: the widest layers hold three tensors of 96 channels in float32, and one more that is
# padded to three frames. Estimated.
PIXEL_BYTES = (3 + 3) * 96 * 4
# Side in pixels of the square pictures that Qwen-Image was trained for, and of its references (diffusers: VAE_IMAGE_SIZE).
# A `sample_size` in the VAE's config.json replaces it, as in FLUX folders.
NATIVE_SIDE = 1024

# Linear map from the 16 normalized channels. Source: ComfyUI's latent_formats.Wan21, whose VAE Qwen-Image's continues.
QWEN_IMAGE_RGB: RGB = (
    (
        (-0.1299, -0.1692, 0.2932),
        (0.0671, 0.0406, 0.0442),
        (0.3568, 0.2548, 0.1747),
        (0.0372, 0.2344, 0.1420),
        (0.0313, 0.0189, -0.0328),
        (0.0296, -0.0956, -0.0665),
        (-0.3477, -0.4059, -0.2925),
        (0.0166, 0.1902, 0.1975),
        (-0.0412, 0.0267, -0.1364),
        (-0.1293, 0.0740, 0.1636),
        (0.0680, 0.3019, 0.1128),
        (0.0032, 0.0581, 0.0639),
        (-0.1251, 0.0927, 0.1699),
        (0.0060, -0.0633, 0.0005),
        (0.3477, 0.2275, 0.2950),
        (0.1984, 0.0913, 0.1861),
        (-0.1835, -0.0868, -0.3360),
    ),
)
# Qwen-Image's vae/config.json: latents_mean, and the inverse of latents_std.
# fmt: off
_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)
_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)
# fmt: on
QWEN_IMAGE_LATENTS = LatentFormat(
    "qwen_image",
    channels=CHANNELS,
    factor=2 ** (BLOCKS - 1),
    pack=2,
    shift=_MEAN,
    scale=tuple(1.0 / std for std in _STD),
    rgb=QWEN_IMAGE_RGB,
    ndim=5,
)

_PER_CHANNEL = listed(number(-1e6, 1e6), CHANNELS, CHANNELS)
_SIDE = whole(1, 4096)
_RULES = {
    "base_dim": WIDTH,
    "z_dim": exactly(CHANNELS, "the channels of Qwen-Image's latents"),
    "dim_mult": listed(whole(1, 64), BLOCKS, BLOCKS),
    "num_res_blocks": whole(1, 16),
    "attn_scales": listed(number(0, 1), 0, 16),
    "temperal_downsample": listed(FLAG, BLOCKS - 1, BLOCKS - 1),
    "dropout": SHARE,
    "input_channels": exactly(3, "because pictures are RGB"),
    "latents_mean": _PER_CHANNEL,
    "latents_std": listed(number(1e-6, 1e6), CHANNELS, CHANNELS),
    "sample_size": _SIDE,
}


class QwenImageVAE(ComputeModule):
    """Qwen-Image's autoencoder. It returns its own latents, which `latent_format` converts for the transformer.

    Args:
        autoencoder: diffusers' AutoencoderKLQwenImage.
        latent_format: format of its latents.
        native_side: side in pixels of the square pictures that the model was trained for.
    """

    def __init__(
        self, autoencoder: Any, latent_format: LatentFormat = QWEN_IMAGE_LATENTS, native_side: int = NATIVE_SIDE
    ) -> None:
        super().__init__()
        # Any: diffusers' type hints omit methods that are set at run time.
        self.autoencoder: Any = autoencoder
        self.latent_format = latent_format
        self.native_side = native_side

    @torch.inference_mode()
    def decode(self, z_BC1hw: torch.Tensor) -> torch.Tensor:
        """Decode unscaled VAE latents (B, 16, 1, H/8, W/8) to pictures (B, H, W, 3), float32 in 0..1.

        Raises:
            UniWorldError: the shape of the latents is invalid, or a value is not finite.
        """
        self.latent_format.size(z_BC1hw.shape, "this VAE")
        if not torch.isfinite(z_BC1hw).all():
            raise UniWorldError("The latent has NaN or infinite values: check the sampler that produced it.")
        z = z_BC1hw.to(self.device, self.dtype)
        pixels: torch.Tensor = at_once_or_in_tiles(
            self, lambda: self.autoencoder.decode(z, return_dict=False)[0], self._tiled
        )
        return (pixels[:, :, 0].float() * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)

    @torch.no_grad()
    def encode(self, image_BHWC: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Encode pictures (B, H, W, 3) in 0..1 to unscaled VAE latents (B, 16, 1, H/8, W/8), float32.

        Args:
            generator: samples from the posterior, as in training; None takes its mode.

        Raises:
            UniWorldError: the shape is invalid, or the sides are not multiples of 16.
        """
        check_image(image_BHWC.shape, self.latent_format.unit)
        pixels = (2.0 * image_BHWC.permute(0, 3, 1, 2).contiguous() - 1.0)[:, :, None].to(self.device, self.dtype)
        posterior: Any = at_once_or_in_tiles(self, lambda: self.autoencoder.encode(pixels).latent_dist, self._tiled)
        z = posterior.mode() if generator is None else posterior.sample(generator=generator)
        return z.float()

    @contextmanager
    def _tiled(self) -> Iterator[None]:
        self.autoencoder.clear_cache()  # of features, which the failed computation has left
        self.autoencoder.enable_tiling(TILE, TILE, TILE_STRIDE, TILE_STRIDE)
        try:
            yield
        finally:
            self.autoencoder.use_tiling = False


def read_qwen_latent_format(folder: str | Path) -> LatentFormat:
    """Read the latent format of a VAE's folder. A `latent_rgb.json` there defines the colors of previews.

    Raises:
        UniWorldError: the configuration is missing or damaged.
    """
    file = Path(folder) / "config.json"
    settings = take(read_json(file), _RULES, str(file))
    own = file.with_name(RGB_FILE)
    return replace(
        QWEN_IMAGE_LATENTS,
        shift=tuple(settings.get("latents_mean", _MEAN)),
        scale=tuple(1.0 / std for std in settings.get("latents_std", _STD)),
        rgb=read_rgb(own, CHANNELS) if own.is_file() else QWEN_IMAGE_RGB,
    )


def read_qwen_native_side(folder: str | Path) -> int:
    """Return the native side of a VAE's folder in pixels: `sample_size` of its configuration, or else 1024.

    Raises:
        UniWorldError: the configuration is missing or damaged, or the size is not a multiple of 32.
    """
    file = Path(folder) / "config.json"
    side = int(take(read_json(file), _RULES, str(file)).get("sample_size", NATIVE_SIDE))
    if side % 32:
        raise UniWorldError(f"{file} has sample_size {side}; expected a multiple of 32: copy the file again.")
    return side


def qwen_vae_part(folder: str | Path) -> NetworkPart[QwenImageVAE]:
    """Open the VAE in a folder without loading it. Raises UniWorldError if the configuration is missing or invalid."""
    folder = Path(folder)
    file = folder / "config.json"
    raw = read_json(file)
    if raw.get("_class_name") != "AutoencoderKLQwenImage":
        raise UniWorldError(
            f"{file} has _class_name {shown(raw.get('_class_name'))}, expected 'AutoencoderKLQwenImage': copy the `vae` of a "
            "Qwen-Image folder there."
        )
    settings = take(raw, _RULES, str(file))
    settings.pop("sample_size", None)  # which diffusers' class does not have
    latent_format, native_side = read_qwen_latent_format(folder), read_qwen_native_side(folder)
    made = diffusers_class("AutoencoderKLQwenImage")
    return NetworkPart(
        lambda: build(lambda: made.from_config(settings), file),
        Shards(folder),
        lambda autoencoder: QwenImageVAE(autoencoder, latent_format, native_side),
        precise=("*",),  # it has convolutions; its few linear layers are small
    )
