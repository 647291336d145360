"""Quantized weights in safetensors files: find the tensors that belong to a weight, and decode and encode them.

The supported formats are bitsandbytes' NF4, with or without double quantization, and float8 or int8 with a scale. The scale
is named `X.weight_scale`, as in compressed-tensors and ComfyUI, or `X.scale_weight`, as in older files of ComfyUI. `encode`
writes `X.weight_scale`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..errors import UniWorldError, shown
from .quantized import (
    FP8,
    NF4Tensor,
    ScaledTensor,
    StoredTensor,
    bitsandbytes,
    nf4_blocks,
    nf4_values,
    quantize_fp8,
    quantize_int8,
)
from .settings import listed, number, parse_json, take, whole

# Names of dtypes in a safetensors header.
FLOATS = ("F64", "F32", "F16", "BF16")
_FLOAT8 = ("F8_E4M3", "F8_E5M2")
_INT8 = "I8"
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, **dict.fromkeys((*_FLOAT8, _INT8, "U8"), 1)}

_WEIGHT = ".weight"
_TABLE = "embed_tokens.weight"  # not a linear layer: ComfyUI reads it without a scale
SCALE = ".weight_scale"
_SCALES = (SCALE, ".scale_weight")
# Scales of activations, which only float8 matrix products need, and ComfyUI's description of a layer.
_UNUSED = (".input_scale", ".scale_input", ".comfy_quant")
# The tensor that marks older files of ComfyUI in which all weights have scales.
_SCALED_MARK = "scaled_fp8"
_BLOCK_SCALE = ".weight_scale_inv"  # DeepSeek's: one scale for each block of 128 by 128 weights
_NF4_STATE = ".quant_state.bitsandbytes__nf4"
_FP4_STATE = ".quant_state.bitsandbytes__fp4"
_NF4_PARTS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")
_MAX_STATE = 4096  # bytes of a state; bitsandbytes writes under 200
_MAP_ERROR = 2**-8  # of bfloat16, in which a table may be stored
_NF4_BLOCKS = (64, 128, 256, 512, 1024, 2048, 4096)
_STATE = {
    "blocksize": whole(32, 2**16),
    "shape": listed(whole(1, 2**24), 2, 2),
    "nested_blocksize": whole(1, 2**16),
    "nested_offset": number(-1e6, 1e6),
}


@dataclass(frozen=True)
class Encoding:
    """How one quantized weight is stored.

    Attributes:
        shape: shape of the dequantized weight.
        parts: its other tensors, {role: name in the files}, such as {"scale": "X.weight_scale"}.
        state: the settings of an NF4 weight; None for an 8-bit weight.
    """

    shape: tuple[int, ...]
    parts: Mapping[str, str]
    state: Mapping[str, float] | None = None

    def decode(self, values: torch.Tensor, parts: Mapping[str, torch.Tensor]) -> StoredTensor:
        """Return the weight, given the tensor of its values and its other tensors as stored in the files."""
        if self.state is None:
            scale = parts.get("scale")
            if scale is None:
                return ScaledTensor(values, None)
            return ScaledTensor(values, scale.to(torch.float32).reshape(() if scale.numel() == 1 else (-1, 1)))
        absmax = parts["absmax"]
        if "nested_absmax" in parts:
            absmax = self._unnest(absmax, parts["nested_absmax"], parts["nested_quant_map"])
        return NF4Tensor(values, absmax.to(torch.float32), int(self.state["blocksize"]), torch.Size(self.shape))

    def _unnest(self, absmax: torch.Tensor, scales: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        assert self.state is not None
        values = bitsandbytes().functional.dequantize_blockwise(
            absmax, absmax=scales, code=code, blocksize=int(self.state["nested_blocksize"])
        )
        return values + self.state["nested_offset"]


@dataclass
class Encodings:
    """The quantized weights of a folder.

    Attributes:
        weights: {name: encoding}.
        absorbed: names of the tensors that are read together with a weight, or ignored.
    """

    weights: dict[str, Encoding] = field(default_factory=dict)
    absorbed: set[str] = field(default_factory=set)


def find_encodings(
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, str],
    files: Mapping[str, Path],
    read: Callable[[str], torch.Tensor],
) -> Encodings:
    """Find the quantized weights in the files of a folder.

    Args:
        shapes, dtypes, files: shape, dtype and file of each tensor, from the headers.
        read: reads a small tensor from the files.

    Raises:
        UniWorldError: a scale or state is missing, damaged or of a wrong shape, or the format is not supported.
    """
    found = Encodings()
    marked = {name for name in shapes if name.rpartition(".")[2] == _SCALED_MARK}
    found.absorbed |= marked
    for name, dtype in dtypes.items():
        if dtype == "U8" and name + _NF4_STATE in shapes:
            bitsandbytes()  # reports a missing library when the model is opened, not when it is loaded
            found.weights[name] = _nf4(name, shapes, dtypes, read)
            found.absorbed |= {name + part for part in (_NF4_STATE, *_NF4_PARTS)} & shapes.keys()
        elif dtype == "U8" and name + _FP4_STATE in shapes:
            raise UniWorldError(f"{name} is stored as bitsandbytes' fp4: use a checkpoint in nf4.")
        elif dtype in (*_FLOAT8, _INT8):
            stem = name.removesuffix(_WEIGHT)
            found.weights[name] = _scaled(name, stem, shapes, dtypes, bool(marked))
            found.absorbed |= {stem + part for part in (*_SCALES, *_UNUSED)} & shapes.keys()
    _check_scales(found, files)
    return found


def _check_scales(found: Encodings, files: Mapping[str, Path]) -> None:
    """Raise UniWorldError if a float8 weight has no scale, although others in its file have one: it would count as 1."""
    scaled: dict[Path, str] = {}
    for name, encoding in found.weights.items():
        if "scale" in encoding.parts:
            scaled.setdefault(files[name], name)
    for name, encoding in found.weights.items():
        linear = name.endswith(_WEIGHT) and len(encoding.shape) == 2 and not name.endswith(_TABLE)
        if linear and encoding.state is None and not encoding.parts and files[name] in scaled:
            raise UniWorldError(
                f"{name} in {files[name].name} is stored as float8 and has no scale, but {scaled[files[name]]} has one: copy "
                "or convert the files again."
            )


def encode(name: str, weight: torch.Tensor, storage: str) -> dict[str, torch.Tensor]:
    """Quantize a linear layer's weight, and return the tensors to store by name: 8-bit values, and one scale per row.

    Args:
        name: name of the weight, ending in ".weight".
        weight: (rows, columns), floating point.
        storage: "int8" or "fp8".
    """
    scaled = (quantize_int8 if storage == "int8" else quantize_fp8)(weight)
    assert scaled.scale is not None
    return {name: scaled.values, scale_name(name): scaled.scale}


def scale_name(weight: str) -> str:
    """Return the name under which `encode` stores the scale of a weight: float32, (rows, 1)."""
    return weight.removesuffix(_WEIGHT) + SCALE


# Dtype of the values that `encode` returns, by storage.
ENCODED = {"int8": torch.int8, "fp8": FP8}


def _scaled(
    name: str, stem: str, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str], marked: bool
) -> Encoding:
    shape, dtype = shapes[name], dtypes[name]
    if stem + _BLOCK_SCALE in shapes:
        raise UniWorldError(
            f"{name} has a scale for each block of weights ({stem + _BLOCK_SCALE}), which is not supported: use files "
            "with one scale per row or per tensor."
        )
    scale = next((stem + end for end in _SCALES if stem + end in shapes), None)
    if scale is None:
        # Old float8 files have no scales; int8 values need one.
        if dtype == _INT8 or (marked and name.endswith(_WEIGHT) and len(shape) == 2):
            raise UniWorldError(
                f"{name} is stored as {dtype} and its scale {stem + SCALE} is missing: copy or convert the files again."
            )
        return Encoding(shape, {})
    rows = shape[0] if len(shape) == 2 else 1
    if math.prod(shapes[scale]) not in (1, rows) or dtypes[scale] not in FLOATS:
        raise UniWorldError(
            f"{scale} has shape {list(shapes[scale])} and type {dtypes[scale]}, expected one float for {name} or one for each "
            f"of its {rows} rows: copy or convert the files again."
        )
    return Encoding(shape, {"scale": scale})


def _nf4(
    name: str,
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, str],
    read: Callable[[str], torch.Tensor],
) -> Encoding:
    state_name, what = name + _NF4_STATE, f"{name}{_NF4_STATE}"
    if dtypes[state_name] != "U8" or math.prod(shapes[state_name]) > _MAX_STATE:
        raise UniWorldError(f"{what} is not a valid bitsandbytes state: copy the files again.")
    state = take(parse_json(bytes(read(state_name).flatten().tolist()), what), _STATE, what, ("blocksize", "shape"))
    shape, nested = tuple(state["shape"]), "nested_blocksize" in state
    if state["blocksize"] not in _NF4_BLOCKS:
        raise UniWorldError(f"{what} has blocksize {shown(state['blocksize'])}, expected one of {list(_NF4_BLOCKS)}.")
    blocks = nf4_blocks(shape, state["blocksize"])
    expected = {".absmax": blocks, ".quant_map": 16}
    if nested:
        if "nested_offset" not in state:
            raise UniWorldError(f"{what} has no nested_offset: copy the files again.")
        expected |= {".nested_absmax": math.ceil(blocks / state["nested_blocksize"]), ".nested_quant_map": 256}
    counts = {part: math.prod(shapes[name + part]) if name + part in shapes else None for part in expected}
    for part, count in counts.items():
        if count != expected[part]:
            has = "is missing" if count is None else f"has {count} values, expected {expected[part]}"
            raise UniWorldError(f"{name + part} {has}: copy the files again.")
    for part in expected:
        types = ("U8",) if nested and part == ".absmax" else FLOATS
        if dtypes[name + part] not in types:
            raise UniWorldError(
                f"{name + part} has type {dtypes[name + part]}, expected {' or '.join(types)}: copy the files again."
            )
    if math.prod(shapes[name]) != math.ceil(math.prod(shape) / 2):
        raise UniWorldError(
            f"{name} has {math.prod(shapes[name])} bytes, but a 4-bit weight of shape {list(shape)} has "
            f"{math.ceil(math.prod(shape) / 2)}: copy the files again."
        )
    if not torch.allclose(read(name + ".quant_map").float().flatten(), nf4_values(), rtol=0, atol=_MAP_ERROR):
        raise UniWorldError(
            f"{name}.quant_map does not hold the 16 values of NF4, so the weight is in another 4-bit format, or damaged: use a "
            "checkpoint in nf4."
        )
    parts = {part[1:]: name + part for part in expected}
    return Encoding(shape, parts, {key: value for key, value in state.items() if key != "shape"})
