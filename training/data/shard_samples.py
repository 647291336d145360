"""Read samples from WebDataset shards: tar files with annotations and pictures, for data that is larger than one disk.

A folder of shards contains `index.json`, with the fingerprint of the list and the count and SHA-256 of every shard. Next
to each `shard-000000.tar`, a `shard-000000.safetensors` has the offsets of its samples. Shards contain every painting of
the list in order, including invalid ones, so plans and caches are the same for a list and its shards.
"""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ...uniworld_core.errors import UniWorldError
from ..objective.batch import BadSample
from .samples import Sample, decode, picture_size

FORMAT = 1
INDEX = "index.json"


@dataclass(frozen=True)
class Shard:
    """One tar file: its name, number of samples, size in bytes and SHA-256."""

    name: str
    count: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardPicture:
    """A picture in a shard."""

    name: str
    data: bytes

    def read(self) -> bytes:
        return self.data

    def open(self) -> Image.Image:
        return decode(self.name, self.data)

    def size(self) -> tuple[int, int]:
        return picture_size(self.name, self.data)


class ShardSamples:
    """The samples of a folder of shards, with random access.

    Attributes:
        fingerprint: fingerprint of the list that the shards were created from.
        shards: the tar files, in order.
    """

    def __init__(self, folder: str | Path) -> None:
        """Open a folder of shards.

        Raises:
            UniWorldError: it contains no shards, they are not finished, or a file is missing or has the wrong size.
        """
        self.folder = Path(folder)
        index = read_index(self.folder)
        self.shards = index["shards"]
        if not self.shards:
            raise UniWorldError(f"The shards in '{folder}' are not finished: run `uniworld data shards` again.")
        self.fingerprint: str = index["fingerprint"]
        self._per_shard: int = index["per_shard"]
        self._starts, sizes = [], []
        for shard in self.shards:
            offsets = _read_offsets(self.folder / shard.name, shard)
            self._starts.append(offsets["starts"])
            sizes.append(offsets["sizes"])
        self._sizes_N2 = np.concatenate(sizes)

    def __len__(self) -> int:
        return len(self._sizes_N2)

    def __getitem__(self, index: int) -> Sample:
        """Return one sample. Raises `BadSample` if it is invalid."""
        number, within = divmod(index, self._per_shard)
        path = self.folder / self.shards[number].name
        try:
            start, end = (int(at) for at in self._starts[number][within : within + 2])
            sample = _read_sample(path, start, end)
        except (OSError, tarfile.TarError, ValueError, KeyError, TypeError) as error:
            raise UniWorldError(
                f"Sample {index} cannot be read from the shard '{path}' ({error}): download the shard again."
            ) from error
        if isinstance(sample, BadSample):
            raise sample
        return sample

    def sizes(self, index: int) -> tuple[int, int]:
        """Return height and width of a target in pixels. Raises UniWorldError if it could not be read."""
        height, width = self._sizes_N2[index].tolist()
        if not height:
            raise UniWorldError(f"The size of the target of sample {index} could not be read when its shard was made.")
        return height, width


def _read_sample(path: Path, start: int, end: int) -> Sample | BadSample:
    with path.open("rb") as file:
        file.seek(start)
        data = file.read(end - start)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        # WebDataset's naming: the sample's number, a dot, and the field.
        members = {member.name.partition(".")[2]: _content(tar, member) for member in tar}
    record = json.loads(members["json"])
    if "problem" in record:
        return BadSample(record["key"], record["problem"])
    *references, target = (ShardPicture(picture["name"], members[picture["file"]]) for picture in record["pictures"])
    return Sample(record["key"], record["prompt"], tuple(references), target, record["weighted"])


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    if file is None:
        raise UniWorldError(f"its member '{member.name}' is not a file")
    return file.read()


def _read_offsets(path: Path, shard: Shard) -> dict[str, np.ndarray]:
    try:
        size = path.stat().st_size
        offsets = load_file(path.with_suffix(".safetensors"))
        counts = len(offsets["starts"]) - 1, len(offsets["sizes"])
    except (OSError, SafetensorError, KeyError) as error:
        raise UniWorldError(
            f"The shard '{path}' or its .safetensors cannot be read ({error}): download both again."
        ) from error
    if size != shard.bytes or counts != (shard.count, shard.count):
        raise UniWorldError(f"The shard '{path}' has {size} bytes, expected {shard.bytes}: download it again.")
    return offsets


def read_index(folder: Path) -> dict[str, Any]:
    """Read `index.json`, with its shards as `Shard`s. Raises UniWorldError if it is missing or damaged."""
    try:
        index = json.loads((folder / INDEX).read_bytes())
        if index["format"] != FORMAT:
            raise UniWorldError(f"format {index['format']} is not {FORMAT}")
        index["shards"] = [Shard(**shard) for shard in index["shards"]]
        numbers = [index["per_shard"], *(number for shard in index["shards"] for number in (shard.count, shard.bytes))]
        texts = [index["fingerprint"], *(text for shard in index["shards"] for text in (shard.name, shard.sha256))]
        if not all(type(number) is int and number > 0 for number in numbers) or not all(
            isinstance(text, str) for text in texts
        ):
            raise UniWorldError("a value has the wrong type")
        return index
    except FileNotFoundError as error:
        raise UniWorldError(f"'{folder}' contains no shards: create them with `uniworld data shards`.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UniWorldError(f"'{folder / INDEX}' is not a valid index ({error}): create the shards again.") from error
