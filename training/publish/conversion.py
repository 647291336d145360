"""Convert a UniWorld checkpoint: for ComfyUI's own loaders, for diffusers and transformers, or to another dtype."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...uniworld_core.backbones.flux_bfl import JoinedTensor
from ...uniworld_core.backbones.qwen_files import QWEN_NAMES, read_processor
from ...uniworld_core.errors import UniWorldError
from ...uniworld_core.families.uniworld_v1 import comfy_files
from ...uniworld_core.families.uniworld_v1.checkpoint import (
    DENOISER_NAMES,
    PROJECTOR_NAMES,
    UniWorldParts,
    check_checkpoint,
)
from ...uniworld_core.families.uniworld_v1.config import VLM_PIXELS
from ...uniworld_core.families.uniworld_v1.projectors import TASK_HEAD_FILE
from ...uniworld_core.loading.encodings import ENCODED, encode, scale_name
from ...uniworld_core.loading.folders import ModelFolders
from ...uniworld_core.loading.names import Names
from ...uniworld_core.loading.parts import NetworkPart
from ...uniworld_core.loading.settings import read_json
from ...uniworld_core.loading.weights import Shards
from .convert import QWEN_TYPE
from .model_folder import SHARD_BYTES, Source, check_apart, copy_settings, index_of, split, write_json
from .processor_files import add_processor_files
from .tensor_file import TensorEntry, TensorFile
from .work_folder import ConvertedFiles, fingerprint, publish

FORMS = ("uniworld", "comfy", "diffusers")
FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Storage types of each format.
STORAGES = {"uniworld": (*FLOATS, *ENCODED), "comfy": (*FLOATS, "fp8"), "diffusers": tuple(FLOATS)}
NAME = "uniworld_v1"

_FP8 = torch.float8_e4m3fn
RECORD = "conversion.json"


@dataclass(frozen=True)
class Conversion:
    """Settings of a conversion.

    Attributes:
        to: one of `FORMS`.
        storage: one of `STORAGES[to]`.
        name: prefix of ComfyUI's files.
        shard_bytes: approximate size of a shard, in formats with shards.
    """

    to: str
    storage: str = "bfloat16"
    name: str = NAME
    shard_bytes: int = SHARD_BYTES


def convert_checkpoint(
    folders: ModelFolders,
    target: Path,
    conversion: Conversion,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Convert a checkpoint, with one tensor in memory at a time. Repeat an interrupted call to resume it.

    Args:
        folders: the checkpoint. For ComfyUI also its FLUX folder, for CLIP and the VAE, and optionally SigLIP.
        target: the folder to create. For ComfyUI the models folder, which may exist; files go into its subfolders.
        conversion: the settings.
        progress: called with the number of written tensors and their total.

    Raises:
        UniWorldError: the checkpoint is damaged, the format does not support the storage type, or the target cannot be
            written.
    """
    if conversion.storage not in STORAGES[conversion.to]:
        raise UniWorldError(
            f"--storage is {conversion.storage}, which --to {conversion.to} does not support: choose one of "
            f"{', '.join(STORAGES[conversion.to])}."
        )
    check_apart(target, vars(folders), conversion.to == "comfy")
    parts = UniWorldParts(folders.checkpoint, folders.flux, folders.siglip)
    parts.check()
    write = {"uniworld": _uniworld, "comfy": _comfy, "diffusers": _diffusers}[conversion.to]
    tensors, rest = write(parts, conversion)
    read = _read_folders(folders, conversion.to)
    about = {
        "to": conversion.to,
        "storage": conversion.storage,
        "source": {name: fingerprint(folder) for name, folder in read.items()},
    }
    record = f"{conversion.name}.{RECORD}" if conversion.to == "comfy" else RECORD
    output = ConvertedFiles(tensors, rest, about, record, list(read.values()))
    publish(output, target, conversion.to == "comfy", progress)


def _read_folders(folders: ModelFolders, to: str) -> dict[str, Path]:
    """Return {name: folder} of all folders whose files a conversion reads."""
    read = {"checkpoint": folders.checkpoint}
    if to == "comfy":
        flux, siglip = folders.flux, folders.siglip
        read |= {} if siglip is None else {"siglip": siglip}
        read |= {} if flux is None else {f"flux/{name}": flux / name for name in ("vae", "text_encoder", "tokenizer")}
    return read


Written = tuple[dict[str, TensorFile], Callable[[Path], None]]
Sources = Mapping[str, Source]  # by published name


def tensor_sources(shards: Shards) -> dict[str, Source]:
    """Return the sources of all tensors of some files, by name."""
    return {name: Source.in_shards(shards, name) for name in shards.shapes}


def _published(parts: UniWorldParts) -> dict[str, Source]:
    """Return all tensors of a checkpoint, whose DiT may be in a file of its own, in other names."""
    dit = parts.network("dit")
    apart = {} if dit.shards is parts.shards else tensor_sources(dit.shards)
    return tensor_sources(parts.shards) | {_published_name(parts, dit, name): source for name, source in apart.items()}


def _published_name(parts: UniWorldParts, part: NetworkPart[Any], name: str) -> str:
    return name if part.shards is parts.shards else DENOISER_NAMES.in_file(part.in_network[name])


def _uniworld(parts: UniWorldParts, conversion: Conversion) -> Written:
    # With 8-bit storage, layers that are not quantized are bfloat16.
    dtype = FLOATS.get(conversion.storage, torch.bfloat16)
    raw = read_json(parts.checkpoint / "config.json") | {"torch_dtype": str(dtype).removeprefix("torch.")}
    quantized = _quantizable(parts) if conversion.storage in ENCODED else frozenset()
    entries: dict[str, TensorEntry] = {}
    sources = _published(parts)
    for name in sources:
        if name in quantized:
            entries |= encoded_entries(sources[name], name, conversion.storage)
        else:
            entries[name] = tensor_entry(sources, (name,), dtype)
    files, index = sharded(entries, "model", conversion)

    def rest(folder: Path) -> None:
        copy_settings(parts.checkpoint, folder, exclude=("config.json", RECORD))
        add_processor_files(folder)
        write_json(folder / "config.json", raw)
        if (parts.checkpoint / TASK_HEAD_FILE).is_file():
            shutil.copyfile(parts.checkpoint / TASK_HEAD_FILE, folder / TASK_HEAD_FILE)
        write_json(folder / "model.safetensors.index.json", index)
        check_checkpoint(folder)

    return files, rest


def _diffusers(parts: UniWorldParts, conversion: Conversion) -> Written:
    dtype = FLOATS[conversion.storage]
    raw = read_json(parts.checkpoint / "config.json")
    homes = (
        ("transformer", "diffusion_pytorch_model", DENOISER_NAMES, lambda key: key),
        ("vlm", "model", QWEN_NAMES, QWEN_NAMES.in_file),
        ("projectors", "diffusion_pytorch_model", PROJECTOR_NAMES, lambda key: key),
    )
    sources = _published(parts)
    files: dict[str, TensorFile] = {}
    indexes: dict[str, dict[str, Any]] = {}
    for home, stem, names, rename in homes:
        entries = {rename(key): tensor_entry(sources, (name,), dtype) for name, key in _of(sources, names).items()}
        shards, index = sharded(entries, stem, conversion)
        files |= {f"{home}/{file}": shard for file, shard in shards.items()}
        indexes[f"{home}/{stem}.safetensors.index.json"] = index

    def rest(folder: Path) -> None:
        for file, index in indexes.items():
            write_json(folder / file, index)
        write_json(folder / "transformer" / "config.json", raw["denoise_tower"]["denoiser_config"])
        copy_settings(parts.checkpoint, folder / "vlm", exclude=("config.json", RECORD))
        add_processor_files(folder / "vlm")
        changed = {"model_type": QWEN_TYPE, "architectures": ["Qwen2_5_VLForConditionalGeneration"]}
        vlm = {key: value for key, value in raw.items() if key != "denoise_tower"} | changed
        write_json(folder / "vlm" / "config.json", vlm | {"torch_dtype": conversion.storage})

    return files, rest


def _comfy(parts: UniWorldParts, conversion: Conversion) -> Written:
    if parts.flux is None:
        raise UniWorldError(
            "Files for ComfyUI contain the pooled empty prompt of the FLUX folder's CLIP: give the folder with --flux."
        )
    fp8 = conversion.storage == "fp8"
    dtype = torch.bfloat16 if fp8 else FLOATS[conversion.storage]
    sources = _published(parts)
    names = comfy_files.comfy_names({name: source.shape for name, source in sources.items()}, parts.config)
    small = torch.float32 if dtype == torch.float32 else torch.bfloat16

    def entries(table: Mapping[str, JoinedTensor], dtype: torch.dtype = dtype) -> dict[str, TensorEntry]:
        return {name: tensor_entry(sources, joined.parts, dtype, joined.swap_halves) for name, joined in table.items()}

    large = _scaled if fp8 else lambda given: given
    files = {
        comfy_files.DIT: TensorFile(large(entries(names.dit))),
        comfy_files.VLM: TensorFile(large(entries(names.vlm))),
        comfy_files.PROJECTOR: TensorFile(
            entries(names.projector, small) | {comfy_files.POOLED_EMPTY: _pooled_empty(parts)},
            {"format": "pt", comfy_files.VLM_PIXELS_KEY: str(_vlm_pixels(parts))},
        ),
        comfy_files.REDUX: TensorFile(entries(names.redux, small)),
        comfy_files.VAE: TensorFile(_all(tensor_sources(Shards(parts.flux / "vae")), small)),
    }
    head = parts["task_head"].load(torch.float32, "cpu")
    if head is not None:
        files[comfy_files.ROUTING] = TensorFile({name: _ready(tensor) for name, tensor in head.state_dict().items()})
    if parts.siglip is not None:
        vision = parts.network("siglip")
        seen = tensor_sources(vision.shards)
        files[comfy_files.SIGLIP] = TensorFile(
            {
                f"vision_model.{key.removeprefix('vision_model.')}": tensor_entry(seen, (name,), small)
                for name, key in vision.in_network.items()
            }
        )
    return {path.format(name=conversion.name): file for path, file in files.items()}, lambda folder: None


def _of(sources: Sources, names: Names) -> dict[str, str]:
    """Return {published name: name in the network} of a part's tensors."""
    return {name: key for name in sources if (key := names.in_module(name)) is not None}


def tensor_entry(
    sources: Sources, names: tuple[str, ...], dtype: torch.dtype, swap_halves: bool = False
) -> TensorEntry:
    """Return the entry of tensors in a dtype, joined by rows."""
    joined = [sources[name] for name in names]
    rows = sum(source.shape[0] for source in joined) if joined[0].shape else None
    shape = joined[0].shape if rows is None else (rows, *joined[0].shape[1:])

    def read() -> torch.Tensor:
        if len(joined) == 1 and not swap_halves:
            return joined[0].read().to(dtype)
        return JoinedTensor(names, swap_halves).join(source.read() for source in joined).to(dtype)

    return TensorEntry(dtype, shape, read)


def _quantizable(parts: UniWorldParts) -> frozenset[str]:
    networks = [parts.network(name) for name in ("vlm", "dit", "projectors")]
    return frozenset(_published_name(parts, part, name) for part in networks for name in part.quantizable)


def encoded_entries(source: Source, name: str, storage: str) -> dict[str, TensorEntry]:
    """Return the entries of a quantized weight: its 8-bit values and a scale per row."""

    def read(part: str) -> torch.Tensor:
        return encode(name, source.read(), storage)[part]

    scale = scale_name(name)
    return {
        name: TensorEntry(ENCODED[storage], source.shape, partial(read, name)),
        scale: TensorEntry(torch.float32, (source.shape[0], 1), partial(read, scale)),
    }


def _all(sources: Sources, dtype: torch.dtype) -> dict[str, TensorEntry]:
    return {name: tensor_entry(sources, (name,), dtype) for name in sources}


def _ready(tensor: torch.Tensor) -> TensorEntry:
    return TensorEntry(tensor.dtype, tuple(tensor.shape), lambda: tensor)


_MIN_SCALE = 1e-12  # lower bound of a scale, for weights that are all zeros
# Embeddings and patch convolutions are not linear layers: ComfyUI reads them without a scale.
_UNSCALED = ("embed_tokens.weight", "patch_embed.proj.weight")


def _scaled(entries: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
    """Convert entries to ComfyUI's float8: weights of linear layers with one scale each; all others are unchanged.

    ComfyUI expects one scale per tensor (`scale_weight`). The tensor `scaled_fp8` marks the file: all weights of its linear
    layers are then float8. With two elements, it also says that activations are not quantized.
    """
    scaled: dict[str, TensorEntry] = {"scaled_fp8": _ready(torch.zeros(2, dtype=_FP8))}
    for name, entry in entries.items():
        if not name.endswith(".weight") or len(entry.shape) != 2 or name.endswith(_UNSCALED):
            scaled[name] = entry
            continue

        def scale(entry: TensorEntry = entry) -> torch.Tensor:
            return _scale(entry.read().float())

        def values(entry: TensorEntry = entry) -> torch.Tensor:
            weight = entry.read().float()
            return (weight / _scale(weight)).to(_FP8)

        scaled[name] = TensorEntry(_FP8, entry.shape, values)
        scaled[f"{name.removesuffix('.weight')}.scale_weight"] = TensorEntry(torch.float32, (), scale)
    return scaled


def _scale(weight: torch.Tensor) -> torch.Tensor:
    """Return the scale that maps a weight's largest absolute value to float8's maximum."""
    return weight.abs().amax().clamp(min=_MIN_SCALE) / torch.finfo(_FP8).max


def _pooled_empty(parts: UniWorldParts) -> TensorEntry:
    """Return CLIP's pooled empty prompt, (pooled width); FLUX always gets it when T5 is off (published: serve/cli.py)."""
    pooled = parts["clip"].load(torch.float32, "cpu").pool([""])[0]
    return _ready(pooled.detach().float().clone())


def _vlm_pixels(parts: UniWorldParts) -> int:
    """Return the number of pixels to which the checkpoint's VLM resizes each picture."""
    processor = read_processor(parts.checkpoint, parts.config.vlm, VLM_PIXELS)
    return int(processor.size["shortest_edge"])


def sharded(
    entries: Mapping[str, TensorEntry], stem: str, conversion: Conversion
) -> tuple[dict[str, TensorFile], dict[str, Any]]:
    """Split entries into shards. Return the files and their index."""
    sizes = {name: entry.size for name, entry in entries.items()}
    shards = split(sizes, conversion.shard_bytes)
    files: dict[str, TensorFile] = {}
    homes: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        files[file] = TensorFile({name: entries[name] for name in names})
        homes |= dict.fromkeys(names, file)
    return files, index_of(homes, sum(sizes.values()))
