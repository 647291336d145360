"""Write a safetensors file tensor by tensor, with only one in memory, and resume after an interruption.

safetensors' own `save_file` needs all tensors of a file in memory: 24 GB for a DiT. The format is a JSON header of known
size followed by the tensors' bytes (https://huggingface.co/docs/safetensors), so a file can be written in order.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import torch

from ...uniworld_core.errors import UniWorldError
from ...uniworld_core.files import sync_file

# safetensors' dtype names.
_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int8: "I8",
    torch.uint8: "U8",
}
_BLOCK = 2**22
_ALIGNMENT = 8  # of the header, as safetensors writes it


@dataclass(frozen=True)
class TensorEntry:
    """A tensor to write, read lazily.

    Attributes:
        dtype: dtype in the file.
        shape: shape in the file.
        read: returns the tensor; called when it is written.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]

    @property
    def size(self) -> int:
        """Size in the file, in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def data(self, name: str) -> memoryview:
        """Return the tensor's bytes. Raises UniWorldError if values are not finite in the file's dtype."""
        tensor = self.read()
        written = tensor.detach().cpu().to(self.dtype).contiguous()
        assert tuple(written.shape) == self.shape, f"{name} is {tuple(written.shape)} and not {self.shape}"
        if written.is_floating_point() and not bool(torch.isfinite(written.float()).all()):
            raise UniWorldError(
                f"{name} has values that are not finite as {_TYPES[self.dtype]}: the source is damaged, or choose another "
                "--storage."
            )
        return memoryview(written.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]  # arrays are buffers


@dataclass
class TensorFile:
    """A safetensors file to write.

    Attributes:
        entries: {name: tensor}.
        metadata: metadata of the header.
    """

    entries: Mapping[str, TensorEntry]
    metadata: Mapping[str, str] = field(default_factory=lambda: {"format": "pt"})

    @property
    def size(self) -> int:
        """Size of the file, in bytes."""
        return len(self._header()) + sum(entry.size for entry in self.entries.values())

    def write(self, file: Path, step: Callable[[], None] = lambda: None) -> str:
        """Write the file and return its SHA-256.

        Resumes an interrupted call: tensors in `file.part` are kept as long as they match their checksums in
        `file.journal`. The file gets its name once it is complete and synced to disk.

        Args:
            file: the file to write.
            step: called after each tensor.

        Raises:
            UniWorldError: values are not finite in the file's dtype.
            OSError: the file cannot be written.
        """
        part, journal = file.with_name(f"{file.name}.part"), file.with_name(f"{file.name}.journal")
        with part.open("a+b") as out, journal.open("a+", encoding="utf-8") as noted:
            noted.seek(0)
            kept, digest = self._keep(out, noted.read().splitlines())
            noted.seek(0)
            noted.truncate()
            noted.writelines(f"{checksum}\n" for checksum in kept)
            noted.flush()
            for index, (name, entry) in enumerate(self._ordered()):
                if index >= len(kept):
                    data = entry.data(name)
                    out.write(data)
                    out.flush()
                    digest.update(data)
                    noted.write(f"{hashlib.sha256(data).hexdigest()}\n")
                    noted.flush()
                step()
        sync_file(part)
        part.replace(file)
        journal.unlink()
        return digest.hexdigest()

    def _ordered(self) -> list[tuple[str, TensorEntry]]:
        # Wider dtypes first: readers view tensors in place, so each offset must be a multiple of the item size.
        return sorted(self.entries.items(), key=lambda item: -item[1].dtype.itemsize)

    def _header(self) -> bytes:
        described: dict[str, object] = {"__metadata__": dict(self.metadata)}
        offset = 0
        for name, entry in self._ordered():
            place = [offset, offset + entry.size]
            described[name] = {"dtype": _TYPES[entry.dtype], "shape": list(entry.shape), "data_offsets": place}
            offset += entry.size
        text = json.dumps(described, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        return len(text).to_bytes(8, "little") + text

    def _keep(self, out: BinaryIO, checksums: list[str]) -> tuple[list[str], hashlib._Hash]:
        """Truncate `out` after its intact tensors, and write the header if it is missing or differs.

        Returns:
            The checksums of the intact tensors, and the running SHA-256 of header and intact tensors.
        """
        header, kept = self._header(), []
        out.seek(0)
        if out.read(len(header)) != header:
            checksums = []
            out.truncate(0)
            out.write(header)
        digest, end = hashlib.sha256(header), len(header)
        for checksum, (_, entry) in zip(checksums, self._ordered()):
            extended = _extended(digest, out, end, entry.size, checksum)
            if extended is None:
                break
            digest, end = extended, end + entry.size
            kept.append(checksum)
        out.truncate(end)
        out.seek(end)
        return kept, digest


def _extended(digest: hashlib._Hash, out: BinaryIO, start: int, size: int, checksum: str) -> hashlib._Hash | None:
    """Extend a SHA-256 by a byte range of a file. Return None if the range's own SHA-256 is not `checksum`."""
    own, extended = hashlib.sha256(), digest.copy()
    out.seek(start)
    while size and (block := out.read(min(size, _BLOCK))):
        own.update(block)
        extended.update(block)
        size -= len(block)
    return None if size or own.hexdigest() != checksum else extended
