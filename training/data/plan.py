"""The samples of each step: every sample once per epoch, each batch of one size, computed from the step's number.

There is no state between steps, so a run that resumes at step s sees the same data as an uninterrupted one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...uniworld_core.errors import UniWorldError
from ...uniworld_core.images.sizes import DEFAULT_AREA, DEFAULT_RATIOS, Size, size_by_aspect

# Marsaglia's xorshift* multiplier: separates the random streams of epochs from those of other seeds, and from the noise
# of the samples.
_STRIDE = 0x2545F4914F6CDD1D


class Slot(NamedTuple):
    """A place in a batch.

    Attributes:
        position: position in the order of all samples of the run; seeds the sample's random numbers.
        sample: index of the sample.
    """

    position: int
    sample: int


def painted_sizes(sizes_N2: Tensor, area: int = DEFAULT_AREA, ratios: str = DEFAULT_RATIOS) -> Tensor:
    """Return the painted heights and widths, int32 (N, 2) in pixels, of targets with these heights and widths.

    A target that could not be read (0, 0) gets the most common size, so that its step reports and counts it.

    Raises:
        UniWorldError: no target can be read, or the area or the set of ratios is invalid.
    """
    rows_M2, row_of_N = _distinct(sizes_N2)
    counts_M = torch.bincount(row_of_N, minlength=len(rows_M2))
    readable_M = (rows_M2 > 0).all(dim=1)
    if not bool(readable_M.any()):
        raise UniWorldError(f"None of the {len(sizes_N2)} targets can be read: run `uniworld data check` to see why.")
    painted = [size_by_aspect(*row, area, ratios) if min(row) > 0 else Size(0, 0) for row in rows_M2.tolist()]
    painted_M2 = torch.tensor([(size.height, size.width) for size in painted], dtype=torch.int32)
    buckets_K2, bucket_of_M = _distinct(painted_M2)
    counts_K = torch.zeros(len(buckets_K2), dtype=torch.int64).index_add_(0, bucket_of_M, counts_M * readable_M)
    painted_M2[~readable_M] = buckets_K2[counts_K.argmax()]
    return painted_M2[row_of_N]


def _distinct(sizes_N2: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sorted distinct rows, int32 (K, 2), and the index of each row among them, int64 (N,)."""
    # Packed into one integer per row: torch.unique over rows takes ten times as long.
    height_N, width_N = sizes_N2.long().unbind(dim=1)
    both_K, which_N = torch.unique(height_N << 32 | width_N, return_inverse=True)
    return torch.stack([both_K >> 32, both_K & 0xFFFFFFFF], dim=1).int(), which_N


class Plan:
    """The order of the samples.

    An epoch shuffles the samples, splits those of each size into batches, and shuffles the batches. The last batch of a
    size is filled with that size's first samples of the epoch. Rank r of W takes slots r, r + W, ... of each batch, so
    a step's data does not depend on W.

    Attributes:
        batch_size: global batch size.
        seed: seed of the order.
        steps_per_epoch: number of batches in an epoch.
    """

    def __init__(self, sizes_N2: Tensor, batch_size: int, seed: int) -> None:
        """Plan samples whose painted heights and widths are the rows of `sizes_N2`, as `painted_sizes` returns them.

        Raises:
            UniWorldError: there are no samples, or the batch size is below 1.
        """
        if sizes_N2.ndim != 2 or sizes_N2.shape[1] != 2 or not len(sizes_N2):
            raise UniWorldError(f"A plan needs sizes of shape (N, 2) with N of 1 or more, got {list(sizes_N2.shape)}.")
        if batch_size < 1:
            raise UniWorldError(f"The batch size is {batch_size}; it must be at least 1.")
        self.batch_size, self.seed = batch_size, seed
        self._sizes_K2, self._bucket_N = _distinct(sizes_N2)
        self._samples_K = torch.bincount(self._bucket_N, minlength=len(self._sizes_K2))
        self._batches_K = (self._samples_K + batch_size - 1) // batch_size
        self._first_sample_K = self._samples_K.cumsum(0) - self._samples_K
        self._last_batch_K = self._batches_K.cumsum(0)
        self.steps_per_epoch = int(self._last_batch_K[-1])
        self._shuffled: tuple[int, Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return len(self._bucket_N)

    def epoch(self, step: int) -> int:
        """Return the epoch of a step, counted from 0."""
        return step // self.steps_per_epoch

    def size(self, step: int) -> Size:
        """Return the painted size of a step, in pixels."""
        height, width = self._sizes_K2[self._place(step)[0]].tolist()
        return Size(height, width)

    def counts(self) -> dict[Size, int]:
        """Return {painted size in pixels: number of samples}."""
        return {Size(*size): count for size, count in zip(self._sizes_K2.tolist(), self._samples_K.tolist())}

    def batch(self, step: int) -> list[Slot]:
        """Return the `batch_size` slots of a step.

        Raises:
            UniWorldError: the step is negative.
        """
        bucket, number = self._place(step)
        _, samples_N, _ = self._shuffle(self.epoch(step))
        first, count = int(self._first_sample_K[bucket]), int(self._samples_K[bucket])
        within = (number * self.batch_size + torch.arange(self.batch_size)) % count
        indices = samples_N[first + within].tolist()
        return [Slot(step * self.batch_size + slot, index) for slot, index in enumerate(indices)]

    def _place(self, step: int) -> tuple[int, int]:
        """Return the bucket of a step and the number of its batch within the bucket."""
        if step < 0:
            raise UniWorldError(f"The step is {step}; steps are counted from 0.")
        _, _, batches_E = self._shuffle(self.epoch(step))
        batch = int(batches_E[step % self.steps_per_epoch])
        bucket = int(torch.searchsorted(self._last_batch_K, batch, right=True))
        return bucket, batch - int(self._last_batch_K[bucket] - self._batches_K[bucket])

    def _shuffle(self, epoch: int) -> tuple[int, Tensor, Tensor]:
        """Return the epoch, its samples shuffled and grouped by bucket (N,), and its batches shuffled (E,)."""
        shuffled = self._shuffled
        if shuffled is None or shuffled[0] != epoch:
            generator = torch.Generator("cpu").manual_seed((self.seed * _STRIDE + epoch) % 2**63)
            order_N = torch.randperm(len(self), generator=generator).numpy()
            # numpy, because torch's sort would start a team of OpenMP threads for this thread. With more OpenMP threads
            # than cores, the training's threads sleep between any two operations, too.
            samples_N = torch.from_numpy(order_N[np.argsort(self._bucket_N.numpy()[order_N], kind="stable")])
            shuffled = epoch, samples_N, torch.randperm(self.steps_per_epoch, generator=generator)
            self._shuffled = shuffled
        return shuffled
