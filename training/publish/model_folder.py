"""Write a model folder atomically, one shard at a time."""

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
from ...uniworld_core.files import atomic_folder
from ...uniworld_core.loading.weights import Shards

# About the size of the published checkpoint's float32 shards.
SHARD_BYTES = 5 * 10**9
INDEX_FILE = "model.safetensors.index.json"
# Files of the tokenizer, the image processor and the configuration. Weights are written separately, and other files in
# a model folder are not part of the model.
_SETTINGS = {".json", ".txt", ".jinja", ".model"}


@dataclass(frozen=True)
class Source:
    """A tensor to write, read lazily.

    Attributes:
        shape: shape of the tensor.
        read: returns the tensor; called when its shard is written.
    """

    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]

    @classmethod
    def in_shards(cls, shards: Shards, name: str) -> Source:
        """Return the source of a tensor in a model folder, as floats."""

        def read() -> torch.Tensor:
            # Reopened for each tensor: while a file is mapped, every page that was read stays in memory.
            ((_, tensor),) = shards.read([name])
            return tensor if isinstance(tensor, torch.Tensor) else tensor.dequantize(torch.float32)

        return cls(shards.shapes[name], read)

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Source:
        """Return the source of a tensor that is in memory."""
        return cls(tuple(tensor.shape), lambda: tensor)


def check_apart(target: Path, sources: Mapping[str, Path | None], into_existing: bool = False) -> None:
    """Raise UniWorldError if a conversion would write into one of its sources, or create a folder around one.

    Args:
        sources: {what it is: folder}.
        into_existing: whether files are added to the target, such as ComfyUI's models folder, which may contain sources.
    """
    goal = target.resolve()
    for name, folder in sources.items():
        source = None if folder is None else folder.resolve()
        if source is None:
            continue
        if goal.is_relative_to(source):
            where = "is" if goal == source else "is inside"
            raise UniWorldError(
                f"The target {target} {where} the {name} folder {folder}: choose a folder outside of it."
            )
        if source.is_relative_to(goal) and not into_existing:
            raise UniWorldError(f"The target {target} contains the {name} folder {folder}: choose a new folder.")


@contextmanager
def new_folder(to: Path) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `to` if the block succeeds, and removed otherwise.

    The remains of a killed attempt to write `to` are removed too.

    Raises:
        UniWorldError: `to` already exists, or cannot be written, for example because the disk is full.
    """
    try:
        if to.exists() or to.is_symlink():
            raise UniWorldError(f"{to} already exists and is not overwritten: give another name, or move it.")
        with atomic_folder(to) as partial:
            yield partial
            readable = partial.stat().st_mode & 0o666
            for path in partial.rglob("*"):
                if path.is_file():
                    path.chmod(readable)  # safetensors creates files that only their owner may read
    except (OSError, SafetensorError) as error:
        raise UniWorldError(
            f"{to} cannot be written ({error}); the partial folder was removed. Free disk space, or choose another folder."
        ) from error


def write_shards(
    folder: Path, sources: Mapping[str, Source], dtype: torch.dtype = torch.float32, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write tensors as `model-00001-of-0000N.safetensors` with their index; only one shard is in memory at a time.

    Args:
        folder: an existing folder.
        sources: {name: source}, in the order in which they are written.
        dtype: dtype to write.
        shard_bytes: approximate size of a shard; a larger tensor gets its own shard.
    """
    size = torch.empty((), dtype=dtype).element_size()
    sizes = {name: math.prod(source.shape) * size for name, source in sources.items()}
    shards = split(sizes, shard_bytes)
    homes: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: sources[name].read().to(dtype).contiguous() for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        homes |= dict.fromkeys(names, file)
    write_index(folder, homes, sum(sizes.values()))


def write_index(folder: Path, homes: Mapping[str, str], total_bytes: int) -> None:
    """Write the index of a checkpoint's shards: {tensor name: file name} and the total size of the tensors in bytes."""
    write_json(folder / INDEX_FILE, index_of(homes, total_bytes))


def index_of(homes: Mapping[str, str], total_bytes: int) -> dict[str, object]:
    """The index of shards, as in `write_index`."""
    return {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(homes.items()))}


def write_json(file: Path, content: object) -> None:
    """Write JSON in the style of published configurations: indented, with sorted keys."""
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def copy_settings(source: Path, folder: Path, exclude: tuple[str, ...] = ()) -> None:
    """Copy tokenizer, processor and configuration files of a model folder, without `exclude` and the shard index."""
    for file in sorted(source.iterdir()):
        wanted = file.suffix in _SETTINGS and not file.name.endswith(".index.json") and file.name not in exclude
        if wanted and file.is_file():
            shutil.copyfile(file, folder / file.name)


def split(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Split tensor names, in order, into shards of about `limit` bytes; a larger tensor gets its own shard."""
    shards: list[list[str]] = [[]]
    used = 0
    for name, size in sizes.items():
        if shards[-1] and used + size > limit:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards
