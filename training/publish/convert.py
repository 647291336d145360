"""A fresh start checkpoint in UniWorld-V1's published format, out of Qwen2.5-VL and FLUX.1-dev."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...uniworld_core.backbones.flux_latents import FLUX_LATENTS
from ...uniworld_core.backbones.qwen_config import TEXT_KEYS
from ...uniworld_core.backbones.qwen_files import read_tokenizer
from ...uniworld_core.backbones.siglip import siglip_settings
from ...uniworld_core.errors import UniWorldError, shown
from ...uniworld_core.families.uniworld_v1.checkpoint import DENOISER_NAMES, PROJECTOR_NAMES, check_checkpoint, layout
from ...uniworld_core.families.uniworld_v1.config import MODEL_TYPE, SIGLIP_WIDTH, UniWorldConfig
from ...uniworld_core.families.uniworld_v1.projectors import TASK_HEAD_FILE, Projectors
from ...uniworld_core.loading.settings import OBJECT, optional, read_json, take
from ...uniworld_core.loading.weights import Names, Shards, open_shard, read_header
from ..objective.names import REDUX_NAMES
from .model_folder import SHARD_BYTES, Source, copy_settings, new_folder, write_json, write_shards
from .processor_files import complete

QWEN_TYPE = "qwen2_5_vl"

# Qwen2.5-VL's prefixes (in its files, in UniWorld's): those that transformers 4.52 and later use inside come first,
# since "model." begins both.
_QWEN_PREFIXES = (
    ("model.visual.", "visual."),
    ("visual.", "visual."),
    ("model.language_model.", "model."),
    ("model.", "model."),
    ("lm_head.", "lm_head."),
)
_QWEN_NAMES = Names(_QWEN_PREFIXES)
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"

# What the published configuration carries besides its parts' own (UniWorld-V1's config.json).
_PUBLISHED: dict[str, object] = {
    "architectures": ["UnivaQwen2p5VLForConditionalGeneration"],
    "image_token_length": None,
    "model_type": MODEL_TYPE,
    "shortcut_image_embeds": False,
    "shortcut_image_embeds_scale": 0.5,
    "shortcut_projector_type": None,
    "tie_word_embeddings": False,
}
_TOKENS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id", "vision_token_id")
# Where a configuration keeps its rotary settings: in its own name for each half of transformers' versions.
_ROPE = ("rope_scaling", "rope_parameters")
_LISTED = 5


@dataclass(frozen=True)
class Parts:
    """What a start checkpoint is made of.

    Attributes:
        qwen: a Qwen2.5-VL folder, as transformers saves it or as Qwen published it.
        flux: a FLUX.1-dev folder in diffusers layout; its `transformer/` is read.
        redux: a FLUX.1-Redux file, for the siglip_projector; None draws that one as well.
        siglip: a SigLIP2 folder, whose width the siglip_projector takes; None takes Redux's, or the published 1152.
        task_head: a `task_head_final.pt`; None leaves routing out until one is trained.
    """

    qwen: Path
    flux: Path
    redux: Path | None = None
    siglip: Path | None = None
    task_head: Path | None = None


def convert(
    parts: Parts, to: Path, seed: int = 0, dtype: torch.dtype = torch.float32, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write a checkpoint that training starts from: Qwen's and FLUX's tensors as they are, projectors freshly drawn.

    One shard is held in memory at a time. The folder appears whole, and only if it can be opened.

    Args:
        to: the folder to make; it must not be there.
        seed: of the projectors.
        dtype: of the tensors; published is float32.
        shard_bytes: about the size of a shard.

    Raises:
        UniWorldError: a folder is of another model, a tensor is missing, too many or of a shape that does not fit, or
            `to` cannot be written.
    """
    raw = start_config(parts.qwen, parts.flux)
    raw["torch_dtype"] = str(dtype).removeprefix("torch.")
    # Copied, since transformers writes into what a configuration is built of.
    source = f"the configuration of {parts.qwen} and {parts.flux}"
    config = UniWorldConfig.from_dict(copy.deepcopy(raw), _siglip_width(parts), source)
    sources = {
        **_qwen_sources(parts.qwen),
        **_flux_sources(parts.flux),
        **_projector_sources(config, seed, parts.redux),
    }
    expected = layout(config)
    _check(sources, expected, parts)
    read_tokenizer(parts.qwen)
    with new_folder(to) as folder:
        copy_settings(parts.qwen, folder, but=("config.json",))
        complete(folder)
        write_json(folder / "config.json", raw)
        if parts.task_head is not None:
            shutil.copyfile(parts.task_head, folder / TASK_HEAD_FILE)
        write_shards(folder, {name: sources[name] for name in expected}, dtype, shard_bytes)
        check_checkpoint(folder)


def start_config(qwen: Path, flux: Path) -> dict[str, object]:
    """The `config.json` of UniWorld-V1 for these two base models.

    Raises:
        UniWorldError: a folder is of another model, or FLUX does not fit the VAE beside it.
    """
    raw = _read_config(qwen)
    if raw.get("model_type") != QWEN_TYPE:
        raise UniWorldError(
            f"{qwen} is of model_type {shown(raw.get('model_type'))}; UniWorld-V1 reads with {QWEN_TYPE!r}: give a "
            "Qwen2.5-VL folder."
        )
    # Flat as Qwen published it; from transformers 4.52 on the language model's own keys lie in `text_config`.
    # What is null in one may stand in the other: transformers 4.56 writes a null image_token_id into `text_config`.
    flat = _without_nulls(raw) | _without_nulls(raw.get("text_config") or {})
    text = {key: flat[key] for key in TEXT_KEYS if key in flat}
    tokens = {key: flat[key] for key in _TOKENS if key in flat}
    if "vision_start_token_id" in tokens and "vision_end_token_id" in tokens:
        tokens["image_begin_token_id"] = tokens["vision_start_token_id"]
        tokens["image_end_token_id"] = tokens["vision_end_token_id"]
    denoiser = _denoiser_config(flux)
    tower = {
        "denoise_projector_type": "mlp2x_gelu",
        "denoiser_config": denoiser,
        "denoiser_type": "flux",
        "input_hidden_size": flat.get("hidden_size"),
        "model_type": "univa_denoise_tower",
        "output_hidden_size": denoiser.get("joint_attention_dim"),
        "vae_input_hidden_size": denoiser.get("in_channels"),
        "vae_projector_type": "mlp2x_gelu",
    }
    vision = raw.get("vision_config")
    return {**text, **tokens, **_rope(flat), **_PUBLISHED, "vision_config": vision, "denoise_tower": tower}


def _read_config(qwen: Path) -> dict[str, Any]:
    """A Qwen2.5-VL folder's configuration. Raises UniWorldError if a part of it is no object."""
    file = qwen / "config.json"
    raw = read_json(file)
    part = optional(OBJECT)
    take(raw, dict.fromkeys(("text_config", *_ROPE), part), str(file))
    take(raw.get("text_config") or {}, dict.fromkeys(_ROPE, part), f"text_config in {file}")
    return raw


def _without_nulls(raw: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in raw.items() if value is not None}


def _rope(flat: Mapping[str, Any]) -> dict[str, object]:
    """Rotary settings under their published names; transformers 5 keeps them together in `rope_parameters`."""
    scaling = dict(flat.get("rope_parameters") or flat.get("rope_scaling") or {})
    theta = scaling.pop("rope_theta", None) or flat.get("rope_theta")
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    kind = "default" if kind == "mrope" else kind  # Qwen's first name for it
    scaling |= {"rope_type": kind, "type": kind}
    return {"rope_scaling": scaling} | ({} if theta is None else {"rope_theta": theta})


def _denoiser_config(flux: Path) -> dict[str, object]:
    config = read_json(flux / "transformer" / "config.json")
    if config.get("_class_name", "FluxTransformer2DModel") != "FluxTransformer2DModel":
        kind = shown(config["_class_name"]).strip("'")
        raise UniWorldError(f"{flux / 'transformer'} holds a {kind}; give a FLUX.1-dev folder in diffusers layout.")
    if (flux / "vae" / "config.json").is_file():
        channels = read_json(flux / "vae" / "config.json").get("latent_channels")
        if isinstance(channels, int) and config.get("in_channels") != channels * FLUX_LATENTS.pack**2:
            raise UniWorldError(
                f"{flux / 'transformer'} takes {shown(config.get('in_channels'))} channels, and packed latents of the VAE "
                f"beside it have {channels * FLUX_LATENTS.pack**2}: this is FLUX of another kind (such as Fill); give FLUX.1-dev."
            )
    return config


def _qwen_sources(folder: Path) -> dict[str, Source]:
    shards = Shards(folder)
    sources = {_QWEN_NAMES.in_module(name) or name: Source.in_shards(shards, name) for name in shards.shapes}
    # Small Qwens share one matrix between embedding and head; a UniWorld checkpoint has both.
    if _HEAD not in sources and _EMBEDDING in sources and _is_tied(folder):
        sources[_HEAD] = sources[_EMBEDDING]
    return sources


def _is_tied(folder: Path) -> bool:
    raw = _read_config(folder)
    return bool(raw.get("tie_word_embeddings", (raw.get("text_config") or {}).get("tie_word_embeddings")))


def _flux_sources(flux: Path) -> dict[str, Source]:
    shards = Shards(flux / "transformer")
    return {DENOISER_NAMES.in_file(name): Source.in_shards(shards, name) for name in shards.shapes}


def _projector_sources(config: UniWorldConfig, seed: int, redux: Path | None) -> dict[str, Source]:
    """Projectors as torch draws linear layers, and the SigLIP one out of Redux's file if there is one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tensors = dict(Projectors(config).state_dict())
    if redux is not None:
        tensors |= read_redux(redux)
    return {PROJECTOR_NAMES.in_file(name): Source.of(tensor) for name, tensor in tensors.items()}


def read_redux(file: Path) -> dict[str, torch.Tensor]:
    """The siglip_projector's four tensors, under their names in `Projectors`, out of a FLUX.1-Redux file.

    Raises:
        UniWorldError: it is no such file.
    """
    names = {name: REDUX_NAMES.in_module(name) for name in read_header(file)}
    with open_shard(file) as shard:
        tensors = {key: shard.get_tensor(name) for name, key in names.items() if key is not None}
    if len(tensors) != 4 or len(names) != 4:
        raise UniWorldError(
            f"{file} holds {sorted(names)[:_LISTED]}; FLUX.1-Redux has redux_up and redux_down, weight and bias each: "
            "give flux1-redux-dev.safetensors."
        )
    return tensors


def _siglip_width(parts: Parts) -> int:
    if parts.siglip is not None:
        return int(siglip_settings(parts.siglip)["hidden_size"])
    if parts.redux is not None:
        return int(read_redux(parts.redux)["siglip_projector.0.weight"].shape[1])
    return SIGLIP_WIDTH


def _check(sources: Mapping[str, Source], expected: Mapping[str, tuple[int, ...]], parts: Parts) -> None:
    """Raise UniWorldError unless what there is has the names and shapes of what is to be written."""
    problems = [f"{_home(name, parts)} has no {name}" for name in expected if name not in sources]
    problems += [f"{_home(name, parts)} holds {name}, which is of no part" for name in sources if name not in expected]
    problems += [
        f"{name} of {_home(name, parts)} has shape {list(source.shape)}, expected {list(expected[name])}"
        for name, source in sources.items()
        if name in expected and source.shape != expected[name]
    ]
    if problems:
        more = f"; and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise UniWorldError(
            f"No UniWorld checkpoint can be made of these: {'; '.join(problems[:_LISTED])}{more}. "
            "Use weights and config.json of one and the same model each."
        )


def _home(name: str, parts: Parts) -> Path:
    if DENOISER_NAMES.in_module(name) is not None:
        return parts.flux / "transformer"
    return parts.redux or parts.qwen if PROJECTOR_NAMES.in_module(name) is not None else parts.qwen
