"""Read encoded samples, fresh or from a cache, ahead of the step that needs them."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from queue import Full, Queue
from threading import Event, Thread
from typing import Any, Protocol, TypeVar

from PIL import Image

from ...uniworld_core.errors import UniWorldError
from ..objective.batch import BadSample, EncodedSample
from .cache import Cache
from .samples import PictureSource, Sample, Samples

Item = TypeVar("Item")

# How often a blocked producer checks whether its consumer has closed, in seconds.
_POLL_SECONDS = 0.1


class SampleEncoder(Protocol):
    """Interface of `Encoder` that reading samples needs."""

    @property
    def fingerprint(self) -> str: ...

    def __call__(self, samples: Sequence[Sample]) -> Sequence[EncodedSample | BadSample]: ...


@dataclass(frozen=True)
class _Decoded:
    """A decoded picture, or the reason why it cannot be decoded."""

    source: PictureSource
    picture: Image.Image | str

    @property
    def name(self) -> str:
        return self.source.name

    def read(self) -> bytes:
        return self.source.read()

    def open(self) -> Image.Image:
        if isinstance(self.picture, str):
            raise UniWorldError(self.picture)
        return self.picture

    def size(self) -> tuple[int, int]:
        return self.source.size()


def decoded(sample: Sample) -> Sample:
    """Return the sample with decoded pictures. An invalid picture still raises only when it is opened."""

    def decode(source: PictureSource) -> _Decoded:
        try:
            return _Decoded(source, source.open())
        except UniWorldError as error:
            return _Decoded(source, str(error))

    return replace(sample, references=tuple(map(decode, sample.references)), target=decode(sample.target))


class Reader(Protocol):
    """A source of encoded samples, in two halves that can run in two threads."""

    def fetch(self, indices: Sequence[int]) -> list[Any]:
        """Do everything that comes before the frozen parts."""

    def encode(self, fetched: Sequence[Any]) -> list[EncodedSample | BadSample]:
        """Return the encoded samples, in order; an invalid one is a `BadSample`."""

    def close(self) -> None:
        """Stop its threads."""


class FreshReader:
    """Decodes pictures in a thread pool and encodes them."""

    def __init__(self, samples: Samples, encoder: SampleEncoder, workers: int) -> None:
        self.samples, self.encoder = samples, encoder
        self._pool = ThreadPoolExecutor(max(1, workers))

    def fetch(self, indices: Sequence[int]) -> list[Sample | BadSample]:
        return list(self._pool.map(self._fetch, indices))

    def _fetch(self, index: int) -> Sample | BadSample:
        try:
            return decoded(self.samples[index])
        except BadSample as error:
            return error

    def encode(self, fetched: Sequence[Sample | BadSample]) -> list[EncodedSample | BadSample]:
        good = [item for item in fetched if isinstance(item, Sample)]
        made = iter(self.encoder(good) if good else ())
        return [next(made) if isinstance(item, Sample) else item for item in fetched]

    def close(self) -> None:
        self._pool.shutdown()


class CachedReader:
    """Reads encoded samples from a cache."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache

    def fetch(self, indices: Sequence[int]) -> list[EncodedSample | BadSample]:
        return [self._fetch(index) for index in indices]

    def _fetch(self, index: int) -> EncodedSample | BadSample:
        try:
            return self.cache[index]
        except BadSample as error:
            return error

    def encode(self, fetched: Sequence[EncodedSample | BadSample]) -> list[EncodedSample | BadSample]:
        return list(fetched)

    def close(self) -> None:
        """Do nothing: there are no threads."""


def prefetched(items: Iterator[Item], depth: int) -> Generator[Item, None, None]:
    """Yield the items of an iterator that a background thread advances up to `depth` items ahead.

    Errors of the iterator are raised here. Closing the generator stops the thread, which closes the iterator.
    """
    queue: Queue[tuple[Item | None, BaseException | None]] = Queue(max(1, depth))
    closed = Event()

    def put(item: Item | None, end: BaseException | None = None) -> bool:
        while not closed.is_set():
            try:
                queue.put((item, end), timeout=_POLL_SECONDS)
                return True
            except Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put(item):
                    break
            put(None, StopIteration())
        except BaseException as error:  # of any type: the consumer re-raises it
            put(None, error)
        finally:
            if isinstance(items, Generator):
                items.close()

    thread = Thread(target=work, name="data-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, end = queue.get()
            if isinstance(end, StopIteration):
                return
            if end is not None:
                raise end
            yield item  # type: ignore[misc]
    finally:
        closed.set()
        thread.join()
