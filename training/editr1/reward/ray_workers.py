"""A reward on the workers of a Ray cluster: one actor per worker, which opens the reward once.

This package, and whatever the reward reads, must be installed at the same paths on every machine of the cluster.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ....uniworld_core.errors import UniWorldError
from .protocol import Reward, RewardFailure, RewardItem, Score, checked_scores

# A part that loses its worker runs once more; if that loses its worker too, the items probably cause it.
_ATTEMPTS = 2
_MAX_FAILED_STARTS = 3
_OBJECT_STORE_BYTES = 256 * 2**20


class RewardActor:
    """The class of the actors.

    Args:
        open_reward: opens the reward; called on the worker.
    """

    def __init__(self, open_reward: Callable[[], Reward]) -> None:
        self._reward = open_reward()

    def process(self) -> int:
        """Return the process id."""
        return os.getpid()

    def score(self, items: Sequence[RewardItem]) -> list[Score]:
        """As `Reward.score`, checked."""
        return checked_scores(self._reward, items)


@dataclass
class _ItemsPart:
    """Some items of a call, with where their scores belong."""

    start: int
    items: Sequence[RewardItem]
    attempts: int = 0


class RayReward:
    """A reward that several workers compute. A worker that dies or hangs is replaced, and its part runs once more.

    Args:
        name: as in `Reward`.
        open_reward: opens the reward on a worker; it must be picklable.
        address: address of the cluster; "local" starts one on this machine, which ends with this process.
        workers: number of workers.
        batch: items per call of a worker.
        timeout: seconds for one call; a worker that needs longer is replaced.

    Raises:
        UniWorldError: Ray is not installed, or there is no cluster at the address.
    """

    def __init__(
        self,
        name: str,
        open_reward: Callable[[], Reward],
        address: str,
        workers: int,
        batch: int = 8,
        timeout: float = 120.0,
    ) -> None:
        try:
            import ray
        except ImportError as error:
            raise UniWorldError(
                'reward.ray is set, and Ray is not installed. Install it: pip install "uniworld[ray]"'
            ) from error
        self.name, self._ray, self._open = name, ray, open_reward
        self._batch, self._timeout, self._failed_starts = batch, timeout, 0
        self._connect(address, workers)
        gpus = float(ray.cluster_resources().get("GPU", 0))
        resources: dict[str, Any] = {"num_gpus": min(1.0, gpus / workers), "num_cpus": 0} if gpus else {"num_cpus": 1}
        self._class: Any = ray.remote(RewardActor).options(max_restarts=0, scheduling_strategy="SPREAD", **resources)
        self.actors: list[Any] = [self._class.remote(open_reward) for _ in range(workers)]

    def score(self, items: Sequence[RewardItem]) -> list[Score]:
        """As `Reward.score`. The items of a part whose workers died or hung twice fail."""
        scores: list[Score] = [RewardFailure("not scored")] * len(items)
        waiting = [_ItemsPart(start, items[start : start + self._batch]) for start in range(0, len(items), self._batch)]
        running: dict[Any, tuple[int, _ItemsPart, float]] = {}
        idle = list(range(len(self.actors)))
        while waiting or running:
            while waiting and idle:
                part, slot = waiting.pop(0), idle.pop(0)
                part.attempts += 1
                running[self.actors[slot].score.remote(list(part.items))] = slot, part, time.monotonic() + self._timeout
            self._ray.wait(
                list(running), timeout=max(0.0, min(end for _, _, end in running.values()) - time.monotonic())
            )
            for ref, (slot, part, end) in list(running.items()):
                done = bool(self._ray.wait([ref], timeout=0)[0])
                if not done and time.monotonic() < end:
                    continue
                del running[ref]
                found = self._result(ref, slot) if done else self._replaced(slot, f"no answer in {self._timeout:g} s")
                if isinstance(found, RewardFailure) and part.attempts < _ATTEMPTS:
                    waiting.append(part)
                else:
                    these = [found] * len(part.items) if isinstance(found, RewardFailure) else found
                    scores[part.start : part.start + len(part.items)] = these
                idle.append(slot)
        return scores

    def close(self) -> None:
        """Stop the workers and leave the cluster."""
        for actor in self.actors:
            self._ray.kill(actor)
        self._ray.shutdown()

    def _result(self, ref: Any, slot: int) -> list[Score] | RewardFailure:
        """Return the scores of a finished call, or why there are none. Raises UniWorldError if workers do not start."""
        try:
            scores: list[Score] = self._ray.get(ref)
            self._failed_starts = 0
            return scores
        except self._ray.exceptions.RayTaskError as error:  # an exception in a worker that is still alive
            cause = error.cause if isinstance(error.cause, Exception) else error
            if isinstance(cause, UniWorldError):  # the reward cannot be used at all
                raise UniWorldError(f"The reward {self.name} on a worker: {cause}") from error
            return RewardFailure(f"the worker failed: {type(cause).__name__}: {cause}")
        except self._ray.exceptions.RayError as error:
            reason = str(error).strip().rpartition("\n")[2]
            if isinstance(error, self._ray.exceptions.ActorDiedError) and "creation task" in str(error):
                self._failed_starts += 1
                if self._failed_starts >= _MAX_FAILED_STARTS:
                    raise UniWorldError(f"The workers of the reward {self.name} do not start: {reason}") from error
            return self._replaced(slot, f"the worker died ({type(error).__name__})")

    def _replaced(self, slot: int, reason: str) -> RewardFailure:
        self._ray.kill(self.actors[slot])
        self.actors[slot] = self._class.remote(self._open)
        return RewardFailure(reason)

    def _connect(self, address: str, workers: int) -> None:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address == "local":
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # the program makes no external requests
            options |= {"num_cpus": max(workers, os.cpu_count() or 1), "include_dashboard": False}
            options["object_store_memory"] = _OBJECT_STORE_BYTES
        try:
            self._ray.init(address=address, **options)
        except (self._ray.exceptions.RayError, RuntimeError, ValueError, OSError) as error:
            reason = str(error).partition("\n")[0].rstrip(".")
            raise UniWorldError(
                f"There is no Ray cluster at reward.ray = '{address}': {reason}. Check the address."
            ) from error
