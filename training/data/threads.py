"""Work on many items in threads, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
# Items per thread that are submitted ahead of the oldest result.
_AHEAD = 8


def map_in_threads(work: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Yield the results in the order of the items.

    Only a few items are in flight at a time. `ThreadPoolExecutor.map` submits all of them first, and an interrupt during
    that time waits until every one of them is done.

    Args:
        workers: number of threads, at least 1.
    """
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(max(1, workers)) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= _AHEAD * max(1, workers):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
