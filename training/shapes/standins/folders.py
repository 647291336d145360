"""Write trained stand-ins as folders in the formats of Qwen2.5-VL, FLUX.1-dev and SigLIP2."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ....uniworld_core.backbones.flux_latents import FLUX_SHIFT
from ....uniworld_core.sampling.latents import RGB, RGB_FILE, LatentFormat
from ...files import write_atomic
from .parts import SIGLIP_SIDE
from .vlm import preprocessor_config

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
    from transformers import (
        CLIPTextModel,
        PreTrainedModel,
        Qwen2_5_VLForConditionalGeneration,
        SiglipVisionModel,
        T5EncoderModel,
    )

# FLUX.1-dev's scheduler_config.json.
_SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "base_image_seq_len": FLUX_SHIFT.base_tokens,
    "base_shift": FLUX_SHIFT.base_mu,
    "max_image_seq_len": FLUX_SHIFT.max_tokens,
    "max_shift": FLUX_SHIFT.max_mu,
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
}
_INDEX = {
    "_class_name": "FluxPipeline",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
_VAE_FILE = "diffusion_pytorch_model.safetensors"  # as diffusers names it
# Prefixes of the published files, which transformers 5 drops in these models.
_PREFIXES = {"clip_text_model": "text_model.", "siglip_vision_model": "vision_model."}


def write_qwen(qwen: Qwen2_5_VLForConditionalGeneration, tokens: Mapping[str, int], folder: Path) -> None:
    """Add configuration, weights and image processor settings to a folder with the tokenizer; `tokens` are its ids."""
    _write_module(qwen, folder)
    # The public configuration has the token ids on the top level; not every version of transformers writes them there.
    file = folder / "config.json"
    write_json(
        file, json.loads(file.read_text(encoding="utf-8")) | {k: v for k, v in tokens.items() if k != "vocab_size"}
    )
    write_json(folder / "preprocessor_config.json", preprocessor_config())
    ids = {name: getattr(qwen.config.get_text_config(), name) for name in ("bos_token_id", "eos_token_id")}
    write_json(folder / "generation_config.json", {"_from_model_config": True, **ids})


def write_vae(vae: AutoencoderKL, latent_format: LatentFormat, folder: Path) -> None:
    """Write the `vae` of a FLUX folder, with its latent format."""
    vae.save_pretrained(folder)
    file = folder / "config.json"
    factors = {"shift_factor": latent_format.shift, "scaling_factor": latent_format.scale}
    write_json(file, json.loads(file.read_text(encoding="utf-8")) | factors)
    write_colors(latent_format.rgb, folder)


def write_colors(rgb: RGB, folder: Path) -> None:
    """Write the preview colors of a VAE into its folder, one matrix row per line."""
    layers = ["[\n" + ",\n".join(json.dumps(row) for row in layer) + "\n]" for layer in rgb]
    (folder / RGB_FILE).write_text('{"layers": [' + ", ".join(layers) + "]}\n", encoding="utf-8")


def replace_vae(vae: AutoencoderKL, folder: Path) -> None:
    """Replace the weights of a VAE atomically; its configuration is kept.

    Raises:
        UniWorldError: the disk is full.
    """
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in vae.state_dict().items()}
    write_atomic(folder / _VAE_FILE, save(tensors, metadata={"format": "pt"}))


def write_flux(clip: CLIPTextModel, t5: T5EncoderModel, transformer: FluxTransformer2DModel, folder: Path) -> None:
    """Add CLIP, T5, transformer and scheduler to a FLUX folder with VAE and tokenizers."""
    _write_module(clip, folder / "text_encoder")
    _write_module(t5, folder / "text_encoder_2")
    transformer.save_pretrained(folder / "transformer")
    write_json(folder / "scheduler" / "scheduler_config.json", _SCHEDULER)
    write_json(folder / "model_index.json", _INDEX)


def write_siglip(siglip: SiglipVisionModel, folder: Path) -> None:
    """Write a SigLIP folder."""
    _write_module(siglip, folder)
    settings = {
        "do_convert_rgb": None,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "SiglipImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "resample": 2,
        "rescale_factor": 1 / 255,
        "size": {"height": SIGLIP_SIDE, "width": SIGLIP_SIDE},
    }
    write_json(folder / "preprocessor_config.json", settings)


def write_json(file: Path, content: Mapping[str, object]) -> None:
    """Write a JSON file and create its folders."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_module(module: PreTrainedModel, folder: Path) -> None:
    """Write a transformers model as `config.json` and `model.safetensors`, with the published tensor names."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = module.config.to_dict() | {"architectures": [type(module).__name__]}
    write_json(folder / "config.json", json.loads(json.dumps(config, default=str)))
    prefix = _PREFIXES.get(config["model_type"], "")
    shared: dict[int, str] = {}
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in module.state_dict().items():
        if name.endswith("position_ids") or shared.setdefault(tensor.data_ptr(), name) != name:
            continue  # computed by the module, or tied to a tensor that is already written
        tensors[name if name.startswith(prefix) else prefix + name] = tensor.detach().cpu().contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
