"""Samples: an instruction, the reference pictures, and the target picture."""

from __future__ import annotations

from collections.abc import Callable
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
from ...uniworld_core.images.orientation import upright_size
from ...uniworld_core.images.picture_files import PictureFile
from ...uniworld_core.images.pictures import to_rgb
from ..files import locked, write_atomic
from .threads import map_in_threads

# Samples per job of reading sizes: few enough to keep all threads busy, many enough to amortize the overhead.
_CHUNK = 256


class PictureSource(Protocol):
    """A picture that is opened on demand."""

    @property
    def name(self) -> str:
        """The name in messages."""

    def read(self) -> bytes:
        """Return the content of the file. Raises UniWorldError naming the picture."""

    def open(self) -> Image.Image:
        """Return the picture as 8-bit RGB. Raises UniWorldError naming the picture."""

    def size(self) -> tuple[int, int]:
        """Return height and width in pixels, read from the header. Raises UniWorldError naming the picture."""


@dataclass(frozen=True)
class Sample:
    """One training sample.

    Attributes:
        key: name in messages, stable and unique in its list, such as "annotations.json#12".
        prompt: the instruction, without `<image>` marks.
        references: the reference pictures, in order.
        target: the picture to paint.
        weighted: whether the loss weights the edited region.
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
        """Hex digest of the annotations and their order; it does not depend on the pictures."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """Return one sample. Raises `BadSample` if its annotation is invalid."""

    def sizes(self, index: int) -> tuple[int, int]:
        """Return height and width of a target in pixels, without decoding. Raises UniWorldError if it cannot be read."""


@dataclass(frozen=True)
class FilePicture:
    """A picture in its own file; `named_in` says where its path comes from, for messages."""

    path: Path
    named_in: str = "the image root and the annotation"

    @property
    def name(self) -> str:
        return str(self.path)

    def read(self) -> bytes:
        try:
            return self.path.read_bytes()
        except (OSError, ValueError) as error:  # ValueError: a name with characters that no file can have
            raise UniWorldError(self._unreadable(error)) from error

    def open(self) -> Image.Image:
        return decode(self.name, self.read())

    def size(self) -> tuple[int, int]:
        try:
            with self.path.open("rb") as file:
                return _size(self.name, file)
        except (OSError, ValueError) as error:
            raise UniWorldError(self._unreadable(error)) from error

    def _unreadable(self, error: OSError | ValueError) -> str:
        if isinstance(error, FileNotFoundError):
            return f"The picture '{self.name}' does not exist: check {self.named_in}."
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return f"The picture {self.name!r} cannot be read: {reason}. Check the path and its permissions."


def decode(name: str, data: bytes) -> Image.Image:
    """Decode a picture file as 8-bit RGB, upright.

    Raises:
        UniWorldError: the picture cannot be decoded, or is truncated: a model must not learn its gray filling.
    """
    with PictureFile(BytesIO(data), name) as file:
        picture = file.first()
        if file.damage:
            raise UniWorldError(
                f"The picture '{name}' cannot be decoded completely ({file.damage}): it is damaged or truncated. Replace it."
            )
        try:
            return to_rgb(picture)
        except UniWorldError as error:
            raise UniWorldError(f"The picture '{name}' cannot be used. {error}") from error


def picture_size(name: str, data: bytes) -> tuple[int, int]:
    """Return height and width of a picture file, upright. Raises UniWorldError naming the picture."""
    return _size(name, BytesIO(data))


def _size(name: str, file: IO[bytes]) -> tuple[int, int]:
    with PictureFile(file, name) as opened:
        width, height = opened.guarded(lambda: upright_size(opened.picture))
    return height, width


def size_table(samples: Samples, workers: int = 16, known: Tensor | None = None) -> Tensor:
    """Return height and width of every target: int32 (N, 2) in pixels, 0, 0 for targets that cannot be read.

    Args:
        samples: the samples.
        workers: threads that read headers; more than cores, because they mostly wait for the disk.
        known: an earlier table; only its missing rows are read.
    """
    table_N2 = torch.zeros(len(samples), 2, dtype=torch.int32) if known is None else known.clone()
    missing_N = (table_N2 == 0).any(dim=1).tolist()

    def read(start: int) -> None:
        for index in range(start, min(start + _CHUNK, len(samples))):
            if not missing_N[index]:
                continue
            try:
                table_N2[index] = torch.tensor(samples.sizes(index), dtype=torch.int32)
            except UniWorldError:
                # Opening the sample reports and counts the problem.
                continue

    for _ in map_in_threads(read, range(0, len(samples), _CHUNK), workers):
        pass
    return table_N2


def saved_size_table(file: Path, fingerprint: str, make: Callable[[], Tensor]) -> Tensor:
    """Read the size table that an earlier call saved for the same annotations, or create and save it.

    The order of a run depends on it: a picture that is lost or repaired later must not change the data of other steps.

    Args:
        file: the saved table.
        fingerprint: fingerprint of the samples.
        make: returns the table if none is saved.

    Raises:
        UniWorldError: the file is damaged, or cannot be written.
    """
    # One of several processes reads the headers; the others wait for it.
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
