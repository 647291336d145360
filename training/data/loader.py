"""What each optimizer step of each process trains on, made prefetched of the step."""

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
        passes: what goes through the model at once, as (position, sample), samples of like length together. Every
            process has as many passes in a step, so that those which wait for each other do; where samples are of no
            use, the last ones are shorter or empty.
        skipped: this process's samples that are of no use, each once.
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
    """The order of samples, the same whether they come from a cache or not.

    Args:
        keep: a file for the targets' sizes (`saved_size_table`), which stay whatever becomes of the pictures. Without
            it, and without a cache, the header of every target is read at each start.

    Raises:
        UniWorldError: no target can be read, a setting is wrong, or `keep` cannot be read or written.
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
    """The steps from `start_step` on, made by a thread that is up to `prefetch` steps prefetched. Close it when done.

    Args:
        data: samples, or a cache of them.
        encoder: the frozen parts; None with a cache.
        stop_step: the step not to make any more; None goes on for ever.
        rank, world: this process, of how many. It takes the slots rank, rank + world, ... of each batch.
        micro: samples that go through the model at once.
        workers: threads that decode pictures.

    Raises:
        UniWorldError: at once, where the arguments do not fit together; later, what the data or the encoder raise.
    """
    if not 0 <= rank < world or micro < 1 or start_step < 0:
        raise UniWorldError(f"There is no rank {rank} of {world} with {micro} samples a pass from step {start_step}.")
    if len(plan) != len(data):
        raise UniWorldError(
            f"The plan is of {len(plan)} samples and the data holds {len(data)}: make the plan of the data."
        )
    reader: Reader
    if isinstance(data, Cache):
        reader = CachedReader(data)
    elif encoder is not None:
        reader = FreshReader(data, encoder, workers)
    else:
        raise UniWorldError("The samples are not cached, so they need an encoder.")
    steps = range(start_step, stop_step) if stop_step is not None else count(start_step)
    fetched = (_fetch(reader, plan, step, rank, world, micro) for step in steps)
    return prefetched(_encoded(reader, fetched), prefetch)


@dataclass(frozen=True)
class _Fetched:
    """A step before the frozen parts: what it paints, and its passes."""

    step: int
    epoch: int
    size: Size
    passes: list[tuple[list[Slot], list[object]]]


def _fetch(reader: Reader, plan: Plan, step: int, rank: int, world: int, micro: int) -> _Fetched:
    """A batch's slots of one process, cut into passes: as many for every process, the last one shorter or empty."""
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
            # What is longest sets the length of a pass: together with its like it makes others no longer.
            found.sort(key=lambda one: _length(one[1]))
            starts = [0, *accumulate(len(slots) for slots, _ in fetched.passes)]
            passes = tuple(tuple(found[start:stop]) for start, stop in pairwise(starts))
            yield StepData(fetched.step, fetched.epoch, passes, tuple(skipped.values()))


def _length(item: EncodedSample) -> int:
    """Tokens of a sample's condition."""
    return len(item.hidden) + sum(map(len, item.features))


def _of_size(item: EncodedSample | BadSample, size: Size) -> EncodedSample | BadSample:
    """The sample, if it is as large as its batch: a picture may have been changed after the sizes were read."""
    if isinstance(item, BadSample):
        return item
    height, width = (side * FLUX_LATENTS.factor for side in item.latent.shape[-2:])
    if (height, width) == (size.height, size.width):
        return item
    reason = (
        f"its target is painted at {width}x{height} pixels, but was planned at {size.width}x{size.height}: "
        "the picture was changed meanwhile, or the plan is of another area or other ratios."
    )
    return BadSample(item.key, reason)
