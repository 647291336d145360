"""FLUX's transformer in a file of its own, as checkpoints are split for ComfyUI: in BFL's names or diffusers'."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch

from ..errors import UniWorldError
from ..loading.names import Names, some
from ..loading.quantized import NF4Tensor, ScaledTensor, StoredTensor
from ..loading.weights import Shards
from .flux_bfl import bfl_tensors

# How ComfyUI's checkpoints and some converters prefix the names, and a beginning of a name in each of the two forms.
_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "")
_BFL, _DIFFUSERS = "double_blocks.", "transformer_blocks."


def open_transformer(
    file: Path, shapes: Mapping[str, tuple[int, ...]], doubles: int, singles: int
) -> tuple[Shards, Names]:
    """Open a file that holds FLUX's transformer.

    Args:
        shapes: {name in diffusers' FluxTransformer2DModel: shape} of all tensors that it must have.
        doubles, singles: number of double and single blocks.

    Returns:
        The tensors, and how their names map to diffusers'.

    Raises:
        UniWorldError: the file is damaged, or holds another model.
    """
    shards = Shards(file.parent, [file])
    for prefix in _PREFIXES:
        if any(name.startswith(prefix + _BFL) for name in shards.shapes):
            return BflShards(shards, prefix, shapes, doubles, singles), Names((("", ""),))
        if any(name.startswith(prefix + _DIFFUSERS) for name in shards.shapes):
            return shards, Names(((prefix, ""),))
    raise UniWorldError(f"{file} does not hold FLUX's transformer: use the file that was split from UniWorld-V1.")


class BflShards(Shards):
    """A transformer in BFL's names, seen as tensors in diffusers'. BFL joins q, k and v, and diffusers does not.

    Args:
        whole: the file.
        prefix: of all names in it.
        shapes, doubles, singles: as `open_transformer`.

    Raises:
        UniWorldError: a tensor is missing or does not fit.
    """

    def __init__(
        self, whole: Shards, prefix: str, shapes: Mapping[str, tuple[int, ...]], doubles: int, singles: int
    ) -> None:
        self.folder, self._whole, self._index = whole.folder, whole, {}
        # {diffusers' name: (name in the file, first row, end, whether the halves of the rows are swapped)}
        self._rows: dict[str, tuple[str, int, int, bool]] = {}
        missing = []
        for name, joined in bfl_tensors(shapes, doubles, singles).items():
            in_file, start = prefix + name, 0
            if in_file not in whole.shapes:
                missing.append(in_file)
                continue
            for part in joined.parts:
                end = start + shapes[part][0]
                self._rows[part] = in_file, start, end, joined.swap_halves
                start = end
            if whole.shapes[in_file][:1] != (start,):
                raise UniWorldError(
                    f"{in_file} in {whole.files[in_file]} has {whole.shapes[in_file][:1]} rows, expected {start}: "
                    "it belongs to another model."
                )
        if missing:
            raise UniWorldError(f"{whole.folder} lacks {some(missing)} of FLUX's transformer: copy the file again.")
        self.shapes = {
            name: (end - start, *whole.shapes[in_file][1:]) for name, (in_file, start, end, _) in self._rows.items()
        }
        self.dtypes = {name: whole.dtypes[in_file] for name, (in_file, *_) in self._rows.items()}
        self.files = {name: whole.files[in_file] for name, (in_file, *_) in self._rows.items()}
        self.encodings = {
            name: whole.encodings[in_file] for name, (in_file, *_) in self._rows.items() if in_file in whole.encodings
        }

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, StoredTensor]]:
        """As `Shards.read`."""
        wanted: dict[str, list[str]] = {}
        for name in names:
            wanted.setdefault(self._rows[name][0], []).append(name)
        for in_file, tensor in self._whole.read(wanted):
            for name in wanted[in_file]:
                _, start, end, swapped = self._rows[name]
                yield name, take_rows(tensor, start, end, swapped)

    def first_rows(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """As `Shards.first_rows`."""
        for name, tensor in self.read(names):
            values = tensor.values if isinstance(tensor, ScaledTensor) else tensor
            assert isinstance(values, torch.Tensor)
            yield name, values[:1]

    def nbytes(self, name: str) -> int:
        """As `Shards.nbytes`: its share of the joined tensor."""
        in_file, start, end, _ = self._rows[name]
        return self._whole.nbytes(in_file) * (end - start) // self._whole.shapes[in_file][0]


def take_rows(tensor: StoredTensor, start: int, end: int, swap_halves: bool = False) -> StoredTensor:
    """Return rows of a stored tensor, a view of them where their halves are not swapped.

    Raises:
        UniWorldError: it is NF4, whose blocks run across rows.
    """
    if isinstance(tensor, NF4Tensor):
        raise UniWorldError("NF4 weights in BFL's names cannot be split: use an NF4 file in diffusers' names.")
    if isinstance(tensor, ScaledTensor):
        scale = tensor.scale
        if scale is not None and scale.ndim:
            scale = _rows_of(scale, start, end, swap_halves)
        return ScaledTensor(_rows_of(tensor.values, start, end, swap_halves), scale)
    return _rows_of(tensor, start, end, swap_halves)


def _rows_of(tensor: torch.Tensor, start: int, end: int, swap_halves: bool) -> torch.Tensor:
    rows = tensor[start:end]
    if not swap_halves:
        return rows
    # Concatenated as bytes, since float8 has no `cat` on some devices.
    halves = rows.view(torch.uint8).chunk(2) if rows.dtype.itemsize == 1 else rows.chunk(2)
    return torch.cat(halves[::-1]).view(rows.dtype)
