"""One annotation as a sample: its instruction, the pictures before the edit, and the picture to paint."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Protocol

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ...uniworld_core.errors import UniWorldError
from ...uniworld_core.images.picture_files import PictureFile, upright_size
from ...uniworld_core.images.pictures import to_rgb
from ..files import locked, write_atomic

# Samples whose sizes are read by one job: few enough to keep all threads busy, many enough to cost nothing.
_CHUNK = 256


class PictureSource(Protocol):
    """A picture that is not opened yet."""

    @property
    def name(self) -> str:
        """What messages call it."""

    def read(self) -> bytes:
        """Its file, as it is. Raises UniWorldError naming the picture."""

    def open(self) -> Image.Image:
        """The picture as 8-bit RGB. Raises UniWorldError naming the picture."""

    def size(self) -> tuple[int, int]:
        """Height and width in pixels, from its header alone. Raises UniWorldError naming the picture."""


@dataclass(frozen=True)
class Sample:
    """One painting to learn.

    Attributes:
        key: what messages call it, stable and unique in its list, such as "annotations.json#12".
        prompt: the instruction, without `<image>` marks.
        references: the pictures that the instruction speaks of, in order.
        target: the picture to paint.
        weighted: whether the edited part weighs more in the loss.
    """

    key: str
    prompt: str
    references: tuple[PictureSource, ...]
    target: PictureSource
    weighted: bool


class Samples(Protocol):
    """Samples by index."""

    @property
    def fingerprint(self) -> str:
        """Hex digest of the annotations and their order. It does not look into the pictures."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """One sample. Raises `BadSample` where its annotation is of no use."""

    def sizes(self, index: int) -> tuple[int, int]:
        """Height and width of its target in pixels, without decoding it. Raises UniWorldError where there is none."""


@dataclass(frozen=True)
class FilePicture:
    """A picture in a file of its own; `named_in` is where to look if the file is not there."""

    path: Path
    named_in: str = "the image root and the annotation"

    @property
    def name(self) -> str:
        return str(self.path)

    def read(self) -> bytes:
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise UniWorldError(self._unreadable(error)) from error

    def open(self) -> Image.Image:
        return decode(self.name, self.read())

    def size(self) -> tuple[int, int]:
        try:
            with self.path.open("rb") as file:
                return _size(self.name, file)
        except OSError as error:
            raise UniWorldError(self._unreadable(error)) from error

    def _unreadable(self, error: OSError) -> str:
        if isinstance(error, FileNotFoundError):
            return f"The picture '{self.name}' does not exist: check {self.named_in}."
        return f"The picture '{self.name}' cannot be read: {error.strerror}. Check the path and its rights."


def decode(name: str, data: bytes) -> Image.Image:
    """A picture file's bytes as 8-bit RGB, upright.

    Raises:
        UniWorldError: names the picture, which cannot be decoded or lacks pixels: nobody is to learn gray from it.
    """
    with PictureFile(BytesIO(data), name) as file:
        picture = file.first()
        if file.damage:
            raise UniWorldError(
                f"The picture '{name}' cannot be decoded whole ({file.damage}): it is damaged or cut short. Get a whole copy."
            )
        try:
            return to_rgb(picture)
        except UniWorldError as error:
            raise UniWorldError(f"The picture '{name}' is of no use. {error}") from error


def picture_size(name: str, data: bytes) -> tuple[int, int]:
    """Height and width of a picture file's bytes, upright. Raises UniWorldError naming the picture."""
    return _size(name, BytesIO(data))


def _size(name: str, file: IO[bytes]) -> tuple[int, int]:
    with PictureFile(file, name) as opened:
        width, height = opened.guarded(lambda: upright_size(opened.picture))
    return height, width


def size_table(samples: Samples, workers: int = 16, known: Tensor | None = None) -> Tensor:
    """Height and width of every target: int32 (N, 2), in pixels; 0, 0 where they cannot be read.

    Args:
        workers: threads that read headers at the same time; reading waits for the disk, not for the processor.
        known: an earlier table; only what it lacks is read.
    """
    table_N2 = torch.zeros(len(samples), 2, dtype=torch.int32) if known is None else known.clone()
    lacking_N = (table_N2 == 0).any(dim=1).tolist()

    def read(start: int) -> None:
        for index in range(start, min(start + _CHUNK, len(samples))):
            if not lacking_N[index]:
                continue
            try:
                table_N2[index] = torch.tensor(samples.sizes(index), dtype=torch.int32)
            except UniWorldError:
                # What is wrong is told when the sample is opened, and counted there.
                continue

    with ThreadPoolExecutor(max(1, workers)) as pool:
        list(pool.map(read, range(0, len(samples), _CHUNK)))
    return table_N2


def saved_size_table(file: Path, fingerprint: str, make: Callable[[], Tensor]) -> Tensor:
    """The size table, read from a file that an earlier call wrote for the same annotations, else made and written.

    The order of a run hangs on it: a picture that is lost or mended meanwhile must not change what other steps see.

    Args:
        fingerprint: of the samples.
        make: gives the table where there is none.

    Raises:
        UniWorldError: the file is damaged, or cannot be written.
    """
    # One of several processes reads the headers, the others wait for it.
    with locked(file.with_name(f"{file.name}.lock"), wait=True, busy=f"'{file}' cannot be locked."):
        if file.is_file():
            try:
                with safe_open(file, "pt") as kept:
                    if kept.metadata()["samples"] == fingerprint:
                        return kept.get_tensor("sizes").clone()
            except (SafetensorError, OSError, KeyError, TypeError) as error:
                raise UniWorldError(f"The sizes in '{file}' are damaged ({error}): delete the file.") from error
        table_N2 = make()
        write_atomic(file, save({"sizes": table_N2}, {"samples": fingerprint}))
        return table_N2
