"""Samples in WebDataset shards: tar files that hold annotation and pictures together, for data that outgrow one disk.

A folder of shards holds `index.json`, with the fingerprint of the list and the count and SHA-256 of every shard, and
for each `shard-000000.tar` a `shard-000000.safetensors` that says where its samples start. Shards keep every painting
of the list in its order, those of no use as well, so plans and caches of the list are those of its shards.
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
    """One tar file: its name, its samples, its bytes and their SHA-256."""

    name: str
    count: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardPicture:
    """A picture out of a shard."""

    name: str
    data: bytes

    def read(self) -> bytes:
        return self.data

    def open(self) -> Image.Image:
        return decode(self.name, self.data)

    def size(self) -> tuple[int, int]:
        return picture_size(self.name, self.data)


class ShardSamples:
    """The samples of a folder of shards, in any order.

    Attributes:
        fingerprint: that of the list they were made of.
        shards: the tar files, in order.
    """

    def __init__(self, folder: str | Path) -> None:
        """Open shards.

        Raises:
            UniWorldError: there are none, they are not finished, or a file is missing or of another length.
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
            held = _read_held(self.folder / shard.name, shard)
            self._starts.append(held["starts"])
            sizes.append(held["sizes"])
        self._sizes_N2 = np.concatenate(sizes)

    def __len__(self) -> int:
        return len(self._sizes_N2)

    def __getitem__(self, index: int) -> Sample:
        """One sample. Raises `BadSample` where it is of no use."""
        number, within = divmod(index, self._per_shard)
        path = self.folder / self.shards[number].name
        try:
            start, end = (int(at) for at in self._starts[number][within : within + 2])
            sample = _read_sample(path, start, end)
        except (OSError, tarfile.TarError, ValueError, KeyError, TypeError) as error:
            raise UniWorldError(
                f"Sample {index} cannot be read from the shard '{path}' ({error}): fetch it anew."
            ) from error
        if isinstance(sample, BadSample):
            raise sample
        return sample

    def sizes(self, index: int) -> tuple[int, int]:
        """Height and width of its target in pixels. Raises UniWorldError where it could not be read."""
        height, width = self._sizes_N2[index].tolist()
        if not height:
            raise UniWorldError(f"The size of the target of sample {index} could not be read when its shard was made.")
        return height, width


def _read_sample(path: Path, start: int, end: int) -> Sample | BadSample:
    with path.open("rb") as file:
        file.seek(start)
        data = file.read(end - start)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        # A member is called by its sample's number, a dot, and what it is.
        held = {member.name.partition(".")[2]: _content(tar, member) for member in tar}
    told = json.loads(held["json"])
    if "problem" in told:
        return BadSample(told["key"], told["problem"])
    *references, target = (ShardPicture(picture["name"], held[picture["file"]]) for picture in told["pictures"])
    return Sample(told["key"], told["prompt"], tuple(references), target, told["weighted"])


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    if file is None:
        raise UniWorldError(f"its member '{member.name}' is no file")
    return file.read()


def _read_held(path: Path, shard: Shard) -> dict[str, np.ndarray]:
    try:
        size = path.stat().st_size
        held = load_file(path.with_suffix(".safetensors"))
        counts = len(held["starts"]) - 1, len(held["sizes"])
    except (OSError, SafetensorError, KeyError) as error:
        raise UniWorldError(
            f"The shard '{path}' or its .safetensors cannot be read ({error}): fetch both anew."
        ) from error
    if size != shard.bytes or counts != (shard.count, shard.count):
        raise UniWorldError(f"The shard '{path}' has {size} bytes instead of {shard.bytes}: fetch it anew.")
    return held


def read_index(folder: Path) -> dict[str, Any]:
    """What `index.json` says, its shards as `Shard`s. Raises UniWorldError if there is none, or it is damaged."""
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
            raise UniWorldError("a value in it is of another kind")
        return index
    except FileNotFoundError as error:
        raise UniWorldError(f"'{folder}' holds no shards: make them with `uniworld data shards`.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UniWorldError(f"'{folder / INDEX}' is no index of shards ({error}): make the shards anew.") from error
