"""Checkpoints merged by averaging their weights: of models trained on from one start the mean is often better than each,
and one with the start itself forgets less (model soups, arXiv 2203.05482; WiSE-FT, arXiv 2109.01903)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..uniworld_core.model import check_checkpoint
from ..uniworld_core.shipped import shipped_model
from ..uniworld_core.weights import Shards
from .export import write_changed
from .model_folder import Source


def merge(checkpoints: Sequence[str | Path], to: Path, shares: Sequence[float] | None = None) -> None:
    """Write the mean of some checkpoints' weights, tensor by tensor, as a checkpoint in the published format.

    The mean is taken in float32. Settings, the types of tensors and the routing head are those of the first; a tensor that
    is the same in all stays as it is, bit for bit.

    Args:
        checkpoints: two folders or more in the published format, or names of shipped models.
        to: the folder to make; it must not be there.
        shares: of each in the mean, 0 or more; they are divided by their sum. None gives all the same.

    Raises:
        ValueError: fewer than two checkpoints, shares that do not fit them, a folder that is no checkpoint, one with
            other tensors than the first, values that are not finite, or `to` cannot be written.
    """
    if len(checkpoints) < 2:
        raise ValueError(f"Merging takes two checkpoints or more, and {len(checkpoints)} were named.")
    weights = _weights(len(checkpoints), shares)
    folders = [_folder(checkpoint) for checkpoint in checkpoints]
    for folder in folders:
        check_checkpoint(folder)
    write_changed(folders[0], _Mean([Shards(folder) for folder in folders], weights), to)


class _Mean(Mapping[str, Tensor]):
    """The mean of each tensor, computed when it is asked for: what is large is never held as a whole."""

    def __init__(self, shards: Sequence[Shards], weights: Sequence[float]) -> None:
        self.shards, self.weights = shards, weights
        for other in shards[1:]:
            _check_alike(shards[0], other)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shards[0].shapes)

    def __len__(self) -> int:
        return len(self.shards[0].shapes)

    def __contains__(self, name: object) -> bool:  # the Mapping's own would compute it
        return name in self.shards[0].shapes

    def __getitem__(self, name: str) -> Tensor:
        tensors = [Source.in_shards(one, name).read() for one in self.shards]
        for tensor, one in zip(tensors, self.shards):
            if not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"{name} in {one.folder} holds values that are not finite: it cannot be merged.")
        if all(torch.equal(tensors[0], other) for other in tensors[1:]):
            return tensors[0]
        mean = torch.zeros(tensors[0].shape)
        for tensor, weight in zip(tensors, self.weights):
            mean.add_(tensor.float(), alpha=weight)
        return mean


def _weights(count: int, shares: Sequence[float] | None) -> list[float]:
    shares = [1.0] * count if shares is None else shares
    if len(shares) != count:
        raise ValueError(f"There are {count} checkpoints and {len(shares)} shares: give each one.")
    if not all(math.isfinite(share) and share >= 0 for share in shares) or sum(shares) == 0:
        raise ValueError(f"The shares are {list(shares)}; they must be 0 or more, and not all 0, such as 0.6,0.4.")
    return [share / sum(shares) for share in shares]


def _folder(checkpoint: str | Path) -> Path:
    shipped = shipped_model(str(checkpoint))
    return Path(checkpoint) if shipped is None else shipped.checkpoint


def _check_alike(first: Shards, other: Shards) -> None:
    for one, its in ((first, other), (other, first)):
        lacking = next((name for name in one.shapes if name not in its.shapes), None)
        if lacking is not None:
            raise ValueError(
                f"{its.folder} has no tensor {lacking}, which {one.folder} has: only models alike can be merged."
            )
    for name, shape in first.shapes.items():
        if other.shapes[name] != shape:
            raise ValueError(
                f"{name} has shape {list(shape)} in {first.folder} and {list(other.shapes[name])} in {other.folder}: only "
                "models alike can be merged."
            )
