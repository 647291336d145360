"""Writing a model folder: whole or not at all, and one shard at a time."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ...uniworld_core.errors import UniWorldError
from ...uniworld_core.files import whole_folder
from ...uniworld_core.loading.weights import Shards, open_shard

# The published checkpoint's own shards are about as large (float32).
SHARD_BYTES = 5 * 10**9
INDEX_FILE = "model.safetensors.index.json"
# What a tokenizer, a picture processor and the settings lie in; weights are written, and nothing else is a model's.
_SETTINGS = {".json", ".txt", ".jinja", ".model"}


@dataclass(frozen=True)
class Source:
    """Where a tensor that is to be written comes from.

    Attributes:
        shape: its shape.
        read: reads it, when its shard is written and not before.
    """

    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]

    @classmethod
    def in_shards(cls, shards: Shards, name: str) -> Source:
        """The tensor of that name in a model folder."""

        def read() -> torch.Tensor:
            # Opened anew for each tensor: as long as a file is mapped, all that was read of it stays in memory.
            with open_shard(shards.files[name]) as shard:
                return shard.get_tensor(name)

        return cls(shards.shapes[name], read)

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Source:
        """A tensor that is in memory."""
        return cls(tuple(tensor.shape), lambda: tensor)


@contextmanager
def new_folder(to: Path) -> Iterator[Path]:
    """A folder to write into, which takes the name `to` when the block has ended well, and goes when it has not.

    What a killed attempt left beside `to` goes as well.

    Raises:
        UniWorldError: `to` is there already, or cannot be written, as on a full disk.
    """
    try:
        if to.exists() or to.is_symlink():
            raise UniWorldError(f"{to} is there already, and is not overwritten: give another name, or move it away.")
        with whole_folder(to) as partial:
            yield partial
            readable = partial.stat().st_mode & 0o666
            for path in partial.rglob("*"):
                if path.is_file():
                    path.chmod(readable)  # safetensors makes files that their owner alone may read
    except (OSError, SafetensorError) as error:
        raise UniWorldError(
            f"{to} cannot be written ({error}), and what was written of it is removed: make room on the disk, or "
            "choose another folder."
        ) from error


def write_shards(
    folder: Path, sources: Mapping[str, Source], dtype: torch.dtype = torch.float32, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write tensors as `model-00001-of-0000N.safetensors` with their index, holding one shard at a time.

    Args:
        folder: is there.
        sources: {name: where it comes from}, in the order in which they are written.
        dtype: of what is written.
        shard_bytes: about the size of a shard; a larger tensor has a shard of its own.
    """
    size = torch.empty((), dtype=dtype).element_size()
    sizes = {name: math.prod(source.shape) * size for name, source in sources.items()}
    shards = _split(sizes, shard_bytes)
    homes: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: sources[name].read().to(dtype).contiguous() for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        homes |= dict.fromkeys(names, file)
    write_index(folder, homes, sum(sizes.values()))


def write_index(folder: Path, homes: Mapping[str, str], total_bytes: int) -> None:
    """Write the index of a checkpoint's shards: {tensor: file}, and the bytes of all tensors."""
    index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(homes.items()))}
    write_json(folder / INDEX_FILE, index)


def write_json(file: Path, content: object) -> None:
    """Write an object as published configurations are: indented, sorted."""
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def copy_settings(source: Path, folder: Path, but: tuple[str, ...] = ()) -> None:
    """Copy a model folder's tokenizer, processor and settings files, except those named and any index of shards."""
    for file in sorted(source.iterdir()):
        wanted = file.suffix in _SETTINGS and not file.name.endswith(".index.json") and file.name not in but
        if wanted and file.is_file():
            shutil.copyfile(file, folder / file.name)


def _split(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    used = 0
    for name, size in sizes.items():
        if shards[-1] and used + size > limit:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards
