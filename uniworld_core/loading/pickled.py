"""Read tensors that `torch.save` wrote (`.bin`, `.pt`, `.ckpt`) without running code from the file.

With `weights_only`, torch runs no code from a file. Two checks come before it: hashing a key of nested tuples takes twice as
long per level, so a small pickle could keep torch busy forever; and a compressed archive can expand to any size.
"""

from __future__ import annotations

import functools
import io
import os
import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from ..errors import UniWorldError, shown
from .headers import HeaderBudget
from .settings import check_file
from .weights import Shards

# Pickle operations whose values may be used more than once: class names and strings; and the results of the functions that
# `weights_only` allows, such as a tensor that two names share. None of these nests values that are hashed.
_REUSABLE = {"GLOBAL", "STACK_GLOBAL", "BINUNICODE", "SHORT_BINUNICODE", "UNICODE", "REDUCE"}
# Files from before torch 1.6 consist of this many pickles, and then the values.
_OLD_PICKLES = 5
# Names of dtypes as in safetensors headers.
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class PickleLimits:
    """Limits on a file.

    Attributes:
        entries: entries of its archive.
        structure: bytes of its pickle, which has everything but the values.
        read: bytes of a single read, of which the archive's directory is one.
        old: whether it may have the form from before torch 1.6, which cannot be mapped.
    """

    entries: int
    structure: int
    read: int
    old: bool = False


# A model: torch writes one entry for each tensor, with about 100 bytes in the directory and 200 in the pickle.
MODEL_LIMITS = PickleLimits(entries=20_064, structure=8 * 2**20, read=8 * 2**20, old=True)


class _NumPyNumber:
    """Stands for a number of NumPy beside the tensors. Its value is not restored."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


# What NumPy's numbers are made with, before and after NumPy 2.
_NUMPY_NUMBERS: list[Any] = [
    (_NumPyNumber, name) for name in ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype")
]


def read_tensors(file: Path, limits: PickleLimits = MODEL_LIMITS, inside: str | None = None) -> dict[str, torch.Tensor]:
    """Return {name: tensor} of a file. The tensors are mapped from the file where its form allows it.

    Args:
        limits: limits on the file.
        inside: key of the tensors, for a file that holds {key: {name: tensor}}; None for {name: tensor}. Beside the
            tensors such a file may hold numbers of NumPy, such as scores of a training run.

    Raises:
        UniWorldError: the file is missing or damaged, exceeds the limits, or holds something other than tensors. The message names it.
    """
    check_file(file)
    stat = file.stat()
    mapped = _check(file, limits, (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
    try:
        with torch.serialization.safe_globals([] if inside is None else _NUMPY_NUMBERS):
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch raises UnpicklingError, RuntimeError, EOFError and others
        raise _rejected(file) from error
    if inside is not None:
        state = state.get(inside) if isinstance(state, Mapping) else None
        if not isinstance(state, Mapping):
            raise UniWorldError(f"{file} has no {inside!r} with the tensors: it belongs to another model.")
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise UniWorldError(f"{file} holds {type(state).__name__}, not tensors by name: it belongs to another model.")
    size = file.stat().st_size
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor):
            raise UniWorldError(
                f"{shown(name)} in {file} is a {type(tensor).__name__}, not a tensor: save only tensors."
            )
        plain = tensor.layout is torch.strided and tensor.device.type == "cpu" and tensor.dtype in _DTYPES
        # An expanded view passes limits on the file's size, but takes its full size once it is copied.
        if not plain or tensor.nbytes > min(size, tensor.untyped_storage().nbytes()):
            raise UniWorldError(f"{name} in {file} is not stored as a plain tensor: save its values, not a view.")
    return dict(state)


class PickledShards(Shards):
    """The files of a model folder that `torch.save` wrote, with the surface of `Shards`.

    Args:
        folder: contains either `pytorch_model.bin.index.json` with its shards, or one `pytorch_model.bin`.
        files: the files, if they have other names.
        inside: as in `read_tensors`.

    Raises:
        UniWorldError: as `Shards` and `read_tensors`.
    """

    NAMES = ("pytorch_model",)
    SUFFIX = ".bin"

    def __init__(self, folder: Path, files: list[Path] | None = None, inside: str | None = None) -> None:
        self._inside = inside
        super().__init__(folder, files)

    def _header(self, file: Path, budget: HeaderBudget) -> dict[str, tuple[str, tuple[int, ...]]]:
        tensors = read_tensors(file, inside=self._inside)
        budget.spend(tensors=len(tensors))
        return {name: (_DTYPES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()}

    @contextmanager
    def _open(self, file: Path) -> Iterator[Any]:
        yield _OpenedFile(read_tensors(file, inside=self._inside))


class _OpenedFile:
    """Tensors with the surface of safetensors' `safe_open`."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors

    def get_tensor(self, name: str) -> torch.Tensor:
        return self._tensors[name].contiguous()

    def get_slice(self, name: str) -> _Slice:
        tensor = self._tensors.get(name)
        return _Slice(torch.empty(0) if tensor is None else tensor)


class _Slice:
    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor

    def get_shape(self) -> list[int]:
        return list(self._tensor.shape)

    def get_dtype(self) -> str:
        return _DTYPES[self._tensor.dtype]

    def __getitem__(self, rows: slice) -> torch.Tensor:
        return self._tensor[rows]


class _SmallReads(io.FileIO):
    """A file that rejects large reads: `zipfile` reads the archive's directory in one piece, whatever size it claims."""

    def __init__(self, file: Path, limit: int) -> None:
        super().__init__(file)
        self._limit = limit

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            size = os.fstat(self.fileno()).st_size - self.tell()
        if size > self._limit:
            raise UniWorldError(f"a single read asks for {size} bytes")
        return super().read(size) or b""


# Cached, because a conversion opens the file again for each of its tensors.
@functools.lru_cache(maxsize=64)
def _check(file: Path, limits: PickleLimits, version: tuple[int, ...]) -> bool:
    """Check, before torch opens a file, that it looks like tensors written by `torch.save`. Return whether it can be mapped.

    Args:
        version: differs for a file that was replaced or changed. It is only the key of the cache.

    Raises:
        UniWorldError: the file does not look like that.
    """
    try:
        with _SmallReads(file, limits.read) as opened:
            if limits.old and not zipfile.is_zipfile(opened):
                _check_old(opened)
                return False
            opened.seek(0)
            with zipfile.ZipFile(opened) as archive:
                entries = archive.infolist()
                if len(entries) > limits.entries or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                    raise _rejected(file)
                (structure,) = (entry for entry in entries if entry.filename.rpartition("/")[2] == "data.pkl")
                if structure.file_size > limits.structure:
                    raise _rejected(file)
                _check_pickle(archive.read(structure))
                return True
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise _rejected(file) from error


def _check_old(opened: _SmallReads) -> None:
    opened.seek(0)
    for _ in range(_OLD_PICKLES):
        _check_pickle(opened)


def _check_pickle(data: bytes | IO[bytes]) -> None:
    """Raise UniWorldError if a pickle uses a value twice, except those of `_REUSABLE`: nesting needs such reuse."""
    reusable = True
    stored: dict[int, bool] = {}
    for operation, argument, _ in pickletools.genops(data):
        at = argument if isinstance(argument, int) else len(stored)
        if operation.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            stored[at] = reusable
        elif operation.name == "DUP" or (operation.name in ("GET", "BINGET", "LONG_BINGET") and not stored.get(at)):
            raise UniWorldError("a value is used twice")
        reusable = operation.name in _REUSABLE


def _rejected(file: Path) -> UniWorldError:
    return UniWorldError(
        f"{file} was rejected: it is damaged, or holds something other than tensors, which could run code when opened. "
        "Use the published file, or save its tensors again with a current version of torch."
    )
