"""The VAE of a FLUX folder as ComfyUI's VAE."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import comfy.model_management as management
import comfy.model_patcher
import comfy.sd
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL

from ....uniworld_core.errors import UniWorldError
from ... import host
from .lazy import Lazy

if TYPE_CHECKING:
    from ..parts import PaintingPart

# diffusers' class of FLUX's VAE.
_NETWORK = "AutoencoderKL"
# The settings in FLUX.1-dev's vae/config.json, which ComfyUI's own network assumes.
_STANDARD = {
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 16,
    "norm_num_groups": 32,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "mid_block_add_attention": True,
}


def native_vae(part: PaintingPart) -> Any:
    """Return a VAE part as ComfyUI's VAE, created when it is first used."""
    return Lazy(comfy.sd.VAE, lambda: _vae(part))


def _vae(part: PaintingPart) -> comfy.sd.VAE:
    network = part.parts.network("vae")
    network.check()
    device = host.current().load_device(part.device)
    dtype = part.storage if isinstance(part.storage, torch.dtype) else part.storage.compute
    built = network.build()
    # UniPic's VAE has the same class, for other latents.
    if type(built).__name__ != _NETWORK or not part.facts.latent_format.in_comfyui:
        raise UniWorldError(
            f"VAE of Load UniWorld is for models with FLUX's VAE, and {part.parts.family} has another one: use UniWorld VAE "
            "Decode and VAE Encode."
        )
    config = built.config
    if all(_plain(config.get(key)) == value for key, value in _STANDARD.items()):
        weights = {network.in_network[name]: tensor for name, tensor in network.shards.read(network.in_network)}
        return comfy.sd.VAE(sd=weights, device=device, dtype=dtype)
    return _own_network(part, dtype, device)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


class _Autoencoder(torch.nn.Module):
    """diffusers' autoencoder with the two methods that ComfyUI calls. Pictures are (B, 3, H, W) in -1..1."""

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return self.autoencoder.encode(x).latent_dist.mode()

    def decode(self, z: torch.Tensor, **_: Any) -> torch.Tensor:
        return self.autoencoder.decode(z, return_dict=False)[0]


def _own_network(part: PaintingPart, dtype: torch.dtype, device: torch.device) -> comfy.sd.VAE:
    """Wrap diffusers' network in ComfyUI's VAE, because ComfyUI's own network has fixed widths and 32 groups, unlike nano's."""
    loaded = part.parts["vae"].load(dtype, management.vae_offload_device())
    # The smallest network that ComfyUI's class accepts. It is replaced below.
    smallest = {
        "embed_dim": 1,
        "ddconfig": {
            "double_z": True, "z_channels": 1, "resolution": 32, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1],
            "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
        },
    }  # fmt: skip
    made = comfy.sd.VAE(
        sd=AutoencoderKL(**smallest).state_dict(), device=device, dtype=dtype, config={"params": smallest}
    )
    made.latent_channels = int(loaded.autoencoder.config.latent_channels)
    made.first_stage_model = _Autoencoder(loaded.autoencoder).eval()
    made.patcher = comfy.model_patcher.ModelPatcher(
        made.first_stage_model, load_device=device, offload_device=management.vae_offload_device()
    )
    return made
