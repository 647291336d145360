"""A cache on disk of the frozen parts' outputs: they never change, so each sample is encoded only once.

A cache is a folder. `cache.safetensors` has the cache's key and the sizes of the targets. Each
`parts/part-*.safetensors` has a group of samples, with their names and checksums in the file's header. Parts are written
atomically, so a killed run loses only the part that it was writing.
"""

from __future__ import annotations

import json
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ...uniworld_core.errors import UniWorldError
from ..files import write_atomic
from ..objective.batch import BadSample, EncodedSample

FORMAT = "1"
HEAD = "cache.safetensors"
# Parts that stay open, so that their headers are parsed only once. Each costs a file handle and its header; tensors stay
# in the mapped files.
_OPEN_PARTS = 256

_RERUN = "run `uniworld data cache` again"


@dataclass(frozen=True)
class CacheKey:
    """What a cache was created from: `Encoder.fingerprint` and `Samples.fingerprint`."""

    encoder: str
    samples: str


@dataclass(frozen=True)
class _Part:
    """An open part: its file, and for each sample its name, tensor names and checksum."""

    file: Any
    records: dict[int, dict[str, Any]]


class Cache:
    """Encoded samples by index. Safe to read from several threads and processes, and picklable.

    Attributes:
        folder: the cache's folder.
        key: what it was created from.
        sizes: int32 (N, 2), height and width of each target in pixels; 0, 0 if it could not be read.
        bad: {index: why the sample is invalid}.
    """

    def __init__(self, folder: Path, key: CacheKey | None = None) -> None:
        """Open a cache, complete or not.

        Args:
            folder: the cache's folder.
            key: the key that it must have; None accepts any.

        Raises:
            UniWorldError: the folder is not a cache, its key does not match, or a part is damaged.
        """
        self.folder = Path(folder)
        self.key, self.sizes = read_head(self.folder, key)
        self.bad: dict[int, BadSample] = {}
        self._files: list[Path] = []
        self._part_of_N = torch.full((len(self.sizes),), -1, dtype=torch.int32)
        self._open: OrderedDict[int, _Part] = OrderedDict()
        self._lock = Lock()
        for file in sorted((self.folder / "parts").glob("*.safetensors")):
            self._register(file)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_open", "_lock")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _open=OrderedDict(), _lock=Lock())

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def missing(self) -> int:
        """Number of samples that are not computed yet."""
        return len(self) - int((self._part_of_N >= 0).sum()) - len(self.bad)

    def contains(self, index: int) -> bool:
        """Return whether a sample was computed, or found to be bad."""
        return int(self._part_of_N[index]) >= 0 or index in self.bad

    def __getitem__(self, index: int) -> EncodedSample:
        """Return one sample, bit-identical to what was computed. Its tensors are views of the mapped file.

        Raises:
            BadSample: the sample is invalid, for the reason found when the cache was filled.
            UniWorldError: it is not computed yet, or its checksum does not match.
        """
        number = int(self._part_of_N[index])
        if number < 0:
            if index in self.bad:
                raise self.bad[index]
            raise UniWorldError(
                f"The cache '{self.folder}' is missing sample {index} and {self.missing - 1} more: {_RERUN}."
            )
        part = self._part(number)
        record = part.records[index]
        try:
            tensors = {name: part.file.get_tensor(f"{index}.{name}") for name in record["tensors"]}
        except SafetensorError as error:
            raise UniWorldError(_damaged(self._files[number], str(error))) from error
        if _checksum(tensors) != record["crc32"]:
            raise UniWorldError(_damaged(self._files[number], f"the checksum of '{record['key']}' differs"))
        return _from_tensors(record["key"], tensors)

    def add(self, items: Sequence[tuple[int, EncodedSample | BadSample]], writer: str = "0-of-1") -> None:
        """Write a part with these samples.

        Args:
            items: (index, encoded sample or why it is invalid).
            writer: name of the writing process; only one process at a time may use a name.

        Raises:
            UniWorldError: the part cannot be written, for example because the disk is full; nothing of it remains.
        """
        if not items:
            return
        tensors: dict[str, Tensor] = {}
        records: list[dict[str, object]] = []
        bad: list[dict[str, object]] = []
        for index, item in items:
            if isinstance(item, BadSample):
                bad.append({"index": index, "key": item.key, "reason": item.reason})
                continue
            named = _to_tensors(item)
            tensors.update({f"{index}.{name}": tensor for name, tensor in named.items()})
            record = {"index": index, "key": item.key, "tensors": list(named), "crc32": _checksum(named)}
            records.append(record)
        file = self._next_file(writer)
        write_atomic(file, save(tensors, {"samples": json.dumps(records), "bad": json.dumps(bad)}))
        self._register(file)

    def _next_file(self, writer: str) -> Path:
        written = [file.name.split(".")[1] for file in self._files if file.name.startswith(f"part-{writer}.")]
        return self.folder / "parts" / f"part-{writer}.{max(map(int, written), default=-1) + 1:06d}.safetensors"

    def _register(self, file: Path) -> None:
        """Add a part's samples to the index. A bad sample that a later part contains has been repaired since."""
        number = len(self._files)
        try:
            with safe_open(file, "pt") as part:
                metadata = part.metadata()
            held = [record["index"] for record in json.loads(metadata["samples"])]
            bad = {item["index"]: BadSample(item["key"], item["reason"]) for item in json.loads(metadata["bad"])}
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise UniWorldError(_damaged(file, str(error))) from error
        self._files.append(file)
        self._part_of_N[held] = number
        self.bad.update({index: sample for index, sample in bad.items() if int(self._part_of_N[index]) < 0})
        for index in held:
            self.bad.pop(index, None)

    def _part(self, number: int) -> _Part:
        with self._lock:
            part = self._open.pop(number, None)
            if part is None:
                try:
                    file = safe_open(self._files[number], "pt")
                    records = json.loads(file.metadata()["samples"])
                except (SafetensorError, OSError) as error:
                    raise UniWorldError(_damaged(self._files[number], str(error))) from error
                part = _Part(file, {record["index"]: record for record in records})
            self._open[number] = part
            if len(self._open) > _OPEN_PARTS:
                self._open.popitem(last=False)
            return part


def read_head(folder: Path, wanted: CacheKey | None = None) -> tuple[CacheKey, Tensor]:
    """Return a cache's key and the sizes of its targets. Raises UniWorldError as `Cache` does."""
    head = folder / HEAD
    if not head.is_file():
        raise UniWorldError(f"'{folder}' is not a cache: create one with `uniworld data cache`.")
    try:
        with safe_open(head, "pt") as file:
            metadata, sizes_N2 = file.metadata(), file.get_tensor("sizes")
        if metadata["format"] != FORMAT:
            raise UniWorldError(
                f"'{folder}' is a cache of format {metadata['format']}, expected {FORMAT}: create a new one in another "
                "folder."
            )
        key = CacheKey(metadata["encoder"], metadata["samples"])
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        raise UniWorldError(f"'{head}' is damaged ({error}): delete the folder '{folder}' and {_RERUN}.") from error
    if wanted is not None:
        check_key(folder, key, wanted)
    return key, sizes_N2.clone()


def check_key(folder: Path, found: CacheKey, wanted: CacheKey) -> None:
    """Check a cache's key. Raises UniWorldError naming both keys if they differ."""
    if found.encoder != wanted.encoder:
        raise UniWorldError(
            f"The cache '{folder}' was created with another checkpoint, preprocessing or [data]/[stage] settings (its key "
            f"is {found.encoder}, this run's is {wanted.encoder}): choose another folder, or restore the settings."
        )
    if found.samples != wanted.samples:
        raise UniWorldError(
            f"The cache '{folder}' was created from other annotations (its key is {found.samples}, this run's is "
            f"{wanted.samples}): choose another folder, or use the list that it was created from."
        )


def _damaged(part: Path, why: str) -> str:
    return f"The part '{part}' of the cache is damaged ({why}): delete that file and {_RERUN}."


def _to_tensors(item: EncodedSample) -> dict[str, Tensor]:
    named = {"hidden": item.hidden, "ends": item.ends, "pooled": item.pooled, "latent": item.latent}
    named |= {f"features.{number}": tensor for number, tensor in enumerate(item.features)}
    named |= {name: tensor for name, tensor in (("t5", item.t5), ("weight", item.weight)) if tensor is not None}
    # Copies, because safetensors cannot store views that share memory, and items may be views of one batch.
    return {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in named.items()}


def _from_tensors(key: str, named: dict[str, Tensor]) -> EncodedSample:
    features = tuple(tensor for name, tensor in named.items() if name.startswith("features."))
    parts = {name: named.get(name) for name in ("hidden", "ends", "pooled", "t5", "latent", "weight")}
    return EncodedSample(key=key, features=features, **parts)  # type: ignore[arg-type]


def _checksum(named: dict[str, Tensor]) -> int:
    crc = 0
    for name, tensor in named.items():
        crc = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, crc)
    return crc
