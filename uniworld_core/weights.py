"""Modules built without memory, and safetensors read into them shard by shard, strictly.

A module is built with its parameters on the meta device and its small computed buffers (rotary frequencies, position
ids) in memory. Every tensor is then read from its shard straight to the wanted dtype and device, so that a float32
checkpoint is never held: the peak is the loaded module plus the tensor being read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.overrides import TorchFunctionMode

from .config import read_json

KeyMap = Callable[[str], "str | None"]
Module = TypeVar("Module", bound=nn.Module)

# How many names an error lists before it only counts.
_LISTED = 5


class _EmptyOnMeta(TorchFunctionMode):
    """Inside it `torch.empty` gives meta tensors, as layers make their parameters; computed buffers stay real."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Within it, modules are built with their weights on the meta device (this thread only)."""
    with _EmptyOnMeta():
        yield


def build(make: Callable[[], Module]) -> Module:
    """The module that `make` builds, without memory for its parameters, for inference, frozen."""
    with parameters_on_meta():
        module = make()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module.eval()


class Shards:
    """The safetensors files of one model folder, and which tensor lies in which.

    Args:
        folder: holds either `NAME.safetensors.index.json` with its shards, or one `NAME.safetensors`.

    Raises:
        ValueError: no weights there, an index that names absent files, or a file that is cut short.
    """

    NAMES = ("model", "diffusion_pytorch_model")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.files: dict[str, Path] = {}
        for file in self._find():
            with open_shard(file) as shard:
                for name in shard.keys():  # noqa: SIM118  (safe_open is no mapping)
                    self.shapes[name] = tuple(shard.get_slice(name).get_shape())
                    self.files[name] = file

    def _find(self) -> list[Path]:
        for stem in self.NAMES:
            index = self.folder / f"{stem}.safetensors.index.json"
            if index.is_file():
                return self._indexed(index)
            single = self.folder / f"{stem}.safetensors"
            if single.is_file():
                return [single]
        raise ValueError(
            f"{self.folder} holds no weights: expected model.safetensors, diffusion_pytorch_model.safetensors or one of "
            "them in shards with its .safetensors.index.json. Copy the whole folder."
        )

    def _indexed(self, index: Path) -> list[Path]:
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"{index} has no 'weight_map': copy the file again.")
        names = sorted({str(name) for name in weight_map.values()})
        if any(Path(name).name != name for name in names):
            raise ValueError(f"{index} names shards outside its own folder: it is not a published index.")
        absent = [name for name in names if not (self.folder / name).is_file()]
        if absent:
            raise ValueError(
                f"{index.name} in {self.folder} names {len(names)} files, of which {len(absent)} are missing: "
                f"{_some(absent)}. Copy them there too."
            )
        return [self.folder / name for name in names]


def open_shard(file: Path) -> Any:
    """`safe_open` on the CPU, with a ValueError that names the file if it is cut short or no safetensors at all."""
    try:
        return safe_open(str(file), framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{file} cannot be read ({error}): it is cut short or damaged, copy or download it again."
        ) from error


def check(module: nn.Module, shards: Shards, key_map: KeyMap, optional: Iterable[str] = ()) -> None:
    """Hold the names and shapes in `shards` against those of `module`, without reading a tensor.

    Args:
        key_map: from a tensor's name in the file to its name in `module`, or None for one of another part.
        optional: names of `module` that may be absent (tied weights).

    Raises:
        ValueError: names the tensors that are missing, unknown, or of another shape than expected.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {mapped: name for name in shards.shapes if (mapped := key_map(name)) is not None}
    problems = [
        f"{name} in {shards.files[name].name} has shape {_shape(shards.shapes[name])}, expected {_shape(expected[mapped])}"
        for mapped, name in found.items()
        if mapped in expected and shards.shapes[name] != expected[mapped]
    ]
    missing = sorted(set(expected) - set(found) - set(optional))
    unknown = sorted(name for mapped, name in found.items() if mapped not in expected)
    if missing:
        problems.append(f"{len(missing)} tensors are missing: {_some(missing)}")
    if unknown:
        where = sorted({shards.files[name].name for name in unknown})
        problems.append(f"{len(unknown)} tensors are unknown: {_some(unknown)} (in {_some(where)})")
    if problems:
        raise ValueError(
            f"The weights in {shards.folder} do not fit the configuration beside them: {'; '.join(problems[:_LISTED])}. "
            "Use weights and config.json of one and the same checkpoint."
        )


def load(
    module: Module,
    shards: Shards,
    key_map: KeyMap,
    dtype: torch.dtype,
    device: torch.device | str,
    optional: Iterable[str] = (),
) -> Module:
    """Read `shards` into a module made by `build`, one shard at a time, straight to `dtype` and `device`.

    Floating-point tensors take `dtype`; computed buffers keep theirs, as in transformers' own loading.

    Raises:
        ValueError: as `check`.
    """
    check(module, shards, key_map, optional)
    wanted: dict[Path, list[tuple[str, str]]] = {}
    for name, file in shards.files.items():
        mapped = key_map(name)
        if mapped is not None:
            wanted.setdefault(file, []).append((name, mapped))
    for file, names in wanted.items():
        for name, mapped in names:
            # Opened anew for each tensor: as long as a file is mapped, all that was read of it stays in memory.
            with open_shard(file) as shard:
                place(module, mapped, _fresh(shard.get_tensor(name), dtype, device))
    for submodule in module.modules():
        for key, buffer in submodule._buffers.items():
            if buffer is not None and not buffer.is_meta:
                submodule._buffers[key] = buffer.to(device)
    return module


def place(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Put a tensor where `name` says in `module`, in the place of the meta tensor there."""
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if leaf in owner._buffers:
        owner._buffers[leaf] = tensor
    else:
        owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)


def _fresh(tensor: torch.Tensor, dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
    # A tensor that needs no conversion is a view of the mapped file: copied, so that the file can go.
    target = dtype if tensor.is_floating_point() else tensor.dtype
    return tensor.to(device=device, dtype=target, copy=True)


def _shape(shape: tuple[int, ...]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
