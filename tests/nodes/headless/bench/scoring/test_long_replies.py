"""A reply that ends in a long run of one character, as models in a loop write it, is read at once."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from uniworld.nodes.headless.bench.scoring import gedit, imgedit, unisandbox, wise
from uniworld.nodes.headless.bench.scoring.outcome import MODES

LENGTH = 20_000
STARTS = ("a", "score", "score:", "consistency", "{", "<think>", "Prompt Compliance: 4")
RUNS = (" ", "\u3000", "-", "*", ":", "a", '"', "<think>")
READERS = (
    imgedit.read_basic,
    imgedit.read_uge,
    gedit.read,
    wise.read_legacy,
    lambda reply, mode: wise.read_verified(wise.without_thinking(reply), mode),
    unisandbox.verdict,
)


@pytest.mark.parametrize("read", READERS, ids=["basic", "uge", "gedit", "legacy", "verified", "unisandbox"])
def test_a_long_run_of_a_character_takes_no_time(read: Callable[..., object]) -> None:
    start = time.process_time()
    for first in STARTS:
        for run in RUNS:
            for mode in MODES:
                read(first + run * (LENGTH // len(run)) + " x}", mode)
    assert time.process_time() - start < 5  # a single one of them took minutes
