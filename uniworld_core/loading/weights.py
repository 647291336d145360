"""Read the safetensors files of a model folder strictly, shard by shard.

Every tensor is read straight to its final dtype and device. Peak memory is therefore the loaded module plus one tensor, even
for a float32 checkpoint. The operating system can reclaim the pages of the mapped shard at any time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ..errors import UniWorldError, shown
from .encodings import BYTES, Encoding, find_encodings
from .headers import HeaderBudget, open_shard, read_header
from .names import some
from .quantized import StoredTensor
from .settings import read_json

# UniWorld-V1 in float32 has fewer than 20 files.
_MAX_SHARDS = 1000


class Shards:
    """The safetensors files of one model folder, and which tensors each of them stores.

    A quantized weight counts as one tensor, although it consists of several in the files.

    Args:
        folder: contains either `NAME.safetensors.index.json` with its shards, or one `NAME.safetensors`.
        files: the files, if they have other names.

    Attributes:
        shapes: {tensor: shape}, dequantized for quantized weights.
        dtypes: {tensor: dtype in the files, as safetensors names it}.
        files: {tensor: file}.
        encodings: {quantized weight: encoding}.

    Raises:
        UniWorldError: the folder has no weights, a file is missing or truncated, the index and the files do not match, two files
            store the same tensor, the headers exceed the limits, or a quantized weight's scale is missing or invalid.
    """

    NAMES: tuple[str, ...] = ("model", "diffusion_pytorch_model")
    SUFFIX = ".safetensors"

    def __init__(self, folder: Path, files: Sequence[Path] | None = None) -> None:
        self.folder = folder
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self.files: dict[str, Path] = {}
        self._index: dict[str, str] = {}
        files, budget = files or self._find(), HeaderBudget()
        indexed: dict[str, set[str]] = {}
        for name, in_file in self._index.items():
            indexed.setdefault(in_file, set()).add(name)
        for file in files:
            header = self._header(file, budget)
            if (expected := indexed.get(file.name)) and expected.isdisjoint(header):
                raise UniWorldError(
                    f"{file} holds none of the tensors that the index lists for it ({some(sorted(expected))}): "
                    "the index and the files belong to different checkpoints, copy the folder again."
                )
            for name, (dtype, shape) in header.items():
                if name in self.files:
                    raise UniWorldError(
                        f"{name} is stored in both {self.files[name].name} and {file.name} of {folder}: "
                        "files of different checkpoints are mixed, copy the folder again."
                    )
                self.shapes[name], self.dtypes[name], self.files[name] = shape, dtype, file
        # {tensor: (dtype, shape, file)} as stored, including the parts of quantized weights.
        self._stored = {name: (self.dtypes[name], self.shapes[name], file) for name, file in self.files.items()}
        self.encodings = self._find_encodings()

    def _header(self, file: Path, budget: HeaderBudget) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return {tensor: (dtype, shape)} of a file."""
        return read_header(file, budget)

    def _open(self, file: Path) -> Any:
        """Open a file as `safe_open` does."""
        return open_shard(file)

    def _find_encodings(self) -> dict[str, Encoding]:
        try:
            found = find_encodings(self.shapes, self.dtypes, self.files, self._read_small)
        except UniWorldError as error:
            raise UniWorldError(f"In {self.folder}: {error}") from error
        for name in found.absorbed:
            del self.shapes[name], self.dtypes[name], self.files[name]
        self.shapes |= {name: encoding.shape for name, encoding in found.weights.items()}
        return found.weights

    def _read_small(self, name: str) -> torch.Tensor:
        with self._open(self._stored[name][2]) as shard:
            return self._tensor(shard, name).clone()

    def with_file(self, name: str) -> str:
        """Return the tensor's name for an error, with the file that should store it if the index lists one."""
        return f"{name} (of {self._index[name]})" if name in self._index else name

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, StoredTensor]]:
        """Yield (name, tensor) of these tensors on the CPU, file by file. Each file is opened once.

        A tensor is a view of its mapped file, which stays mapped as long as the view exists.

        Raises:
            UniWorldError: a file has changed since its header was read, or a scale is NaN, infinite, negative or 0.
        """
        for name, shard in self._opened(names):
            encoding = self.encodings.get(name)
            tensor = self._tensor(shard, name)
            if encoding is None:
                yield name, tensor
            else:
                yield (
                    name,
                    encoding.decode(
                        tensor, {part: self._part(shard, name, part, of) for part, of in encoding.parts.items()}
                    ),
                )

    def first_rows(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (name, first row) of these tensors as stored: (1, ...), or () for a tensor without dimensions."""
        for name, shard in self._opened(names):
            yield name, self._tensor(shard, name, first_row=True)

    def _opened(self, names: Iterable[str]) -> Iterator[tuple[str, Any]]:
        """Yield (name, its opened file) of these tensors. Each file is opened once."""
        wanted: dict[Path, list[str]] = {}
        for name in names:
            wanted.setdefault(self.files[name], []).append(name)
        for file, here in wanted.items():
            with self._open(file) as shard:
                for name in here:
                    yield name, shard

    def _tensor(self, shard: Any, name: str, first_row: bool = False) -> torch.Tensor:
        """Read a tensor as stored. Raises UniWorldError if the file has changed since its header was read."""
        dtype, shape, file = self._stored[name]
        try:
            part = shard.get_slice(name)
            if tuple(part.get_shape()) != shape or part.get_dtype() != dtype:
                raise SafetensorError(f"{name} had shape {shape} and dtype {dtype}")
            return part[:1] if first_row and shape else shard.get_tensor(name)
        except SafetensorError as error:
            raise UniWorldError(
                f"{file} has changed since the model was opened ({error}): open the model again."
            ) from error

    def _part(self, shard: Any, weight: str, role: str, name: str) -> torch.Tensor:
        """Read another tensor of a quantized weight, which may be in another shard.

        Raises:
            UniWorldError: values are NaN or infinite, or scales are negative or 0. Pictures would be wrong, or the sampler
                would notice, which cannot name the tensor.
        """
        file = self._stored[name][2]
        if file == self.files[weight]:
            tensor = self._tensor(shard, name)
        else:
            with self._open(file) as other:
                tensor = self._tensor(other, name)
        if tensor.is_floating_point() and (bad := int((~tensor.isfinite()).sum())):
            raise UniWorldError(
                f"In {file}, {bad} of {tensor.numel()} values of {name} are NaN or infinite: copy or convert the files again."
            )
        if role in ("scale", "absmax", "nested_absmax") and tensor.is_floating_point():
            # The largest value of a block of zeros is 0, and a scale of 0 makes its weights 0.
            wrong = tensor.float() <= 0 if role == "scale" else tensor < 0
            if bad := int(wrong.sum()):
                kind = "negative or 0" if role == "scale" else "negative"
                raise UniWorldError(
                    f"In {file}, {bad} of {tensor.numel()} values of {name} are {kind}: copy or convert the files again."
                )
        return tensor

    def nbytes(self, name: str) -> int:
        """Return the bytes that a tensor takes in the files, including all parts of a quantized weight."""
        encoding = self.encodings.get(name)
        names = [name] if encoding is None else [name, *encoding.parts.values()]
        return sum(math.prod(shape) * BYTES.get(dtype, 8) for dtype, shape, _ in map(self._stored.__getitem__, names))

    def check_depth(self, wanted: int, prefixes: tuple[str, ...], source: str | Path) -> None:
        """Check the number of layers in a configuration against the files.

        This comes before any layer is built, so that a damaged configuration cannot ask for millions of them.

        Args:
            wanted: number of layers in the configuration.
            prefixes: names of the layers up to their number, one for each spelling.
            source: where the configuration comes from, for the error.

        Raises:
            UniWorldError: the files store a different number of layers.
        """
        layers = {
            name[len(prefix) :].partition(".")[0]
            for name in self.shapes
            for prefix in prefixes
            if name.startswith(prefix)
        }
        if len(layers) != wanted:
            raise UniWorldError(
                f"The weights in {self.folder} do not match the configuration: {source} asks for {wanted} layers "
                f"{prefixes[0]}0 and so on, and the files hold {len(layers)}. "
                "Use weights and config.json from the same checkpoint."
            )

    def _find(self) -> list[Path]:
        for stem in self.NAMES:
            index = self.folder / f"{stem}{self.SUFFIX}.index.json"
            if index.is_file():
                return self._indexed(index)
            single = self.folder / f"{stem}{self.SUFFIX}"
            if single.is_file():
                return [single]
        expected = " or ".join(f"{stem}{self.SUFFIX}" for stem in self.NAMES)
        raise UniWorldError(
            f"{self.folder} holds no weights: expected {expected}, or the shards of one with its "
            f"{self.SUFFIX}.index.json. Copy the complete folder."
        )

    def _indexed(self, index: Path) -> list[Path]:
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise UniWorldError(f"{index} has no 'weight_map': copy the file again.")
        for name, file in weight_map.items():
            if not isinstance(file, str):
                raise UniWorldError(f"{index} has {shown(file)} as the file of {name}: copy the file again.")
        self._index = weight_map
        names = sorted(set(weight_map.values()))
        if len(names) > _MAX_SHARDS:
            raise UniWorldError(
                f"{index} names {len(names)} files, more than {_MAX_SHARDS}: it is not a published index."
            )
        if any(Path(name).name != name or "\0" in name or len(name.encode("utf-8", "replace")) > 255 for name in names):
            raise UniWorldError(f"{index} names shards outside its own folder: it is not a published index.")
        absent = [name for name in names if not (self.folder / name).is_file()]
        if absent:
            raise UniWorldError(
                f"{index.name} in {self.folder} names {len(names)} files; missing are {some(absent)}: copy them there too."
            )
        return [self.folder / name for name in names]
