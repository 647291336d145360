"""Work on many items in threads."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from uniworld.training.data.threads import map_in_threads


def test_results_have_the_order_of_the_items() -> None:
    def slow_start(item: int) -> int:
        time.sleep(0.02 * (item == 0))
        return item * item

    assert list(map_in_threads(slow_start, range(50), 4)) == [item * item for item in range(50)]


@pytest.mark.parametrize("where", ["work", "items", "consumer"])
def test_an_exception_anywhere_leaves_few_items_to_wait_for(where: str) -> None:
    """As Ctrl-C, which may come while items are submitted."""
    done: list[int] = []

    def items() -> Iterator[int]:
        for item in range(1_000_000):
            if where == "items" and item == 5:
                raise KeyboardInterrupt
            yield item

    def work(item: int) -> int:
        if where == "work" and item == 5:
            raise KeyboardInterrupt
        done.append(item)
        return item

    def consume() -> None:
        for result in map_in_threads(work, items(), 2):
            if where == "consumer" and result == 5:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        consume()
    assert len(done) < 100
