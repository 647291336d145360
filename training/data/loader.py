"""The data of each optimizer step and process, prepared ahead of the step."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import accumulate, count, pairwise
from pathlib import Path

from torch import Tensor

from ...uniworld_core.backbones.flux_latents import FLUX_LATENTS
from ...uniworld_core.errors import UniWorldError
from ...uniworld_core.images.sizes import DEFAULT_AREA, DEFAULT_RATIOS, Size
from ..objective.batch import BadSample, EncodedSample
from .cache import Cache
from .plan import Plan, Slot, painted_sizes
from .reading import CachedReader, FreshReader, Reader, SampleEncoder, prefetched
from .samples import Samples, saved_size_table, size_table


@dataclass(frozen=True)
class StepData:
    """One process's share of an optimizer step.

    Attributes:
        step: counted from 0.
        epoch: counted from 0.
        passes: the samples of each forward pass as (position, sample), sorted by length to reduce padding. All processes
            have the same number of passes in a step, because their collective operations must match. If samples are
            invalid, the last passes are shorter or empty.
        skipped: this process's invalid samples, each once.
    """

    step: int
    epoch: int
    passes: tuple[tuple[tuple[int, EncodedSample], ...], ...]
    skipped: tuple[BadSample, ...]


def plan_of(
    data: Samples | Cache,
    batch_size: int,
    seed: int,
    area: int = DEFAULT_AREA,
    ratios: str = DEFAULT_RATIOS,
    keep: Path | None = None,
) -> Plan:
    """Return the order of the samples, the same with and without a cache.

    Args:
        data: samples, or a cache of them.
        batch_size: global batch size.
        seed: seed of the order.
        area, ratios: area and aspect ratios of the painted pictures.
        keep: a file that saves the targets' sizes (`saved_size_table`), so that the order does not depend on later
            changes of the pictures. Without it and without a cache, every start reads the header of every target.

    Raises:
        UniWorldError: no target can be read, a setting is invalid, or `keep` cannot be read or written.
    """

    def sizes() -> Tensor:
        return data.sizes if isinstance(data, Cache) else size_table(data)

    if keep is None:
        sizes_N2 = sizes()
    else:
        fingerprint = data.key.samples if isinstance(data, Cache) else data.fingerprint
        sizes_N2 = saved_size_table(keep, fingerprint, sizes)
    return Plan(painted_sizes(sizes_N2, area, ratios), batch_size, seed)


def batches(
    data: Samples | Cache,
    encoder: SampleEncoder | None,
    plan: Plan,
    start_step: int = 0,
    stop_step: int | None = None,
    rank: int = 0,
    world: int = 1,
    micro: int = 1,
    workers: int = 2,
    prefetch: int = 2,
) -> Generator[StepData, None, None]:
    """Yield the data of the steps from `start_step` on; close the generator when done.

    A thread prepares up to `prefetch` steps ahead.

    Args:
        data: samples, or a cache of them.
        encoder: the frozen parts; None with a cache.
        plan: the order of the samples.
        start_step: first step.
        stop_step: step at which to stop (exclusive); None yields steps without end.
        rank, world: rank of this process and number of processes. It takes slots rank, rank + world, ... of each batch.
        micro: samples per forward pass.
        workers: threads that decode pictures.
        prefetch: steps to prepare ahead.

    Raises:
        UniWorldError: at once if the arguments do not match; later, the errors of the data and the encoder.
    """
    if not 0 <= rank < world or micro < 1 or start_step < 0:
        raise UniWorldError(
            f"rank is {rank} of {world}, micro is {micro} and start_step is {start_step}; rank must be from 0 to below "
            "the number of processes, micro at least 1 and start_step at least 0."
        )
    if len(plan) != len(data):
        raise UniWorldError(f"The plan has {len(plan)} samples, but the data has {len(data)}: build it from this data.")
    reader: Reader
    if isinstance(data, Cache):
        reader = CachedReader(data)
    elif encoder is not None:
        reader = FreshReader(data, encoder, workers)
    else:
        raise UniWorldError("Samples that are not cached need an encoder.")
    steps = range(start_step, stop_step) if stop_step is not None else count(start_step)
    fetched = (_fetch(reader, plan, step, rank, world, micro) for step in steps)
    return prefetched(_encoded(reader, fetched), prefetch)


@dataclass(frozen=True)
class _Fetched:
    """A step before encoding: its painted size and its passes."""

    step: int
    epoch: int
    size: Size
    passes: list[tuple[list[Slot], list[object]]]


def _fetch(reader: Reader, plan: Plan, step: int, rank: int, world: int, micro: int) -> _Fetched:
    """Fetch one process's slots of a batch, split into passes: the same number for every process, the last one shorter
    or empty.
    """
    mine = plan.batch(step)[rank::world]
    longest = -(-plan.batch_size // world)
    passes = [mine[start : start + micro] for start in range(0, longest, micro)]
    fetched = [(slots, reader.fetch([slot.sample for slot in slots])) for slots in passes]
    return _Fetched(step, plan.epoch(step), plan.size(step), fetched)


def _encoded(reader: Reader, fetching: Iterator[_Fetched]) -> Generator[StepData, None, None]:
    with closing(reader), closing(prefetched(fetching, 1)) as steps:
        for fetched in steps:
            found: list[tuple[int, EncodedSample]] = []
            skipped: dict[str, BadSample] = {}
            for slots, items in fetched.passes:
                checked = [_of_size(item, fetched.size) for item in reader.encode(items)]
                found += [
                    (slot.position, item) for slot, item in zip(slots, checked) if isinstance(item, EncodedSample)
                ]
                skipped.update({item.key: item for item in checked if isinstance(item, BadSample)})
            # A pass is padded to its longest sample, so samples of similar length share a pass.
            found.sort(key=lambda one: _length(one[1]))
            starts = [0, *accumulate(len(slots) for slots, _ in fetched.passes)]
            passes = tuple(tuple(found[start:stop]) for start, stop in pairwise(starts))
            yield StepData(fetched.step, fetched.epoch, passes, tuple(skipped.values()))


def _length(item: EncodedSample) -> int:
    """Return the number of tokens of a sample's condition."""
    return len(item.hidden) + sum(map(len, item.features))


def _of_size(item: EncodedSample | BadSample, size: Size) -> EncodedSample | BadSample:
    """Return the sample, or a `BadSample` if its size differs from its batch's.

    That happens when a picture was replaced after the sizes were read.
    """
    if isinstance(item, BadSample):
        return item
    height, width = (side * FLUX_LATENTS.factor for side in item.latent.shape[-2:])
    if (height, width) == (size.height, size.width):
        return item
    reason = (
        f"its target has a painted size of {width}x{height} pixels, but was planned at {size.width}x{size.height}: the "
        "picture has changed since, or the plan has another area or other ratios."
    )
    return BadSample(item.key, reason)
