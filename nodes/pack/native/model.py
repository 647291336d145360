"""The DiT of a checkpoint as ComfyUI's MODEL, so that its LoRAs, samplers, caches and memory management work on it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import comfy.latent_formats
import comfy.model_detection
import comfy.model_management as management
import comfy.model_patcher
import comfy.supported_models
import torch

from ....uniworld_core.backbones.flux_bfl import bfl_tensors
from ....uniworld_core.backbones.flux_latents import FLUX_LATENTS
from ....uniworld_core.errors import UniWorldError
from ... import host
from .lazy import Lazy

if TYPE_CHECKING:
    from ....uniworld_core.loading.parts import NetworkPart
    from ....uniworld_core.sampling.latents import LatentFormat
    from ..parts import PaintingPart


# diffusers' class of the transformer that ComfyUI has as well.
_NETWORK = "FluxTransformer2DModel"


def native_model(part: PaintingPart) -> Any:
    """Return a DiT part as MODEL: a ModelPatcher that is created when it is first used."""
    return Lazy(comfy.model_patcher.ModelPatcher, lambda: _patcher(part))


def _patcher(part: PaintingPart) -> comfy.model_patcher.ModelPatcher:
    network = part.parts.network("dit")
    network.check()
    built = network.build()
    if type(built).__name__ != _NETWORK:
        sampler = "UniWorld UniPic Sampler" if part.facts.shift is None else "UniWorld Sampler"
        raise UniWorldError(
            f"MODEL of Load UniWorld is for models with FLUX's transformer, and {part.parts.family} has another one: use "
            f"{sampler}."
        )
    settings = dict(built.config)
    here = host.current()
    load_device, offload_device = here.load_device(part.device), here.offload_device(part.device)
    config = comfy.supported_models.Flux(_unet_config(network, settings))
    # A separate instance, because shift and scale of nano's VAE differ from those of FLUX.1-dev.
    config.latent_format = _latent_format(part.facts.latent_format)
    dtype = _dtype(part)
    config.set_inference_dtype(
        dtype, management.unet_manual_cast(dtype, load_device, config.supported_inference_dtypes)
    )
    model = config.get_model({}, "").to(offload_device)
    _fill(model.diffusion_model, network, settings)
    return comfy.model_patcher.ModelPatcher(model, load_device=load_device, offload_device=offload_device)


def _dtype(part: PaintingPart) -> torch.dtype:
    storage = part.storage
    return storage if isinstance(storage, torch.dtype) else storage.compute


def _unet_config(network: NetworkPart[Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings from which ComfyUI builds its FLUX network.

    ComfyUI detects them from tensor names and shapes, but assumes FLUX.1-dev's widths. The result of the detection is kept,
    except for the widths.
    """
    heads, head = int(settings["num_attention_heads"]), int(settings["attention_head_dim"])
    shapes = {key: network.shards.shapes[name] for name, key in network.in_network.items()}
    table = _table(shapes, settings)
    # The detection reads only names and shapes.
    sketch = {
        name: torch.empty((sum(shapes[part][0] for part in joined.parts), *shapes[joined.parts[0]][1:]), device="meta")
        for name, joined in table.items()
    }
    detected = comfy.model_detection.detect_unet_config(sketch, "")
    if detected is None or detected.get("image_model") != "flux":
        raise UniWorldError("This version of ComfyUI does not recognise the DiT as FLUX: update ComfyUI.")
    if not settings["guidance_embeds"]:
        raise UniWorldError("The DiT has no guidance embedding, so it is not FLUX.1-dev's: use UniWorld Sampler.")
    return detected | {
        "hidden_size": heads * head,
        "num_heads": heads,
        "axes_dim": list(settings["axes_dims_rope"]),
        "context_in_dim": int(settings["joint_attention_dim"]),
        "vec_in_dim": int(settings["pooled_projection_dim"]),
        "out_channels": int(settings["out_channels"] or settings["in_channels"]) // FLUX_LATENTS.pack**2,
    }


def _table(names: Any, settings: dict[str, Any]) -> Any:
    return bfl_tensors(names, int(settings["num_layers"]), int(settings["num_single_layers"]))


def _latent_format(latents: LatentFormat) -> comfy.latent_formats.LatentFormat:
    made = comfy.latent_formats.Flux()
    if (latents.shift, latents.scale, latents.rgb) == (FLUX_LATENTS.shift, FLUX_LATENTS.scale, FLUX_LATENTS.rgb):
        return made
    made.latent_channels = latents.channels
    made.shift_factor, made.scale_factor = latents.shift, latents.scale
    made.taesd_decoder_name = None  # trained on FLUX.1-dev's latents
    # ComfyUI's previews use a single linear map. Formats with more layers get no preview.
    rows = latents.rgb[0] if len(latents.rgb) == 1 else None
    made.latent_rgb_factors = None if rows is None else [list(row) for row in rows[:-1]]
    made.latent_rgb_factors_bias = None if rows is None else list(rows[-1])
    return made


@torch.no_grad()
def _fill(model: torch.nn.Module, network: NetworkPart[Any], settings: dict[str, Any]) -> None:
    """Read the weights into ComfyUI's model. Only one other tensor is in memory at a time."""
    in_files = {key: name for name, key in network.in_network.items()}
    places = model.state_dict(keep_vars=True)
    table = _table(in_files, settings)
    if unknown := sorted(places.keys() ^ table.keys()):
        raise UniWorldError(
            f"This version of ComfyUI builds FLUX with different tensors ({', '.join(unknown[:5])}): use UniWorld Sampler, or a "
            "version that the README names."
        )
    for name, joined in table.items():
        tensors = dict(network.shards.read([in_files[part] for part in joined.parts]))
        tensor = joined.join(_floats(tensors[in_files[part]]) for part in joined.parts)
        assert math.prod(tensor.shape) == places[name].numel(), f"{name} is {tuple(tensor.shape)}"
        places[name].copy_(tensor)


def _floats(tensor: Any) -> torch.Tensor:
    """Dequantize a quantized tensor, because ComfyUI's layers store floats. Other tensors are returned unchanged."""
    return tensor if isinstance(tensor, torch.Tensor) else tensor.dequantize(torch.float32)
