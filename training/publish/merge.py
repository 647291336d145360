"""Checkpoints merged by averaging their weights.

The mean of models that were trained on from one start is often better than each (model soups, arXiv 2203.05482), and that
of a model and its own start often forgets less (WiSE-FT, arXiv 2109.01903).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ...uniworld_core.errors import UniWorldError, shown
from ...uniworld_core.families.uniworld_v1.checkpoint import check_checkpoint
from ...uniworld_core.loading.settings import read_json
from ...uniworld_core.loading.shipped import shipped_model
from ...uniworld_core.loading.weights import Shards
from .export import write_changed
from .model_folder import Source

_CONFIG = "config.json"
# What configurations of models alike may differ in: the type of the numbers, and who wrote the file.
_OF_THE_FILE = {"torch_dtype", "dtype", "transformers_version", "_name_or_path"}


def merge(checkpoints: Sequence[str | Path], to: Path, shares: Sequence[float] | None = None) -> None:
    """Write the mean of some checkpoints' weights, tensor by tensor, as a checkpoint in the published format.

    The mean is taken in float32. Settings, the types of tensors and the routing head are those of the first; a tensor that
    is the same in all stays as it is, bit for bit.

    Args:
        checkpoints: two folders or more in the published format, or names of shipped models.
        to: the folder to make; it must not be there.
        shares: of each in the mean, 0 or more; they are divided by their sum. None gives all the same.

    Raises:
        UniWorldError: fewer than two checkpoints, shares that do not fit them, a folder that is no checkpoint, one with
            other tensors or settings than the first, values that are not finite, or `to` cannot be written.
    """
    if len(checkpoints) < 2:
        named = ", ".join(map(str, checkpoints)) or "none"
        raise UniWorldError(
            f"Merging takes two checkpoints or more, and then the folder to make; of checkpoints it got {named}."
        )
    weights = _weights(len(checkpoints), shares)
    folders = [_folder(checkpoint, to) for checkpoint in checkpoints]
    for folder in folders:
        check_checkpoint(folder)
    first, *others = (Shards(folder) for folder in folders)
    for other in others:
        _check_alike(first, other)
    means = {
        name: Source(shape, partial(_mean, name, (first, *others), weights)) for name, shape in first.shapes.items()
    }
    write_changed(folders[0], means, to)


def _mean(name: str, all_shards: Sequence[Shards], weights: Sequence[float]) -> Tensor:
    """The mean of a tensor in some checkpoints, in float32, or the tensor itself where all have the same."""
    tensors = [Source.in_shards(shards, name).read() for shards in all_shards]
    for tensor, shards in zip(tensors, all_shards):
        if not bool(torch.isfinite(tensor).all()):
            raise UniWorldError(
                f"{name} in {shards.folder} holds values that are not finite: merge another checkpoint."
            )
    if all(torch.equal(tensors[0], other) for other in tensors[1:]):
        return tensors[0]
    mean = torch.zeros(tensors[0].shape)
    for tensor, weight in zip(tensors, weights):
        mean.add_(tensor.float(), alpha=weight)
    return mean


def _weights(count: int, shares: Sequence[float] | None) -> list[float]:
    shares = [1.0] * count if shares is None else shares
    told = ",".join(map(str, shares))
    if len(shares) != count:
        raise UniWorldError(f"The shares are {told} and the checkpoints {count}: give each checkpoint one.")
    if not all(math.isfinite(share) and share >= 0 for share in shares) or max(shares) == 0:
        raise UniWorldError(
            f"The shares are {told}: give finite numbers of 0 or more, and not only 0, such as 0.6,0.4."
        )
    largest = max(shares)  # their sum may be more than a number can be
    total = sum(share / largest for share in shares)
    return [share / largest / total for share in shares]


def _folder(checkpoint: str | Path, to: Path) -> Path:
    """The folder of a checkpoint. Raises UniWorldError for a file, a folder around one, and one that `to` would lie in."""
    shipped = shipped_model(str(checkpoint))
    folder = Path(checkpoint) if shipped is None else shipped.checkpoint
    if folder.is_file():
        raise UniWorldError(f"{checkpoint} is a file: name the folder of its checkpoint.")
    if not (folder / _CONFIG).is_file() and (folder / "uniworld" / _CONFIG).is_file():
        raise UniWorldError(f"{checkpoint} is no checkpoint, but holds one: name {folder / 'uniworld'}.")
    if folder.resolve() in to.resolve().parents:
        raise UniWorldError(f"{to} would lie in {checkpoint}, which is merged: give a folder beside it.")
    return folder


def _check_alike(first: Shards, other: Shards) -> None:
    """Raises UniWorldError unless two checkpoints have the same tensors, shapes and settings."""
    alike = "only models alike can be merged."
    for one, its in ((first, other), (other, first)):
        lacking = next((name for name in one.shapes if name not in its.shapes), None)
        if lacking is not None:
            raise UniWorldError(f"{its.folder} has no tensor {lacking}, which {one.folder} has: {alike}")
    for name, shape in first.shapes.items():
        if other.shapes[name] != shape:
            shapes = f"{list(shape)} in {first.folder} and {list(other.shapes[name])} in {other.folder}"
            raise UniWorldError(f"{name} has shape {shapes}: {alike}")
    settings, others = (dict(_flat(read_json(one.folder / _CONFIG))) for one in (first, other))
    # One that a file leaves out may be what another writes out as the default.
    for name in settings.keys() & others.keys():
        if settings[name] != others[name]:
            values = f"{shown(settings[name])} in {first.folder} and {shown(others[name])} in {other.folder}"
            raise UniWorldError(f"{_CONFIG} sets {name} to {values}: {alike}")


def _flat(settings: dict[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """(dotted name, value) of all settings that tell what a model computes."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif name not in _OF_THE_FILE:
            yield prefix + name, value
