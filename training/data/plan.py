"""Which samples each step takes: every one once an epoch, each batch of one size, all by arithmetic.

Nothing is kept between steps, so a run that goes on at step s sees what the uninterrupted run would have seen.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...uniworld_core.errors import UniWorldError
from ...uniworld_core.images.sizes import DEFAULT_AREA, DEFAULT_RATIOS, Size, size_by_aspect

# Keeps the epochs of a seed apart from those of the next seeds, and from the noise of the samples
# (Marsaglia's xorshift* multiplier).
_STRIDE = 0x2545F4914F6CDD1D


class Slot(NamedTuple):
    """A place in a batch.

    Attributes:
        position: the place in the order of all samples ever taken; what a sample's random numbers are drawn for.
        sample: which one, by index.
    """

    position: int
    sample: int


def painted_sizes(sizes_N2: Tensor, area: int = DEFAULT_AREA, ratios: str = DEFAULT_RATIOS) -> Tensor:
    """Heights and widths that are painted for targets of these heights and widths: int32 (N, 2), in pixels.

    A target that could not be read (0, 0) goes with the most common size: it is met, named and counted there.

    Raises:
        UniWorldError: no target can be read, or the area or the set of ratios is wrong.
    """
    rows_M2, row_of_N = _distinct(sizes_N2)
    counts_M = torch.bincount(row_of_N, minlength=len(rows_M2))
    readable_M = (rows_M2 > 0).all(dim=1)
    if not bool(readable_M.any()):
        raise UniWorldError(f"None of the {len(sizes_N2)} targets can be read: `uniworld data check` names each one.")
    painted = [size_by_aspect(*row, area, ratios) if min(row) > 0 else Size(0, 0) for row in rows_M2.tolist()]
    painted_M2 = torch.tensor([(size.height, size.width) for size in painted], dtype=torch.int32)
    buckets_K2, bucket_of_M = _distinct(painted_M2)
    counts_K = torch.zeros(len(buckets_K2), dtype=torch.int64).index_add_(0, bucket_of_M, counts_M * readable_M)
    painted_M2[~readable_M] = buckets_K2[counts_K.argmax()]
    return painted_M2[row_of_N]


def _distinct(sizes_N2: Tensor) -> tuple[Tensor, Tensor]:
    """The different rows, sorted, int32 (K, 2), and which of them each row is, int64 (N,)."""
    # As one number a row: torch.unique over rows takes ten times as long.
    height_N, width_N = sizes_N2.long().unbind(dim=1)
    both_K, which_N = torch.unique(height_N << 32 | width_N, return_inverse=True)
    return torch.stack([both_K >> 32, both_K & 0xFFFFFFFF], dim=1).int(), which_N


class Plan:
    """The order of the samples.

    An epoch shuffles the samples, cuts those of each size into batches, and shuffles the batches. The last batch of a
    size is filled up from that size's first samples of the epoch. Rank r of W takes the slots r, r + W, ... of each
    batch, so what a step sees does not depend on W.

    Attributes:
        batch_size: samples of one optimizer step, on all ranks together.
        seed: the same seed gives the same order.
        steps_per_epoch: batches until every sample was met.
    """

    def __init__(self, sizes_N2: Tensor, batch_size: int, seed: int) -> None:
        """Plan samples whose painted heights and widths are the rows of `sizes_N2`, as `painted_sizes` gives them.

        Raises:
            UniWorldError: no samples, or a batch size under 1.
        """
        if sizes_N2.ndim != 2 or sizes_N2.shape[1] != 2 or not len(sizes_N2):
            raise UniWorldError(f"A plan needs one height and width for each sample, but got {list(sizes_N2.shape)}.")
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
        """The epoch of a step, counted from 0."""
        return step // self.steps_per_epoch

    def size(self, step: int) -> Size:
        """The size that a step paints, in pixels."""
        height, width = self._sizes_K2[self._place(step)[0]].tolist()
        return Size(height, width)

    def counts(self) -> dict[Size, int]:
        """How many samples are painted at each size, in pixels."""
        return {Size(*size): count for size, count in zip(self._sizes_K2.tolist(), self._samples_K.tolist())}

    def batch(self, step: int) -> list[Slot]:
        """The samples of a step (0 or more), `batch_size` of them.

        Raises:
            UniWorldError: a negative step.
        """
        bucket, number = self._place(step)
        _, samples_N, _ = self._shuffle(self.epoch(step))
        first, count = int(self._first_sample_K[bucket]), int(self._samples_K[bucket])
        within = (number * self.batch_size + torch.arange(self.batch_size)) % count
        indices = samples_N[first + within].tolist()
        return [Slot(step * self.batch_size + slot, index) for slot, index in enumerate(indices)]

    def _place(self, step: int) -> tuple[int, int]:
        """The bucket of a step, and which of that bucket's batches in this epoch it takes."""
        if step < 0:
            raise UniWorldError(f"The step is {step}; steps are counted from 0.")
        _, _, batches_E = self._shuffle(self.epoch(step))
        batch = int(batches_E[step % self.steps_per_epoch])
        bucket = int(torch.searchsorted(self._last_batch_K, batch, right=True))
        return bucket, batch - int(self._last_batch_K[bucket] - self._batches_K[bucket])

    def _shuffle(self, epoch: int) -> tuple[int, Tensor, Tensor]:
        """An epoch's samples, shuffled and grouped by bucket (N,), and its batches, shuffled (E,)."""
        shuffled = self._shuffled
        if shuffled is None or shuffled[0] != epoch:
            generator = torch.Generator("cpu").manual_seed((self.seed * _STRIDE + epoch) % 2**63)
            order_N = torch.randperm(len(self), generator=generator).numpy()
            # By numpy: torch would sort with a team of OpenMP threads of this thread's own, and with more of those than
            # cores the training's threads, too, go to sleep between any two operations.
            samples_N = torch.from_numpy(order_N[np.argsort(self._bucket_N.numpy()[order_N], kind="stable")])
            shuffled = epoch, samples_N, torch.randperm(self.steps_per_epoch, generator=generator)
            self._shuffled = shuffled
        return shuffled
