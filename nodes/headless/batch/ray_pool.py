"""Workers of a batch on a Ray cluster: one actor each, which keeps its models loaded.

Rows' pictures travel to the workers and saved pictures back, and only this process writes to the output folder: a
worker that was given up and still runs can spoil nothing. Models, node packs and the input folder must be on every
machine of the cluster, at the same paths; and so must this package.
"""

from __future__ import annotations

import logging
import os
import platform
import socket
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ....streams import say
from ....uniworld_core.errors import UniWorldError
from ....uniworld_core.loading.memory import ModelMemory, default_budget
from ... import host
from ..registry.registry import load_registry
from ..run.stopping import StopRequest
from ..storage import folders
from ..workflow.file import Workflow
from .results import ERROR, INTERRUPTED, LOST, Attempt, Outcome
from .rows import BatchRow
from .worker import BatchWorker

NOT_INSTALLED = 'Ray is not installed. Install it: pip install "uniworld[ray]"'
POLL_SECONDS = 0.2
STOP_SECONDS = 20.0  # a worker that has not stopped after that is killed; its row is interrupted all the same
WAITING_SECONDS = 60.0
MAX_FAILED_STARTS = 3
# Pictures pass through it; Ray's own default is a third of the memory, which the models need.
OBJECT_STORE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Setup:
    """What a worker needs to build itself on its machine; all paths are absolute."""

    workflow: Workflow
    models: list[Path]
    packs: list[Path]
    input: Path
    output: Path


class RayWorker:
    """The actor's class. Ray calls `run` in one thread and `stop` in another."""

    def __init__(self, setup: Setup) -> None:
        plain = host.PlainHost(models=list(setup.models), memory=ModelMemory(default_budget()))
        host.install(plain)
        common = folders.Folders(setup.input, setup.output, setup.output.parent / "temp")
        self._stop = StopRequest(plain)
        self._worker = BatchWorker(setup.workflow, load_registry(setup.packs), plain, common, self._stop)

    def where(self) -> str:
        return f"{platform.node()}, process {os.getpid()}"

    def run(self, row: BatchRow, images: dict[str, tuple[str, bytes]]) -> tuple[Outcome, dict[str, bytes]]:
        """Run a row; gives its outcome and the files it saved, by their paths in the row's folder.

        Args:
            images: name and content of the row's pictures by node.
        """
        with tempfile.TemporaryDirectory(prefix="uniworld-row-") as name:
            base = Path(name)
            paths = {}
            for number, (node, (file, content)) in enumerate(images.items()):
                (base / str(number)).mkdir()
                (base / str(number) / file).write_bytes(content)
                paths[node] = f"{number}/{file}"
            saved = base / "saved"
            saved.mkdir()
            outcome = self._worker.run(replace(row, image=paths), base, saved)
            files = [file for file in sorted(saved.rglob("*")) if file.is_file()]
            return outcome, {file.relative_to(saved).as_posix(): file.read_bytes() for file in files}

    def stop(self) -> None:
        self._stop.make()


@dataclass
class _Hand:
    """A worker as this process sees it: starting, idle, or at an attempt."""

    actor: Any
    ready: bool = False
    attempt: Attempt | None = None


class RayPool:
    """Workers on a Ray cluster; one that dies is replaced, and its attempt is lost.

    Args:
        address: of the cluster; "local" starts one on this machine, which ends with this process.
        workers: how many; None for one per GPU, or one per machine where there are none.
        pictures: the folder that the pictures of rows lie in or relative to.

    Raises:
        UniWorldError: Ray is not installed, or there is no such cluster.
    """

    def __init__(self, address: str, workers: int | None, setup: Setup, pictures: Path) -> None:
        try:
            import ray
        except ImportError as error:
            raise UniWorldError(NOT_INSTALLED) from error
        self._ray, self._setup, self._pictures = ray, setup, pictures
        self._by_ref: dict[object, _Hand] = {}
        self._idle: list[_Hand] = []
        self._ended: list[tuple[Attempt, Outcome]] = []
        self._failed_starts = 0
        self._stop_at: float | None = None
        self._warn_at: float | None = time.monotonic() + WAITING_SECONDS
        self._connect(address, workers)
        count, resources = self._share(workers)
        self._class = ray.remote(RayWorker).options(
            max_concurrency=2, max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD", **resources
        )
        for _ in range(count):
            self._add()

    def _connect(self, address: str, workers: int | None) -> None:
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address == "local":
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing calls outside
            cpus = max(workers or 1, os.cpu_count() or 1)
            quiet |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
        try:
            _knock(address)
            self._ray.init(address=address, **quiet)
        except (self._ray.exceptions.RayError, RuntimeError, ValueError, OSError) as error:
            reason = str(error).partition("\n")[0].rstrip(".")
            raise UniWorldError(
                f"There is no Ray cluster at '{address}': {reason}. Check the address, and set RAY_AUTH_MODE=token "
                "if the cluster asks for its token."
            ) from error

    def _share(self, workers: int | None) -> tuple[int, dict[str, object]]:
        """The number of workers, and what each one asks of the cluster."""
        total = self._ray.cluster_resources()
        gpus, cpus = int(total.get("GPU", 0)), int(total.get("CPU", 1))
        if gpus:
            count = workers or gpus
            shared_by = -(-count // gpus)  # workers that one GPU must take
            return count, {"num_gpus": 1 if shared_by == 1 else 1 / shared_by, "num_cpus": 0}
        machines = [int(node["Resources"].get("CPU", 1)) for node in self._ray.nodes() if node.get("Alive")]
        count = workers or len(machines)
        # Ray gives a worker as many threads as it asks for.
        return count, {"num_cpus": max(1, min([cpus // count, *machines]))}

    def _add(self) -> None:
        hand = _Hand(self._class.remote(self._setup))
        self._by_ref[hand.actor.where.remote()] = hand

    @property
    def has_room(self) -> bool:
        return bool(self._idle)

    @property
    def busy(self) -> bool:
        return bool(self._ended) or any(hand.attempt is not None for hand in self._by_ref.values())

    def start(self, attempt: Attempt) -> None:
        try:
            images = {
                node: (Path(file).name, (self._pictures / folders.named_path(file)).read_bytes())
                for node, file in attempt.row.image.items()
            }
        except OSError as error:
            self._ended.append((attempt, Outcome(ERROR, error=f"Its picture cannot be read: {error}.")))
            return
        hand = self._idle.pop(0)
        hand.attempt = attempt
        self._by_ref[hand.actor.run.remote(attempt.row, images)] = hand

    def wait(self) -> list[tuple[Attempt, Outcome]]:
        ended, self._ended = self._ended, []
        if ended:
            return ended
        refs = self._ray.wait(list(self._by_ref), timeout=POLL_SECONDS)[0] if self._by_ref else []
        for ref in refs:
            hand = self._by_ref.pop(ref)
            attempt, hand.attempt = hand.attempt, None
            try:
                outcome = self._take(hand, attempt, self._ray.get(ref))
            except self._ray.exceptions.RayError as error:
                outcome = self._failed(hand, error)
            if attempt is not None:
                ended.append((attempt, outcome))
        if self._stop_at is not None and time.monotonic() > self._stop_at:
            ended += self._kill_all()
        self._warn_of_waiting()
        return ended

    def _take(self, hand: _Hand, attempt: Attempt | None, value: Any) -> Outcome:
        """Take what a worker answered: that it is ready, or the outcome of an attempt, whose files are written."""
        self._idle.append(hand)
        hand.ready = True
        self._failed_starts = 0
        if attempt is None:
            return Outcome("")
        outcome, files = value
        try:
            for name, content in files.items():
                path = folders.resolve_inside(attempt.folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        except (UniWorldError, OSError) as error:
            return Outcome(ERROR, error=f"Its pictures cannot be written: {error}")
        return outcome

    def _failed(self, hand: _Hand, error: Exception) -> Outcome:
        """What an error of Ray's means for the attempt; a worker that died is replaced."""
        reason = str(error).strip().rpartition("\n")[2]
        if isinstance(error, self._ray.exceptions.RayTaskError):  # raised in a worker that lives on
            self._idle.append(hand)
            return Outcome(ERROR, error=f"The worker failed: {reason}")
        if not hand.ready:
            self._failed_starts += 1
            if self._failed_starts >= MAX_FAILED_STARTS:
                raise UniWorldError(f"The workers do not start: {reason} Mend that, and run the same command again.")
        self._ray.kill(hand.actor)
        if self._stop_at is not None:
            return Outcome(INTERRUPTED, error="The run was interrupted.")
        self._add()
        return Outcome(LOST, error=f"The worker that ran it died ({type(error).__name__}).")

    def _warn_of_waiting(self) -> None:
        if self._warn_at is None or self._idle or self.busy:
            self._warn_at = None
        elif time.monotonic() > self._warn_at:
            say("The cluster has not started a worker yet. `ray status` tells what it waits for.")
            self._warn_at = None

    def stop(self) -> None:
        self._stop_at = time.monotonic() + STOP_SECONDS
        for hand in self._by_ref.values():
            if hand.attempt is not None:
                hand.actor.stop.remote()

    def _kill_all(self) -> list[tuple[Attempt, Outcome]]:
        hands, self._by_ref = list(self._by_ref.values()), {}
        for hand in hands:
            self._ray.kill(hand.actor)
        outcome = Outcome(INTERRUPTED, error="The run was interrupted; its worker did not stop and was ended.")
        return [(hand.attempt, outcome) for hand in hands if hand.attempt is not None]

    def close(self) -> None:
        for hand in [*self._by_ref.values(), *self._idle]:
            self._ray.kill(hand.actor)
        self._ray.shutdown()


def _knock(address: str) -> None:
    """Raise OSError when nothing listens at host:port; Ray itself would try for minutes, and tell it in its own log."""
    host_name, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host_name.strip("[]"), int(port)), timeout=10).close()
