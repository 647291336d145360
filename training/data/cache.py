"""What the frozen parts compute, kept on disk: they never change, so each sample passes them once.

A cache is a folder: `cache.safetensors` says what it is of (the key, and the targets' sizes), and
`parts/part-*.safetensors` hold some samples each, with their names and checksums in the file's own header. A part
appears whole, by a rename, so a killed run loses the part in work and nothing else.
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
# Parts that stay open at the same time; each is a file handle and its header.
_OPEN_PARTS = 256  # their headers are parsed once; the tensors stay on the mapped files

_AGAIN = "run `uniworld data cache` again"


@dataclass(frozen=True)
class CacheKey:
    """What a cache was made with: `Encoder.fingerprint` and `Samples.fingerprint`."""

    encoder: str
    samples: str


@dataclass(frozen=True)
class _Part:
    """An open part: its file, and of each sample its name, its tensors' names and their checksum."""

    file: Any
    records: dict[int, dict[str, Any]]


class Cache:
    """EncodedSample samples by index. It reads from several threads, can be pickled, and many processes may read it.

    Attributes:
        folder: where it lies.
        key: what it was made with.
        sizes: int32 (N, 2), height and width of each target in pixels; 0, 0 where it could not be read.
        bad: why samples are of no use, by index.
    """

    def __init__(self, folder: Path, key: CacheKey | None = None) -> None:
        """Open a cache, finished or not.

        Args:
            key: what it must have been made with; None takes any.

        Raises:
            UniWorldError: there is none, it was made with something else, or a part is damaged.
        """
        self.folder = Path(folder)
        self.key, self.sizes = read_head(self.folder, key)
        self.bad: dict[int, BadSample] = {}
        self._files: list[Path] = []
        self._part_of_N = torch.full((len(self.sizes),), -1, dtype=torch.int32)
        self._open: OrderedDict[int, _Part] = OrderedDict()
        self._lock = Lock()
        for file in sorted((self.folder / "parts").glob("*.safetensors")):
            self._take(file)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_open", "_lock")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _open=OrderedDict(), _lock=Lock())

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def missing(self) -> int:
        """How many samples were not computed yet."""
        return len(self) - int((self._part_of_N >= 0).sum()) - len(self.bad)

    def holds(self, index: int) -> bool:
        """Whether a sample was computed, or found to be bad."""
        return int(self._part_of_N[index]) >= 0 or index in self.bad

    def __getitem__(self, index: int) -> EncodedSample:
        """One sample, bit for bit as it was computed; its tensors lie on the mapped file.

        Raises:
            BadSample: it is of no use, for the reason that was found when the cache was made.
            UniWorldError: it was not computed yet, or its bytes are not those that were written.
        """
        number = int(self._part_of_N[index])
        if number < 0:
            if index in self.bad:
                raise self.bad[index]
            raise UniWorldError(
                f"The cache '{self.folder}' lacks sample {index} and {self.missing - 1} more: {_AGAIN}."
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
        """Write a part of samples by index, which are then there for good.

        Args:
            writer: who writes; there is one process of that name at a time.

        Raises:
            UniWorldError: it cannot be written, such as on a full disk; then none of it is there.
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
        self._take(file)

    def _next_file(self, writer: str) -> Path:
        written = [file.name.split(".")[1] for file in self._files if file.name.startswith(f"part-{writer}.")]
        return self.folder / "parts" / f"part-{writer}.{max(map(int, written), default=-1) + 1:06d}.safetensors"

    def _take(self, file: Path) -> None:
        """Know what a part holds. A sample that was bad and is there now was mended."""
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
    """What a cache was made with, and its targets' sizes. Raises UniWorldError as `Cache` does."""
    head = folder / HEAD
    if not head.is_file():
        raise UniWorldError(f"'{folder}' holds no cache: make one with `uniworld data cache`.")
    try:
        with safe_open(head, "pt") as file:
            told, sizes_N2 = file.metadata(), file.get_tensor("sizes")
        if told["format"] != FORMAT:
            raise UniWorldError(
                f"'{folder}' is a cache of format {told['format']}, not {FORMAT}: make it anew elsewhere."
            )
        key = CacheKey(told["encoder"], told["samples"])
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        raise UniWorldError(f"'{head}' is damaged ({error}): delete the folder '{folder}' and {_AGAIN}.") from error
    if wanted is not None:
        check_key(folder, key, wanted)
    return key, sizes_N2.clone()


def check_key(folder: Path, found: CacheKey, wanted: CacheKey) -> None:
    """Raises UniWorldError if a cache was made with something else, naming both."""
    if found.encoder != wanted.encoder:
        raise UniWorldError(
            f"The cache '{folder}' was made with another checkpoint, preprocessing or [data]/[stage] settings (its key is "
            f"{found.encoder}, this run's is {wanted.encoder}): name another folder, or set them back."
        )
    if found.samples != wanted.samples:
        raise UniWorldError(
            f"The cache '{folder}' was made of other annotations (its key is {found.samples}, those of this run have "
            f"{wanted.samples}): name another folder, or take the list it was made of."
        )


def _damaged(part: Path, why: str) -> str:
    return f"The part '{part}' of the cache is damaged ({why}): delete that file and {_AGAIN}."


def _to_tensors(item: EncodedSample) -> dict[str, Tensor]:
    named = {"hidden": item.hidden, "ends": item.ends, "pooled": item.pooled, "latent": item.latent}
    named |= {f"features.{number}": tensor for number, tensor in enumerate(item.features)}
    named |= {name: tensor for name, tensor in (("t5", item.t5), ("weight", item.weight)) if tensor is not None}
    # Copies: items may be views into one batch, which a file of tensors cannot hold.
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
