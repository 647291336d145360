"""Write a LoRA in the one form that diffusers and ComfyUI apply as trained: diffusers' names, the scale in B, no alpha.

Neither program reads PEFT's configuration, and without alpha both take a scale of 1. A file with alpha tensors is no way out:
diffusers' loader of Qwen-Image refuses them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch

from ..errors import UniWorldError
from ..files import write_atomic
from ..loading.names import some
from .files import FAMILY_KEY, SCALED_METADATA, LoraFile, LoraModule, read_lora
from .matching import NetworkLayers, Target, match

_PREFIX = "transformer."
STORAGES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SUFFIX = ".safetensors"


def convert_lora(
    source: str | Path,
    target: Path,
    alpha: float | None = None,
    storage: str | None = None,
    network: NetworkLayers | None = None,
    skip_text_encoders: bool = False,
) -> LoraFile:
    """Convert a LoRA. The file is written atomically.

    Args:
        source: a safetensors file, or a folder with PEFT's configuration.
        target: the safetensors file to write; it must not exist.
        alpha: replaces alpha of the file and of its configuration.
        storage: one of `STORAGES`. None keeps the dtype of the source, or takes float32 if the scaled matrices do not fit it
            exactly.
        network: the layers of the base model, to which the LoRA is matched. Needed for names of BFL and of kohya's
            scripts, which do not determine diffusers' names.
        skip_text_encoders: leave out modules of text encoders, which are an error otherwise.

    Returns:
        The source, without the modules that were left out.

    Raises:
        UniWorldError: the source is not a plain LoRA or does not fit the network, alpha is given although the scale is in the
            source's weights, the target exists or has another suffix, or values do not fit the storage.
        OSError: the target cannot be written.
    """
    if target.suffix != _SUFFIX:
        raise UniWorldError(f"The target {target} does not end in {_SUFFIX}: a LoRA is one such file.")
    if target.exists():
        raise UniWorldError(f"The target {target} exists already: choose another name, or remove it.")
    if not target.parent.is_dir():
        raise UniWorldError(f"The folder {target.parent} does not exist: create it first.")
    lora = read_lora(source)
    if skip_text_encoders:
        lora = _denoiser_of(lora)
    lora.check_denoiser()
    lora.check_given(alpha)
    targets = match(lora, network) if network is not None else _named_targets(lora)
    floats: dict[str, torch.Tensor] = {}
    dtypes: set[torch.dtype] = set()
    exact = True
    for module, down, up in lora.tensors():
        scaled = up.float() * lora.scale(module, alpha)
        dtypes |= {down.dtype, up.dtype}
        exact = exact and torch.equal(scaled.to(up.dtype).float(), scaled)
        for layer in targets[module.name]:
            floats[f"{_PREFIX}{layer.layer}.lora_A.weight"] = down
            floats[f"{_PREFIX}{layer.layer}.lora_B.weight"] = layer.rows(scaled)
    kept = dtypes.pop() if exact and len(dtypes) == 1 else torch.float32
    dtype = STORAGES[storage] if storage is not None else kept if kept in STORAGES.values() else torch.float32
    write_atomic(target, _file(floats, dtype, lora.family))
    return lora


def _denoiser_of(lora: LoraFile) -> LoraFile:
    modules = {name: module for name, module in lora.modules.items() if not module.of_text_encoder}
    if not modules:
        raise UniWorldError(f"{lora.file} changes only text encoders: use a LoRA of a denoiser.")
    return replace(lora, modules=modules)


def _file(floats: dict[str, torch.Tensor], dtype: torch.dtype, family: str | None) -> bytes:
    from safetensors.torch import save

    stored = {name: tensor.to(dtype).contiguous() for name, tensor in floats.items()}
    for name, tensor in stored.items():
        if not bool(torch.isfinite(tensor.float()).all()):
            raise UniWorldError(f"{name} has values that are not finite as {dtype}: choose another --storage.")
    # Tensors may share memory, such as A of layers that were joined.
    metadata = SCALED_METADATA if family is None else SCALED_METADATA | {FAMILY_KEY: family}
    return save({name: tensor.clone() for name, tensor in stored.items()}, metadata)


def _named_targets(lora: LoraFile) -> dict[str, tuple[Target, ...]]:
    """Take diffusers' names from the file, without knowing the network."""
    foreign = [name for name, module in lora.modules.items() if not _is_diffusers(module)]
    if foreign:
        raise UniWorldError(
            f"{lora.file} has names that do not determine those of diffusers, such as {foreign[0]}: name the base model's "
            "folder with --model."
        )
    twice = [name for name, count in Counter(module.bare for module in lora.modules.values()).items() if count > 1]
    if twice:
        raise UniWorldError(
            f"{lora.file} adapts layers twice, under two names: {some(twice)}. Remove one of each.", twice
        )
    return {name: (Target(module.bare, 0, module.outputs),) for name, module in lora.modules.items()}


def _is_diffusers(module: LoraModule) -> bool:
    return "." in module.bare and not module.bare.startswith(("double_blocks.", "single_blocks.", "lora_"))
