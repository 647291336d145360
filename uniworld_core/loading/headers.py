"""Headers of safetensors files, read within limits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..errors import UniWorldError
from .settings import check_file, parse_json

# Limits for all safetensors files of a folder together. UniWorld-V1 in float32 has 200 kB of headers, fewer than 2,000
# tensors and fewer than 20 shards.
_MAX_HEADERS = 4 * 2**20  # bytes
_MAX_TENSORS = 20_000
_MAX_NAME = 512  # characters of a tensor's name


@dataclass
class HeaderBudget:
    """What remains of the limits on the headers of a folder's files.

    Attributes:
        size: bytes of headers.
        tensors: tensors listed in them.
    """

    size: int = _MAX_HEADERS
    tensors: int = _MAX_TENSORS

    def spend(self, size: int = 0, tensors: int = 0) -> None:
        """Subtract from the budget. Raises UniWorldError if too little remains."""
        if size > self.size:
            raise UniWorldError(
                f"its header has {size} bytes, and all headers of a folder may have {_MAX_HEADERS} together"
            )
        if tensors > self.tensors:
            raise UniWorldError(
                f"it lists {tensors} tensors, and all files of a folder may list {_MAX_TENSORS} together"
            )
        self.size, self.tensors = self.size - size, self.tensors - tensors


def read_header(file: Path, budget: HeaderBudget | None = None) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return {tensor: (dtype, shape)} of a safetensors file, without reading a tensor.

    The header (https://huggingface.co/docs/safetensors) is parsed here in addition to the library, which accepts headers of
    100 MB and keeps the last of several tensors with the same name. The library checks that the tensors fill the file.

    Args:
        budget: shared by the files of one folder; None for a single file.

    Raises:
        UniWorldError: the file is truncated or damaged, not a regular file, too large, repeats a name, or is not a
            safetensors file. The message names it.
    """
    check_file(file)
    budget = budget or HeaderBudget()
    try:
        with file.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            budget.spend(size=size)
            data = opened.read(size)
    except (OSError, UniWorldError) as error:
        raise _damaged(file, error) from error
    with open_shard(file):
        pass
    try:
        header = parse_json(data, "its header")
        header.pop("__metadata__", None)
        budget.spend(tensors=len(header))
        if any(len(name) > _MAX_NAME for name in header):
            raise UniWorldError(f"a name has more than {_MAX_NAME} characters")
        return {name: (str(entry["dtype"]), tuple(map(int, entry["shape"]))) for name, entry in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _damaged(file, error) from error


def open_shard(file: Path) -> Any:
    """Call `safe_open` for the CPU. Raises UniWorldError if the file is truncated or not a safetensors file."""
    try:
        return safe_open(str(file), framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> UniWorldError:
    return UniWorldError(f"{file} cannot be read ({error}): it is truncated or damaged, copy or download it again.")
