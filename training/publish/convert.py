"""Build a starting checkpoint in UniWorld-V1's published format from Qwen2.5-VL and FLUX.1-dev."""

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
from ...uniworld_core.families.uniworld_v1.comfy_files import REDUX_NAMES
from ...uniworld_core.families.uniworld_v1.config import MODEL_TYPE, SIGLIP_WIDTH, UniWorldConfig
from ...uniworld_core.families.uniworld_v1.projectors import TASK_HEAD_FILE, Projectors
from ...uniworld_core.loading.headers import open_shard, read_header
from ...uniworld_core.loading.names import Names
from ...uniworld_core.loading.settings import OBJECT, optional, read_json, take
from ...uniworld_core.loading.weights import Shards
from .model_folder import SHARD_BYTES, Source, check_apart, copy_settings, new_folder, write_json, write_shards
from .processor_files import add_processor_files

QWEN_TYPE = "qwen2_5_vl"

# (prefix in Qwen2.5-VL's files, prefix in UniWorld's). The prefixes of transformers 4.52 and later come first, because
# the older "model." is a prefix of them.
_QWEN_PREFIXES = (
    ("model.visual.", "visual."),
    ("visual.", "visual."),
    ("model.language_model.", "model."),
    ("model.", "model."),
    ("lm_head.", "lm_head."),
)
_QWEN_NAMES = Names(_QWEN_PREFIXES)
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"

# Keys of the published config.json that come from neither base model.
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
# The key of the rotary settings in transformers 4 and in transformers 5.
_ROPE = ("rope_scaling", "rope_parameters")
_MAX_LISTED = 5


@dataclass(frozen=True)
class BaseModels:
    """The models that a starting checkpoint is built from.

    Attributes:
        qwen: a Qwen2.5-VL folder, as saved by transformers or as published by Qwen.
        flux: a FLUX.1-dev folder in diffusers layout; its `transformer/` is read.
        redux: a FLUX.1-Redux file that initializes `siglip_projector`; None initializes it randomly.
        siglip: a SigLIP2 folder that sets the input width of `siglip_projector`. None takes the width of Redux, or the
            published 1152.
        task_head: a `task_head_final.pt`. With None the checkpoint has no routing head until one is trained.
    """

    qwen: Path
    flux: Path
    redux: Path | None = None
    siglip: Path | None = None
    task_head: Path | None = None


def convert(
    models: BaseModels, to: Path, seed: int = 0, dtype: torch.dtype = torch.float32, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write a starting checkpoint: the tensors of Qwen and FLUX unchanged, and randomly initialized projectors.

    Only one shard is in memory at a time. The folder is written atomically, and only if the result can be opened.

    Args:
        models: the base models.
        to: the folder to create; it must not exist.
        seed: seed of the projectors' initialization.
        dtype: dtype of the tensors; the published checkpoint has float32.
        shard_bytes: approximate size of a shard.

    Raises:
        UniWorldError: a folder contains another model, a tensor is missing, unexpected or of the wrong shape, or `to`
            cannot be written.
    """
    check_apart(to, {"Qwen2.5-VL": models.qwen, "flux": models.flux, "siglip": models.siglip})
    raw = base_config(models.qwen, models.flux)
    raw["torch_dtype"] = str(dtype).removeprefix("torch.")
    # A copy, because transformers modifies the dict that it builds a configuration from.
    source = f"the configuration of {models.qwen} and {models.flux}"
    config = UniWorldConfig.from_dict(copy.deepcopy(raw), _siglip_width(models), source)
    sources = {
        **_qwen_sources(models.qwen),
        **_flux_sources(models.flux),
        **_projector_sources(config, seed, models.redux),
    }
    expected = layout(config)
    _check(sources, expected, models)
    read_tokenizer(models.qwen)
    with new_folder(to) as folder:
        copy_settings(models.qwen, folder, exclude=("config.json",))
        add_processor_files(folder)
        write_json(folder / "config.json", raw)
        if models.task_head is not None:
            shutil.copyfile(models.task_head, folder / TASK_HEAD_FILE)
        write_shards(folder, {name: sources[name] for name in expected}, dtype, shard_bytes)
        check_checkpoint(folder)


def base_config(qwen: Path, flux: Path) -> dict[str, object]:
    """Return UniWorld-V1's `config.json` for these two base models.

    Raises:
        UniWorldError: a folder contains another model, or FLUX does not match the VAE in its folder.
    """
    raw = _read_config(qwen)
    if raw.get("model_type") != QWEN_TYPE:
        raise UniWorldError(
            f"{qwen} has model_type {shown(raw.get('model_type'))}, but UniWorld-V1 uses {QWEN_TYPE!r}: give a "
            "Qwen2.5-VL folder."
        )
    # Qwen published a flat file; transformers 4.52 and later nest the language model's keys in `text_config`.
    # Nulls are dropped because transformers 4.56 writes a null image_token_id into `text_config`, which would hide the
    # value on the top level.
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
    """Read the configuration of a Qwen2.5-VL folder. Raises UniWorldError if a section of it is not a JSON object."""
    file = qwen / "config.json"
    raw = read_json(file)
    part = optional(OBJECT)
    take(raw, dict.fromkeys(("text_config", *_ROPE), part), str(file))
    take(raw.get("text_config") or {}, dict.fromkeys(_ROPE, part), f"text_config in {file}")
    return raw


def _without_nulls(raw: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in raw.items() if value is not None}


def _rope(flat: Mapping[str, Any]) -> dict[str, object]:
    """Return the rotary settings under their published names; transformers 5 groups them in `rope_parameters`."""
    scaling = dict(flat.get("rope_parameters") or flat.get("rope_scaling") or {})
    theta = scaling.pop("rope_theta", None) or flat.get("rope_theta")
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    kind = "default" if kind == "mrope" else kind  # the name in the files that Qwen first published
    scaling |= {"rope_type": kind, "type": kind}
    return {"rope_scaling": scaling} | ({} if theta is None else {"rope_theta": theta})


def _denoiser_config(flux: Path) -> dict[str, object]:
    config = read_json(flux / "transformer" / "config.json")
    if config.get("_class_name", "FluxTransformer2DModel") != "FluxTransformer2DModel":
        kind = shown(config["_class_name"]).strip("'")
        raise UniWorldError(f"{flux / 'transformer'} contains a {kind}: give a FLUX.1-dev folder in diffusers layout.")
    if (flux / "vae" / "config.json").is_file():
        channels = read_json(flux / "vae" / "config.json").get("latent_channels")
        if isinstance(channels, int) and config.get("in_channels") != channels * FLUX_LATENTS.pack**2:
            raise UniWorldError(
                f"{flux / 'transformer'} takes {shown(config.get('in_channels'))} channels, but packed latents of the VAE "
                f"in {flux} have {channels * FLUX_LATENTS.pack**2}. This is another FLUX model, such as Fill: give FLUX.1-dev."
            )
    return config


def _qwen_sources(folder: Path) -> dict[str, Source]:
    shards = Shards(folder)
    sources = {_QWEN_NAMES.in_module(name) or name: Source.in_shards(shards, name) for name in shards.shapes}
    # Small Qwen models tie the output head to the embedding; a UniWorld checkpoint stores both.
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
    """Return the projectors with torch's initialization of linear layers; Redux replaces the SigLIP one if given."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tensors = dict(Projectors(config).state_dict())
    if redux is not None:
        tensors |= read_redux(redux)
    return {PROJECTOR_NAMES.in_file(name): Source.of(tensor) for name, tensor in tensors.items()}


def read_redux(file: Path) -> dict[str, torch.Tensor]:
    """Read the four tensors of `siglip_projector`, named as in `Projectors`, from a FLUX.1-Redux file.

    Raises:
        UniWorldError: the file is not a FLUX.1-Redux file.
    """
    names = {name: REDUX_NAMES.in_module(name) for name in read_header(file)}
    with open_shard(file) as shard:
        tensors = {key: shard.get_tensor(name) for name, key in names.items() if key is not None}
    if len(tensors) != 4 or len(names) != 4:
        raise UniWorldError(
            f"{file} contains {sorted(names)[:_MAX_LISTED]}, but FLUX.1-Redux has weight and bias of redux_up and "
            "redux_down: give flux1-redux-dev.safetensors."
        )
    return tensors


def _siglip_width(models: BaseModels) -> int:
    if models.siglip is not None:
        return int(siglip_settings(models.siglip)["hidden_size"])
    if models.redux is not None:
        return int(read_redux(models.redux)["siglip_projector.0.weight"].shape[1])
    return SIGLIP_WIDTH


def _check(sources: Mapping[str, Source], expected: Mapping[str, tuple[int, ...]], models: BaseModels) -> None:
    """Check names and shapes of the sources against the checkpoint's layout. Raises UniWorldError on a mismatch."""
    problems = [f"{_origin(name, models)} has no {name}" for name in expected if name not in sources]
    problems += [
        f"{_origin(name, models)} contains {name}, which does not belong to the model"
        for name in sources
        if name not in expected
    ]
    problems += [
        f"{name} in {_origin(name, models)} has shape {list(source.shape)}, expected {list(expected[name])}"
        for name, source in sources.items()
        if name in expected and source.shape != expected[name]
    ]
    if problems:
        more = f"; and {len(problems) - _MAX_LISTED} more" if len(problems) > _MAX_LISTED else ""
        raise UniWorldError(
            f"Cannot build a UniWorld checkpoint from these models: {'; '.join(problems[:_MAX_LISTED])}{more}. "
            "Make sure that the config.json in each folder belongs to its weights."
        )


def _origin(name: str, models: BaseModels) -> Path:
    """Return the folder or file that a published tensor name is read from, for error messages."""
    if DENOISER_NAMES.in_module(name) is not None:
        return models.flux / "transformer"
    return models.redux or models.qwen if PROJECTOR_NAMES.in_module(name) is not None else models.qwen
