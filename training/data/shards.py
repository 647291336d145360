"""Making shards, and looking whether they are still what was written."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from ...uniworld_core.errors import UniWorldError
from ...uniworld_core.files import remove_stale_parts, sha256_file
from ..files import atomic_file, locked, read_saved, write_atomic
from ..objective.batch import BadSample
from .samples import Samples
from .shard_samples import FORMAT, INDEX, Shard, ShardSamples, read_index

# About a gigabyte of pictures as the published ones.
PER_SHARD = 1000


def write_shards(
    samples: Samples,
    folder: Path,
    per_shard: int = PER_SHARD,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> ShardSamples:
    """Copy samples with their pictures into shards; those that are finished stay.

    Args:
        per_shard: samples in a shard.
        workers: shards that are written at the same time.
        progress: told how many of how many samples are there.

    Raises:
        UniWorldError: the folder holds shards of another list or cut, another process writes it, or the disk is full.
    """
    if per_shard < 1:
        raise UniWorldError(f"A shard of {per_shard} samples holds nothing: give at least 1.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UniWorldError(
            f"The folder of shards '{folder}' cannot be made: {error.strerror}. Name another."
        ) from error
    index = {"format": FORMAT, "fingerprint": samples.fingerprint, "samples": len(samples), "per_shard": per_shard}
    with locked(folder / "writing.lock", wait=False, busy=f"Another process writes shards into '{folder}'."):
        if (folder / INDEX).is_file():
            _check_same(folder, read_index(folder), index)
        else:
            _write_index(folder, index, [])
        remove_stale_parts(folder)
        done = 0

        def write(number: int) -> Shard:
            first = number * per_shard
            return _write_shard(samples, range(first, min(first + per_shard, len(samples))), folder, number)

        shards = []
        with ThreadPoolExecutor(max(1, workers)) as pool:
            for shard in pool.map(write, range(-(-len(samples) // per_shard))):
                shards.append(shard)
                done += shard.count
                if progress is not None:
                    progress(done, len(samples))
        _write_index(folder, index, shards)
    return ShardSamples(folder)


def check_shards(folder: str | Path) -> tuple[str, ...]:
    """A sentence for each shard whose bytes are not those that were written. Raises UniWorldError as `ShardSamples`."""
    samples = ShardSamples(folder)
    return tuple(
        f"The shard '{samples.folder / shard.name}' is damaged (its SHA-256 differs): fetch or make it anew."
        for shard in samples.shards
        if sha256_file(samples.folder / shard.name) != shard.sha256
    )


class _Hashed:
    """A file that is hashed while it is written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest, self.bytes = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.bytes += len(data)
        return self.file.write(data)


def _write_shard(samples: Samples, indices: range, folder: Path, number: int) -> Shard:
    """Write a shard, and then where its samples start, which makes it a finished one."""
    from webdataset import TarWriter

    path = folder / f"shard-{number:06d}.tar"
    if path.with_suffix(".safetensors").is_file():
        return read_saved(path.with_suffix(".safetensors"), _finished)
    sizes = np.zeros((len(indices), 2), dtype=np.int32)
    with atomic_file(path) as file:
        hashed = _Hashed(file)
        # Times and owners left out: the same samples make the same bytes.
        with TarWriter(hashed, encoder=False, mtime=0) as tar:
            for row, index in enumerate(indices):
                members, sizes[row] = _members(samples, index)
                tar.write({"__key__": f"{index:09d}", **members})
    starts = _starts(path, hashed.bytes)
    shard = Shard(path.name, len(indices), hashed.bytes, hashed.digest.hexdigest())
    told = {"shard": json.dumps(asdict(shard))}
    write_atomic(path.with_suffix(".safetensors"), save({"starts": starts, "sizes": sizes}, told))
    return shard


def _members(samples: Samples, index: int) -> tuple[dict[str, bytes], tuple[int, int]]:
    """The files of a sample in its shard, and the size of its target."""
    try:
        size = samples.sizes(index)
    except UniWorldError:
        size = (0, 0)  # told and counted where the sample is opened
    try:
        sample = samples[index]
    except BadSample as error:
        return {"json": _json({"key": error.key, "problem": error.reason})}, size
    sources = [*sample.references, sample.target]
    try:
        data = [source.read() for source in sources]
    except UniWorldError as error:
        return {"json": _json({"key": sample.key, "problem": str(error)})}, size
    files = [f"{number}{_suffix(source.name)}" for number, source in enumerate(sources)]
    pictures = [{"name": source.name, "file": file} for source, file in zip(sources, files)]
    told = {"key": sample.key, "prompt": sample.prompt, "weighted": sample.weighted, "pictures": pictures}
    return {"json": _json(told), **dict(zip(files, data))}, size


def _suffix(name: str) -> str:
    suffix = Path(name).suffix.lower()
    return suffix if suffix[1:].isalnum() and suffix.isascii() else ".picture"


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _starts(path: Path, end: int) -> np.ndarray:
    """Where each sample's first header stands, and the end of the file."""
    starts: dict[str, int] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            starts.setdefault(member.name.partition(".")[0], member.offset)
    return np.array([*starts.values(), end], dtype=np.int64)


def _finished(file: Path) -> Shard:
    with safe_open(file, "np") as opened:
        return Shard(**json.loads(opened.metadata()["shard"]))


def _write_index(folder: Path, index: dict[str, object], shards: list[Shard]) -> None:
    told = index | {"shards": [asdict(shard) for shard in shards]}
    write_atomic(folder / INDEX, json.dumps(told, indent=1).encode())


def _check_same(folder: Path, found: dict[str, object], wanted: dict[str, object]) -> None:
    for name, told in (("fingerprint", "of another list"), ("per_shard", "cut otherwise")):
        if found[name] != wanted[name]:
            raise UniWorldError(
                f"'{folder}' holds shards {told} ({name} {found[name]}, now {wanted[name]}): name another folder."
            )
