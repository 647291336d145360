"""Fill a cache: encode the samples that it is missing and write them part by part."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path

import torch
from safetensors.torch import save

from ...uniworld_core.errors import UniWorldError
from ...uniworld_core.files import remove_stale_parts
from ..files import locked, write_atomic
from ..objective.batch import BadSample, EncodedSample
from .cache import FORMAT, HEAD, Cache, CacheKey, check_key, read_head
from .reading import FreshReader, SampleEncoder, prefetched
from .samples import Samples, size_table

# A part is written once it reaches this many samples or bytes.
PART_SAMPLES = 256
PART_BYTES = 2**28
# Groups that are decoded in the background while the encoder works.
_PREFETCH = 2


def create_or_open(folder: Path, samples: Samples, encoder: SampleEncoder) -> Cache:
    """Open the cache of these samples and this encoder, or create it.

    Sizes that could not be read before are read again, because their pictures may have been repaired.

    Raises:
        UniWorldError: the folder has a cache with another key, or cannot be written.
    """
    key = CacheKey(encoder.fingerprint, samples.fingerprint)
    try:
        (folder / "parts").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UniWorldError(
            f"The cache folder '{folder}' cannot be created: {error.strerror}. Choose another folder."
        ) from error
    # The first of several processes reads the sizes; the others wait for it.
    with locked(folder / "cache.lock", wait=True, busy=f"The cache '{folder}' cannot be locked."):
        known_N2 = read_head(folder, key)[1] if (folder / HEAD).is_file() else None
        sizes_N2 = size_table(samples, known=known_N2)
        if known_N2 is None or not torch.equal(sizes_N2, known_N2):
            metadata = {"format": FORMAT, "encoder": key.encoder, "samples": key.samples}
            write_atomic(folder / HEAD, save({"sizes": sizes_N2}, metadata))
    return Cache(folder, key)


def fill(
    cache: Cache,
    samples: Samples,
    encoder: SampleEncoder,
    batch: int = 8,
    rank: int = 0,
    world: int = 1,
    workers: int = 2,
    bad_limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Compute the missing samples of a cache as rank `rank` of `world`: those with index % world == rank.

    Bad samples are tried again, because their pictures may have been repaired.

    Args:
        batch: batch size of the encoder.
        rank, world: rank of this process and number of processes.
        workers: threads that decode pictures.
        bad_limit: maximum number of bad samples; None means no limit.
        progress: called with the number of finished samples of this process and their total.

    Raises:
        UniWorldError: another process has the same rank, there are too many bad samples, the disk is full, or the model
            does not match. Finished parts are kept.
    """
    check_key(cache.folder, cache.key, CacheKey(encoder.fingerprint, samples.fingerprint))
    writer = f"{rank}-of-{world}"
    busy = f"Another process is filling the cache '{cache.folder}' as {writer}: wait for it, or choose another folder."
    with locked(cache.folder / f"{writer}.lock", wait=False, busy=busy):
        remove_stale_parts(cache.folder / "parts", f"part-{writer}.")
        mine = range(rank, len(cache), world)
        todo = [index for index in mine if not cache.contains(index) or index in cache.bad]
        done, part, size = len(mine) - len(todo), list[tuple[int, EncodedSample | BadSample]](), 0
        with closing(_encoded(samples, encoder, todo, batch, workers)) as made:
            for group, items in made:
                part.extend(pair for pair in zip(group, items) if not _is_known(cache, *pair))
                size += sum(_bytes(item) for item in items)
                if len(part) >= PART_SAMPLES or size >= PART_BYTES:
                    cache.add(part, writer)
                    _check_bad(cache, bad_limit)
                    part, size = [], 0
                done += len(group)
                if progress is not None:
                    progress(done, len(mine))
        cache.add(part, writer)
        _check_bad(cache, bad_limit)


def _is_known(cache: Cache, index: int, item: EncodedSample | BadSample) -> bool:
    """Return whether a sample is bad for the same reason as before."""
    before = cache.bad.get(index)
    return before is not None and isinstance(item, BadSample) and str(item) == str(before)


def _encoded(
    samples: Samples, encoder: SampleEncoder, todo: Sequence[int], batch: int, workers: int
) -> Generator[tuple[Sequence[int], list[EncodedSample | BadSample]], None, None]:
    groups = [todo[start : start + batch] for start in range(0, len(todo), batch)]
    reader = FreshReader(samples, encoder, workers)
    fetching = prefetched(((group, reader.fetch(group)) for group in groups), _PREFETCH)
    with closing(reader), closing(fetching):
        for group, fetched in fetching:
            yield group, reader.encode(fetched)


def _check_bad(cache: Cache, limit: int | None) -> None:
    if limit is not None and len(cache.bad) > limit:
        last = next(reversed(cache.bad.values()))
        raise UniWorldError(
            f"{len(cache.bad)} samples are invalid, more than data.bad_limit = {limit}; the last is {last} "
            "Run `uniworld data check` to list all of them, then fix them or raise data.bad_limit."
        )


def _bytes(item: EncodedSample | BadSample) -> int:
    if isinstance(item, BadSample):
        return 0
    tensors = [item.hidden, item.ends, item.pooled, item.latent, *item.features, item.t5, item.weight]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
