"""Samples to what the tower takes, prefetched of the step that needs them."""

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

# How often a waiting producer looks whether anyone still listens, in seconds.
_POLL_SECONDS = 0.1


class SampleEncoder(Protocol):
    """What `training.encode.Encoder` does."""

    @property
    def fingerprint(self) -> str: ...

    def __call__(self, samples: Sequence[Sample]) -> Sequence[EncodedSample | BadSample]: ...


@dataclass(frozen=True)
class _Decoded:
    """A picture that was opened already, or why it could not be."""

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
    """The sample with its pictures in memory; a picture that is of no use says so when it is opened, as before."""

    def decode(source: PictureSource) -> _Decoded:
        try:
            return _Decoded(source, source.open())
        except UniWorldError as error:
            return _Decoded(source, str(error))

    return replace(sample, references=tuple(map(decode, sample.references)), target=decode(sample.target))


class Reader(Protocol):
    """Where encoded samples come from, in two halves that may run in two threads."""

    def fetch(self, indices: Sequence[int]) -> list[Any]:
        """All that comes before the frozen parts."""

    def encode(self, fetched: Sequence[Any]) -> list[EncodedSample | BadSample]:
        """What the frozen parts compute, in order; a `BadSample` in the place of one that is of no use."""

    def close(self) -> None:
        """End its threads."""


class FreshReader:
    """Samples whose pictures are decoded by a few threads and go through the encoder."""

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
    """Samples that a cache holds."""

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
        """It has no threads."""


def prefetched(items: Iterator[Item], depth: int) -> Generator[Item, None, None]:
    """The same items, made by a thread that is up to `depth` items prefetched.

    What the iterator raises is raised here, in its place. Closing ends the thread, and closes the iterator in it.
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
        except BaseException as error:  # whatever it is, it belongs to who waits for the item
            put(None, error)
        finally:
            if isinstance(items, Generator):
                items.close()

    thread = Thread(target=work, name="data-prefetched", daemon=True)
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
