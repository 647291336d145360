"""Modules built without memory, and safetensors read into them shard by shard, strictly.

A module is built with its parameters on the meta device and its small computed buffers (rotary frequencies, position
ids) in memory. Every tensor is then read from its shard straight to the wanted dtype and device, so that a float32
checkpoint is never held: the peak is the loaded module plus the tensor being read. Pages of the shard that is mapped
meanwhile are the system's, which takes them back when it needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.overrides import TorchFunctionMode

from ..errors import UniWorldError, brief, shown
from .settings import check_file, parse_json, read_json

Module = TypeVar("Module", bound=nn.Module)

# How many names an error lists before it only counts.
LISTED = 5
# Of all safetensors files of a folder together, bytes of headers and tensors, and files of one index: UniWorld-V1 in
# float32 has 200 kB, under 2,000 and under twenty.
_MAX_HEADERS = 4 * 2**20
_MAX_TENSORS = 20_000
_MAX_SHARDS = 1000
_MAX_NAME = 512  # letters of a tensor's name


@dataclass(frozen=True)
class Names:
    """How a part's tensors are called: a table of prefixes, in files and in the module.

    Attributes:
        prefixes: (in files, in the module); a name with none of the first is of another part. Of several that a name in
            a file begins with the longest counts; for a name in the module the first, which is the published one.
        left_out: ends of names in files that are not read, since the module computes them.
    """

    prefixes: tuple[tuple[str, str], ...]
    left_out: tuple[str, ...] = ()

    def in_module(self, name: str) -> str | None:
        """From a tensor's name in a file to its name in the module, or None if it is of another part."""
        if name.endswith(self.left_out) and self.left_out:
            return None
        fitting = [pair for pair in self.prefixes if name.startswith(pair[0])]
        if not fitting:
            return None
        in_file, in_module = max(fitting, key=lambda pair: len(pair[0]))
        return in_module + name[len(in_file) :]

    def in_file(self, name: str) -> str:
        """From a tensor's name in the module to its name in a file. Raises UniWorldError if the table has none."""
        for in_file, in_module in self.prefixes:
            if name.startswith(in_module):
                return in_file + name[len(in_module) :]
        raise UniWorldError(f"The module's tensor {name} has no name in a file.")


SAME_NAMES = Names((("", ""),))


class _EmptyOnMeta(TorchFunctionMode):
    """Inside it `torch.empty` gives meta tensors, as layers make their parameters; computed buffers stay real.

    accelerate's `init_empty_weights(include_buffers=False)` allocates each parameter before it moves it to meta, and
    replaces `nn.Module.register_parameter` for all threads while another one may be building a module of its own.
    """

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


def build(make: Callable[[], Module], source: str | Path = "the configuration") -> Module:
    """The module that `make` builds, without memory for its parameters, for inference, frozen.

    Args:
        source: where its configuration comes from, for the error.

    Raises:
        UniWorldError: the configuration cannot be built.
    """
    try:
        with parameters_on_meta():
            module = make()
    except Exception as error:  # transformers and diffusers raise all kinds on values they do not expect
        raise UniWorldError(
            f"No model can be built of {source} ({type(error).__name__}: {brief(error)}): a value in it is damaged, "
            "take the published file."
        ) from error
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module.eval()


class Shards:
    """The safetensors files of one model folder, and which tensor lies in which.

    Args:
        folder: holds either `NAME.safetensors.index.json` with its shards, or one `NAME.safetensors`.

    Raises:
        UniWorldError: no weights there, an index that names absent files, a file that is cut short or holds nothing of what the
            index says, a tensor in two files, or more headers and tensors than a model has.
    """

    NAMES = ("model", "diffusion_pytorch_model")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self.files: dict[str, Path] = {}
        self._index: dict[str, str] = {}
        files, room = self._find(), Room()
        indexed: dict[str, set[str]] = {}
        for name, in_file in self._index.items():
            indexed.setdefault(in_file, set()).add(name)
        for file in files:
            header = read_header(file, room)
            if (expected := indexed.get(file.name)) and expected.isdisjoint(header):
                raise UniWorldError(
                    f"{file} holds none of the tensors that the index beside it names for it ({some(sorted(expected))}): "
                    "index and files are of two checkpoints, copy the folder again."
                )
            for name, (dtype, shape) in header.items():
                if name in self.files:
                    raise UniWorldError(
                        f"{name} stands in both {self.files[name].name} and {file.name} of {folder}: "
                        "files of two checkpoints are mixed, copy the folder again."
                    )
                self.shapes[name], self.dtypes[name], self.files[name] = shape, dtype, file

    def home(self, name: str) -> str:
        """The tensor's name with the file that should hold it, where the index says."""
        return f"{name} (of {self._index[name]})" if name in self._index else name

    def read(self, names: Iterable[str], first_row: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, tensor) of these tensors on the CPU, file by file, each file opened once.

        A tensor is a view of its mapped file: copy it, or the whole mapping stays.

        Args:
            first_row: read of each tensor the first row alone, (1, ...), or the value of one without dimensions.

        Raises:
            UniWorldError: a file is no longer what it was when its header was read.
        """
        wanted: dict[Path, list[str]] = {}
        for name in names:
            wanted.setdefault(self.files[name], []).append(name)
        for file, here in wanted.items():
            with open_shard(file) as shard:
                for name in here:
                    try:
                        part = shard.get_slice(name)
                        if tuple(part.get_shape()) != self.shapes[name] or part.get_dtype() != self.dtypes[name]:
                            raise SafetensorError(f"{name} is no longer the tensor of {self.shapes[name]} that it was")
                        yield name, part[:1] if first_row and self.shapes[name] else shard.get_tensor(name)
                    except SafetensorError as error:
                        raise UniWorldError(
                            f"{file} has changed since the model was opened ({error}): open the model again."
                        ) from error

    def check_depth(self, wanted: int, prefixes: tuple[str, ...], source: str | Path) -> None:
        """Hold the number of layers that a configuration asks for against the files, before any layer is made.

        Args:
            prefixes: beginnings of the layers' names, up to their number: one for each way of naming them.
            source: where the configuration comes from, for the error.

        Raises:
            UniWorldError: the files hold another number of layers.
        """
        layers = {
            name[len(prefix) :].partition(".")[0]
            for name in self.shapes
            for prefix in prefixes
            if name.startswith(prefix)
        }
        if len(layers) != wanted:
            raise UniWorldError(
                f"The weights in {self.folder} do not fit the configuration: {source} asks for {wanted} layers "
                f"{prefixes[0]}0 and so on, and the files hold {len(layers)}. "
                "Use weights and config.json of one and the same checkpoint."
            )

    def _find(self) -> list[Path]:
        for stem in self.NAMES:
            index = self.folder / f"{stem}.safetensors.index.json"
            if index.is_file():
                return self._indexed(index)
            single = self.folder / f"{stem}.safetensors"
            if single.is_file():
                return [single]
        raise UniWorldError(
            f"{self.folder} holds no weights: expected model.safetensors, diffusion_pytorch_model.safetensors or one of "
            "them in shards with its .safetensors.index.json. Copy the whole folder."
        )

    def _indexed(self, index: Path) -> list[Path]:
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise UniWorldError(f"{index} has no 'weight_map': copy the file again.")
        for name, file in weight_map.items():
            if not isinstance(file, str):
                raise UniWorldError(f"{index} has {shown(file)} as the file of {name}: copy the file again.")
        self._index = weight_map
        names = sorted(set(weight_map.values()))
        if len(names) > _MAX_SHARDS:
            raise UniWorldError(
                f"{index} names {len(names)} files, more than {_MAX_SHARDS}: it is not a published index."
            )
        if any(Path(name).name != name or "\0" in name or len(name.encode("utf-8", "replace")) > 255 for name in names):
            raise UniWorldError(f"{index} names shards outside its own folder: it is not a published index.")
        absent = [name for name in names if not (self.folder / name).is_file()]
        if absent:
            raise UniWorldError(
                f"{index.name} in {self.folder} names {len(names)} files; missing are {some(absent)}: copy them there too."
            )
        return [self.folder / name for name in names]


@dataclass
class Room:
    """What the headers of a folder's files may still take.

    Attributes:
        size: bytes of headers.
        tensors: tensors that they list.
    """

    size: int = _MAX_HEADERS
    tensors: int = _MAX_TENSORS

    def take(self, size: int = 0, tensors: int = 0) -> None:
        """Take some of it. Raises UniWorldError if there is less."""
        if size > self.size:
            raise UniWorldError(
                f"a header of {size} bytes, and all headers of a folder together have {_MAX_HEADERS} at most"
            )
        if tensors > self.tensors:
            raise UniWorldError(
                f"a list of {tensors} tensors, and all files of a folder together have {_MAX_TENSORS} at most"
            )
        self.size, self.tensors = self.size - size, self.tensors - tensors


def read_header(file: Path, room: Room | None = None) -> dict[str, tuple[str, tuple[int, ...]]]:
    """{tensor: (type, shape)} of a safetensors file, without reading a tensor.

    The header (https://huggingface.co/docs/safetensors) is parsed here as well: the library accepts headers of 100 MB, and
    keeps the last of several tensors of one name. The library checks that the tensors fill the file.

    Args:
        room: shared by the files of one folder; None for a file of its own.

    Raises:
        UniWorldError: it is cut short or damaged, no regular file, too large, has a name twice, or is no safetensors at all;
            the file is named.
    """
    check_file(file)
    room = room or Room()
    try:
        with file.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            room.take(size=size)
            data = opened.read(size)
    except (OSError, UniWorldError) as error:
        raise _damaged(file, error) from error
    with open_shard(file):
        pass
    try:
        header = parse_json(data, "its header")
        header.pop("__metadata__", None)
        room.take(tensors=len(header))
        if any(len(name) > _MAX_NAME for name in header):
            raise UniWorldError(f"a name of more than {_MAX_NAME} letters")
        return {name: (str(entry["dtype"]), tuple(map(int, entry["shape"]))) for name, entry in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _damaged(file, error) from error


def open_shard(file: Path) -> Any:
    """`safe_open` on the CPU, with a UniWorldError that names the file if it is cut short or no safetensors at all."""
    try:
        return safe_open(str(file), framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> UniWorldError:
    return UniWorldError(f"{file} cannot be read ({error}): it is cut short or damaged, copy or download it again.")


def place(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Put a tensor where `name` says in `module`, in the place of the meta tensor there."""
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if leaf in owner._buffers:
        owner._buffers[leaf] = tensor
    else:
        owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)


def some(names: list[str]) -> str:
    """The first of these names, for an error, and how many more there are."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
