"""Merge checkpoints by averaging their weights.

The mean of models that were fine-tuned from the same checkpoint is often better than each of them (model soups,
arXiv 2203.05482). The mean of a fine-tuned model and its starting checkpoint often forgets less (WiSE-FT,
arXiv 2109.01903).
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
# Settings that may differ between checkpoints of the same architecture: the dtype, and who wrote the file.
_FILE_SETTINGS = {"torch_dtype", "dtype", "transformers_version", "_name_or_path"}


def merge(checkpoints: Sequence[str | Path], to: Path, shares: Sequence[float] | None = None) -> None:
    """Write the weighted mean of several checkpoints as a checkpoint in the published format.

    The mean is computed in float32. Settings, dtypes and the routing head are those of the first checkpoint. A tensor
    that is identical in all checkpoints is copied bit for bit.

    Args:
        checkpoints: two or more folders in the published format, or names of shipped models.
        to: the folder to create; it must not exist.
        shares: the weight of each checkpoint in the mean, 0 or more; they are normalized by their sum. With None all
            weights are equal.

    Raises:
        UniWorldError: there are fewer than two checkpoints, the shares do not match them, a folder is not a checkpoint
            or differs from the first in tensors or settings, values are not finite, or `to` cannot be written.
    """
    if len(checkpoints) < 2:
        named = ", ".join(map(str, checkpoints)) or "none"
        raise UniWorldError(f"Merging takes two or more checkpoints and then the folder to create; got {named}.")
    weights = _weights(len(checkpoints), shares)
    folders = [_folder(checkpoint, to) for checkpoint in checkpoints]
    for folder in folders:
        check_checkpoint(folder)
    first, *others = (Shards(folder) for folder in folders)
    for other in others:
        _check_compatible(first, other)
    means = {
        name: Source(shape, partial(_mean, name, (first, *others), weights)) for name, shape in first.shapes.items()
    }
    write_changed(folders[0], means, to)


def _mean(name: str, all_shards: Sequence[Shards], weights: Sequence[float]) -> Tensor:
    """Return the weighted mean of a tensor in float32, or the tensor itself if it is identical in all checkpoints."""
    tensors = [Source.in_shards(shards, name).read() for shards in all_shards]
    for tensor, shards in zip(tensors, all_shards):
        if not bool(torch.isfinite(tensor).all()):
            raise UniWorldError(f"{name} in {shards.folder} has values that are not finite: merge another checkpoint.")
    if all(torch.equal(tensors[0], other) for other in tensors[1:]):
        return tensors[0]
    mean = torch.zeros(tensors[0].shape)
    for tensor, weight in zip(tensors, weights):
        mean.add_(tensor.float(), alpha=weight)
    return mean


def _weights(count: int, shares: Sequence[float] | None) -> list[float]:
    shares = [1.0] * count if shares is None else shares
    text = ",".join(map(str, shares))
    if len(shares) != count:
        raise UniWorldError(f"There are {count} checkpoints, but the shares are {text}: give one per checkpoint.")
    if not all(math.isfinite(share) and share >= 0 for share in shares) or max(shares) == 0:
        raise UniWorldError(
            f"The shares are {text}: give finite numbers of 0 or more, at least one above 0, such as 0.6,0.4."
        )
    largest = max(shares)  # scale first: the sum of large shares could overflow
    total = sum(share / largest for share in shares)
    return [share / largest / total for share in shares]


def _folder(checkpoint: str | Path, to: Path) -> Path:
    """Return the folder of a checkpoint.

    Raises:
        UniWorldError: it is a file, a parent of the checkpoint's folder, or a folder that contains `to`.
    """
    shipped = shipped_model(str(checkpoint))
    folder = Path(checkpoint) if shipped is None else shipped.checkpoint
    if folder.is_file():
        raise UniWorldError(f"{checkpoint} is a file: give the folder of its checkpoint.")
    if not (folder / _CONFIG).is_file() and (folder / "uniworld" / _CONFIG).is_file():
        raise UniWorldError(f"{checkpoint} is not a checkpoint, but contains one: give {folder / 'uniworld'}.")
    if folder.resolve() in to.resolve().parents:
        raise UniWorldError(f"{to} is inside {checkpoint}, which is merged: give a folder outside of it.")
    return folder


def _check_compatible(first: Shards, other: Shards) -> None:
    """Check that two checkpoints have the same tensors, shapes and settings. Raises UniWorldError otherwise."""
    advice = "only checkpoints of the same architecture can be merged."
    for one, its in ((first, other), (other, first)):
        missing = next((name for name in one.shapes if name not in its.shapes), None)
        if missing is not None:
            raise UniWorldError(f"{its.folder} has no tensor {missing}, but {one.folder} does: {advice}")
    for name, shape in first.shapes.items():
        if other.shapes[name] != shape:
            shapes = f"{list(shape)} in {first.folder} and {list(other.shapes[name])} in {other.folder}"
            raise UniWorldError(f"{name} has shape {shapes}: {advice}")
    settings, others = (dict(_flat(read_json(one.folder / _CONFIG))) for one in (first, other))
    # Only keys in both files are compared: one writer may spell out a default that another omits.
    for name in settings.keys() & others.keys():
        if settings[name] != others[name]:
            values = f"{shown(settings[name])} in {first.folder} and {shown(others[name])} in {other.folder}"
            raise UniWorldError(f"{_CONFIG} sets {name} to {values}: {advice}")


def _flat(settings: dict[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield (dotted name, value) of all settings that affect what a model computes."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif name not in _FILE_SETTINGS:
            yield prefix + name, value
