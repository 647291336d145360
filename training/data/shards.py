"""Write WebDataset shards, and verify them."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Callable
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
from .threads import map_in_threads

# About one gigabyte per shard with pictures like the published ones.
PER_SHARD = 1000


def write_shards(
    samples: Samples,
    folder: Path,
    per_shard: int = PER_SHARD,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> ShardSamples:
    """Copy samples with their pictures into shards; finished shards are kept.

    Args:
        samples: the samples.
        folder: folder for the shards.
        per_shard: samples per shard.
        workers: shards written in parallel.
        progress: called with the number of finished samples and their total.

    Raises:
        UniWorldError: the folder contains shards of another list or another `per_shard`, another process is writing to
            it, or the disk is full.
    """
    if per_shard < 1:
        raise UniWorldError(f"per_shard is {per_shard}; it must be at least 1.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UniWorldError(
            f"The folder of shards '{folder}' cannot be created: {error.strerror}. Choose another folder."
        ) from error
    index = {"format": FORMAT, "fingerprint": samples.fingerprint, "samples": len(samples), "per_shard": per_shard}
    with locked(folder / "writing.lock", wait=False, busy=f"Another process is writing shards to '{folder}'."):
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
        for shard in map_in_threads(write, range(-(-len(samples) // per_shard)), workers):
            shards.append(shard)
            done += shard.count
            if progress is not None:
                progress(done, len(samples))
        _write_index(folder, index, shards)
    return ShardSamples(folder)


def check_shards(folder: str | Path) -> tuple[str, ...]:
    """Return a sentence for each shard whose SHA-256 does not match. Raises UniWorldError as `ShardSamples`."""
    samples = ShardSamples(folder)
    return tuple(
        f"The shard '{samples.folder / shard.name}' is damaged (its SHA-256 differs): download or create it again."
        for shard in samples.shards
        if sha256_file(samples.folder / shard.name) != shard.sha256
    )


class _Hashed:
    """A file whose content is hashed while it is written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest, self.bytes = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.bytes += len(data)
        return self.file.write(data)


def _write_shard(samples: Samples, indices: range, folder: Path, number: int) -> Shard:
    """Write a shard and then its offsets; a shard with offsets is complete."""
    from webdataset import TarWriter

    path = folder / f"shard-{number:06d}.tar"
    if path.with_suffix(".safetensors").is_file():
        return read_saved(path.with_suffix(".safetensors"), _finished)
    sizes = np.zeros((len(indices), 2), dtype=np.int32)
    with atomic_file(path) as file:
        hashed = _Hashed(file)
        # Without times and owners, so that the same samples give the same bytes.
        with TarWriter(hashed, encoder=False, mtime=0) as tar:
            for row, index in enumerate(indices):
                members, sizes[row] = _members(samples, index)
                tar.write({"__key__": f"{index:09d}", **members})
    starts = _starts(path, hashed.bytes)
    shard = Shard(path.name, len(indices), hashed.bytes, hashed.digest.hexdigest())
    metadata = {"shard": json.dumps(asdict(shard))}
    write_atomic(path.with_suffix(".safetensors"), save({"starts": starts, "sizes": sizes}, metadata))
    return shard


def _members(samples: Samples, index: int) -> tuple[dict[str, bytes], tuple[int, int]]:
    """Return a sample's files in its shard, and the size of its target."""
    try:
        size = samples.sizes(index)
    except UniWorldError:
        size = (0, 0)  # opening the sample reports and counts the problem
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
    record = {"key": sample.key, "prompt": sample.prompt, "weighted": sample.weighted, "pictures": pictures}
    return {"json": _json(record), **dict(zip(files, data))}, size


def _suffix(name: str) -> str:
    suffix = Path(name).suffix.lower()
    return suffix if suffix[1:].isalnum() and suffix.isascii() else ".picture"


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _starts(path: Path, end: int) -> np.ndarray:
    """Return the offset of each sample's first header, and the end of the file."""
    starts: dict[str, int] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            starts.setdefault(member.name.partition(".")[0], member.offset)
    return np.array([*starts.values(), end], dtype=np.int64)


def _finished(file: Path) -> Shard:
    with safe_open(file, "np") as opened:
        return Shard(**json.loads(opened.metadata()["shard"]))


def _write_index(folder: Path, index: dict[str, object], shards: list[Shard]) -> None:
    content = index | {"shards": [asdict(shard) for shard in shards]}
    write_atomic(folder / INDEX, json.dumps(content, indent=1).encode())


def _check_same(folder: Path, found: dict[str, object], wanted: dict[str, object]) -> None:
    for name, difference in (("fingerprint", "of another list"), ("per_shard", "of another size")):
        if found[name] != wanted[name]:
            raise UniWorldError(
                f"'{folder}' contains shards {difference} ({name} is {found[name]}, now {wanted[name]}): choose another "
                "folder."
            )
