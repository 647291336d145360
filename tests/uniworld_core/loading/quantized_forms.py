"""Small model folders in the forms in which people have quantized ones: written from the shipped models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from uniworld.uniworld_core.families.uniworld_v1.checkpoint import UniWorldParts
from uniworld.uniworld_core.loading.encodings import encode
from uniworld.uniworld_core.loading.shipped import ShippedModel, shipped_model

Form = Callable[[str, torch.Tensor], dict[str, torch.Tensor]]


def int8(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """As `uniworld convert --storage int8` writes it."""
    return encode(name, weight, "int8")


def fp8_rows(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """As `uniworld convert --storage fp8` writes it."""
    return encode(name, weight, "fp8")


def fp8_plain(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """As ComfyUI's users save it: cast, without a scale."""
    return {name: weight.to(torch.float8_e4m3fn)}


def fp8_scaled(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """As ComfyUI's older "scaled fp8" files have it: one scale, and one for activations."""
    scale = weight.float().abs().max() / 448
    stem = name.removesuffix(".weight")
    values = (weight.float() / scale).to(torch.float8_e4m3fn)
    return {name: values, f"{stem}.scale_weight": scale, f"{stem}.scale_input": torch.ones(())}


def nf4(name: str, weight: torch.Tensor, nested: bool = False) -> dict[str, torch.Tensor]:
    """As transformers saves bitsandbytes' NF4 (`wikeeyang/UniWorld-V1-NF4`)."""
    functional = pytest.importorskip("bitsandbytes", reason="the extra nf4 is not installed").functional
    packed, state = functional.quantize_4bit(weight.float(), quant_type="nf4", compress_statistics=nested)
    return {name: packed, **{f"{name}.{key}": value for key, value in state.as_dict(packed=True).items()}}


def nf4_nested(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """As diffusers and transformers save it with double quantization."""
    return nf4(name, weight, nested=True)


def rewrite(folder: Path, form: Form, wanted: Callable[[str, torch.Tensor], bool]) -> None:
    """Rewrite the files of a folder: tensors that are `wanted` in that form, the others in bfloat16."""
    weight_map: dict[str, str] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors: dict[str, torch.Tensor] = {}
        for name, tensor in load_file(file).items():
            tensors |= form(name, tensor) if wanted(name, tensor) else {name: tensor.to(torch.bfloat16)}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
        weight_map |= dict.fromkeys(tensors, file.name)
    for index in folder.glob("*.safetensors.index.json"):
        index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8")


def copy_model(name: str, to: Path) -> ShippedModel:
    """A copy of a shipped model that may be changed."""
    source = shipped_model(name)
    assert source is not None
    for kind in ("uniworld", "flux", "siglip"):
        shutil.copytree(source.checkpoint.parent / kind, to / kind)
    return ShippedModel(to / "uniworld", to / "flux", to / "siglip")


def quantized_copy(name: str, to: Path, form: Form, everything: bool = False) -> ShippedModel:
    """A copy of a shipped model whose checkpoint is in that form.

    Args:
        everything: quantize every linear layer but `lm_head`, as bitsandbytes does, and not only what `convert` does.
    """
    model = copy_model(name, to)
    parts = UniWorldParts(model.checkpoint)
    names = frozenset().union(*(parts.network(part).quantizable for part in ("vlm", "dit", "projectors")))

    def wanted(tensor: str, value: torch.Tensor) -> bool:
        if not everything:
            return tensor in names
        linear = value.ndim == 2 and tensor.endswith(".weight")
        return linear and not tensor.endswith(("lm_head.weight", "embed_tokens.weight"))

    rewrite(model.checkpoint, form, wanted)
    return model
