"""The files that ComfyUI's own loaders read, and which tensors of a UniWorld checkpoint each of them holds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ...backbones.flux_bfl import JoinedTensor, bfl_tensors
from ...backbones.qwen_files import QWEN_NAMES
from ...loading.names import Names
from .checkpoint import DENOISER_NAMES, PROJECTOR_NAMES
from .config import UniWorldConfig

# FLUX.1-Redux has the siglip_projector's form and, at full size, its widths (published: stage 2 starts from it).
REDUX_NAMES = Names((("redux_up.", "siglip_projector.0."), ("redux_down.", "siglip_projector.2.")))

# The tensor beside the projector that takes CLIP-L's place, and the header's entry for the pictures that the VLM sees.
POOLED_EMPTY = "pooled_empty_prompt"
VLM_PIXELS_KEY = "vlm_pixels"

# Where ComfyUI looks for each file, below its models folder.
DIT = "diffusion_models/{name}.safetensors"
VLM = "text_encoders/{name}_qwen2.5_vl.safetensors"
PROJECTOR = "text_encoders/{name}_projector.safetensors"
ROUTING = "text_encoders/{name}_routing.safetensors"
REDUX = "style_models/{name}_siglip_redux.safetensors"
SIGLIP = "clip_vision/{name}_siglip.safetensors"
VAE = "vae/{name}_vae.safetensors"

# The node that loads each file.
LOADERS = {
    DIT: "Load Diffusion Model",
    VLM: "Load CLIP (type qwen_image)",
    PROJECTOR: "UniWorld Text Encode",
    ROUTING: "UniWorld Route (CLIP)",
    REDUX: "Load Style Model",
    SIGLIP: "Load CLIP Vision",
    VAE: "Load VAE",
}


@dataclass(frozen=True)
class ComfyNames:
    """{name in ComfyUI's file: published tensors that it is made of}, for each file that a checkpoint alone gives."""

    dit: dict[str, JoinedTensor]
    vlm: dict[str, JoinedTensor]
    projector: dict[str, JoinedTensor]
    redux: dict[str, JoinedTensor]


def comfy_names(published: Iterable[str], config: UniWorldConfig) -> ComfyNames:
    """How ComfyUI calls the tensors of a checkpoint.

    `lm_head` is left out, as ComfyUI's text encoders do not generate, and so is `vae_projector`, which painting does not use.

    Args:
        published: names of the checkpoint's tensors.

    Raises:
        UniWorldError: the DiT is not FLUX's.
    """
    published = list(published)
    denoiser = {key: name for name in published if (key := DENOISER_NAMES.in_module(name)) is not None}
    table = bfl_tensors(denoiser, int(config.denoiser["num_layers"]), int(config.denoiser["num_single_layers"]))
    dit = {
        name: JoinedTensor(tuple(denoiser[part] for part in joined.parts), joined.swap_halves)
        for name, joined in table.items()
    }
    vlm, projector, redux = {}, {}, {}
    for name in published:
        in_qwen, in_projectors = QWEN_NAMES.in_module(name), PROJECTOR_NAMES.in_module(name)
        if in_projectors is not None and in_projectors.startswith("denoise_projector."):
            projector[in_projectors] = JoinedTensor((name,))
        elif in_projectors is not None and in_projectors.startswith("siglip_projector."):
            redux[REDUX_NAMES.in_file(in_projectors)] = JoinedTensor((name,))
        elif in_qwen is not None and not in_qwen.startswith("lm_head."):
            vlm[QWEN_NAMES.in_file(in_qwen)] = JoinedTensor((name,))
    return ComfyNames(dit, vlm, projector, redux)
