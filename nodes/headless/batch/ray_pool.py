"""Workers of a batch on a Ray cluster: one actor per worker, which keeps its models loaded.

Input pictures are sent to the workers and saved pictures are sent back. Only this process writes to the output folder,
so a worker that was abandoned but still runs cannot corrupt it. Models, node packs, the input folder and this package
must be installed at the same paths on every machine of the cluster.
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
STOP_SECONDS = 20.0  # a worker that has not stopped by then is killed; its row counts as interrupted either way
WAITING_SECONDS = 60.0  # without any worker, after which the user is warned
MAX_FAILED_STARTS = 3
# Only pictures pass through the object store. Ray's default is a third of the system RAM, which the models need.
OBJECT_STORE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class WorkerSetup:
    """Settings that a worker is built from on its machine; all paths are absolute."""

    workflow: Workflow
    models: list[Path]
    packs: list[Path]
    input: Path
    output: Path


class RayWorker:
    """The actor's class. Ray calls `run` in one thread and `stop` in another."""

    def __init__(self, setup: WorkerSetup) -> None:
        plain = host.PlainHost(models=list(setup.models), memory=ModelMemory(default_budget()))
        host.install(plain)
        common = folders.Folders(setup.input, setup.output, setup.output.parent / "temp")
        self._stop = StopRequest(plain)
        self._worker = BatchWorker(setup.workflow, load_registry(setup.packs), plain, common, self._stop)

    def location(self) -> str:
        """Return host and process. It is the first call of an actor, so its result also shows that the actor started."""
        return f"{platform.node()}, process {os.getpid()}"

    def run(self, row: BatchRow, images: dict[str, tuple[str, bytes]]) -> tuple[Outcome, dict[str, bytes]]:
        """Run a row and return its outcome and its saved files, by path relative to the row's folder.

        Args:
            images: file name and content of the row's pictures, by node.
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
        self._stop.set()


@dataclass
class _WorkerSlot:
    """A worker as seen by this process: starting, idle, or running an attempt."""

    actor: Any
    ready: bool = False
    attempt: Attempt | None = None


class RayPool:
    """A pool of workers on a Ray cluster. A worker that dies is replaced, and its attempt is lost.

    Args:
        address: address of the cluster; "local" starts one on this machine, which is stopped with this process.
        workers: number of workers; None for one per GPU, or one per machine on a cluster without GPUs.
        pictures: the folder that the rows' picture paths are relative to.

    Raises:
        UniWorldError: Ray is not installed, or there is no cluster at the address.
    """

    def __init__(self, address: str, workers: int | None, setup: WorkerSetup, pictures: Path) -> None:
        try:
            import ray
        except ImportError as error:
            raise UniWorldError(NOT_INSTALLED) from error
        self._ray, self._setup, self._pictures = ray, setup, pictures
        self._by_ref: dict[object, _WorkerSlot] = {}
        self._idle: list[_WorkerSlot] = []
        self._finished: list[tuple[Attempt, Outcome]] = []  # attempts that failed before they were sent
        self._failed_starts = 0
        self._stop_at: float | None = None
        self._warn_at: float | None = time.monotonic() + WAITING_SECONDS
        self._connect(address, workers)
        count, resources = self._resources(workers)
        # Two threads, for `run` and `stop`. Ray must not restart or retry by itself: every attempt needs a record.
        self._class = ray.remote(RayWorker).options(
            max_concurrency=2, max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD", **resources
        )
        for _ in range(count):
            self._add()

    def _connect(self, address: str, workers: int | None) -> None:
        # Output of nodes on the workers must not mix with the progress bar here.
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address == "local":
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # the program makes no external requests
            cpus = max(workers or 1, os.cpu_count() or 1)
            quiet |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
        try:
            _check_reachable(address)
            self._ray.init(address=address, **quiet)
        except (self._ray.exceptions.RayError, RuntimeError, ValueError, OSError) as error:
            reason = str(error).partition("\n")[0].rstrip(".")
            raise UniWorldError(
                f"There is no Ray cluster at '{address}': {reason}. Check the address, and set RAY_AUTH_MODE=token "
                "if the cluster requires a token."
            ) from error

    def _resources(self, workers: int | None) -> tuple[int, dict[str, object]]:
        """Return the number of workers, and the resources that each one requests from the cluster."""
        total = self._ray.cluster_resources()
        gpus, cpus = int(total.get("GPU", 0)), int(total.get("CPU", 1))
        if gpus:
            count = workers or gpus
            per_gpu = -(-count // gpus)  # workers per GPU, rounded up
            return count, {"num_gpus": 1 if per_gpu == 1 else 1 / per_gpu, "num_cpus": 0}
        machines = [int(node["Resources"].get("CPU", 1)) for node in self._ray.nodes() if node.get("Alive")]
        count = workers or len(machines)
        # Ray sets OMP_NUM_THREADS to the requested number of CPUs.
        return count, {"num_cpus": max(1, min([cpus // count, *machines]))}

    def _add(self) -> None:
        slot = _WorkerSlot(self._class.remote(self._setup))
        self._by_ref[slot.actor.location.remote()] = slot

    @property
    def has_room(self) -> bool:
        return bool(self._idle)

    @property
    def busy(self) -> bool:
        return bool(self._finished) or any(slot.attempt is not None for slot in self._by_ref.values())

    def next_job(self) -> None:
        return None

    def start(self, attempt: Attempt) -> None:
        try:
            images = {
                node: (Path(file).name, (self._pictures / folders.expand_path(file)).read_bytes())
                for node, file in attempt.row.image.items()
            }
        except OSError as error:
            self._finished.append((attempt, Outcome(ERROR, error=f"A picture of the row cannot be read: {error}.")))
            return
        slot = self._idle.pop(0)
        slot.attempt = attempt
        self._by_ref[slot.actor.run.remote(attempt.row, images)] = slot

    def wait(self) -> list[tuple[Attempt, Outcome]]:
        finished, self._finished = self._finished, []
        if finished:
            return finished
        refs = self._ray.wait(list(self._by_ref), timeout=POLL_SECONDS)[0] if self._by_ref else []
        for ref in refs:
            slot = self._by_ref.pop(ref)
            attempt, slot.attempt = slot.attempt, None
            try:
                outcome = self._receive(slot, attempt, self._ray.get(ref))
            except self._ray.exceptions.RayError as error:
                outcome = self._handle_failure(slot, error)
            if attempt is not None:
                finished.append((attempt, outcome))
        if self._stop_at is not None and time.monotonic() > self._stop_at:
            finished += self._kill_all()
        self._warn_of_waiting()
        return finished

    def _receive(self, slot: _WorkerSlot, attempt: Attempt | None, value: Any) -> Outcome:
        """Mark a worker as idle; if it ran an attempt, write the files and return the outcome."""
        self._idle.append(slot)
        slot.ready = True
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
            return Outcome(ERROR, error=f"The pictures of the row cannot be written: {error}")
        return outcome

    def _handle_failure(self, slot: _WorkerSlot, error: Exception) -> Outcome:
        """Return the outcome of an attempt that ended with an error of Ray, and replace the worker if it died."""
        reason = str(error).strip().rpartition("\n")[2]
        if isinstance(error, self._ray.exceptions.RayTaskError):  # an exception in a worker that is still alive
            self._idle.append(slot)
            return Outcome(ERROR, error=f"The worker failed: {reason}")
        if not slot.ready:
            self._failed_starts += 1
            if self._failed_starts >= MAX_FAILED_STARTS:
                raise UniWorldError(f"The workers do not start: {reason} Fix that, and run the same command again.")
        self._ray.kill(slot.actor)
        if self._stop_at is not None:
            return Outcome(INTERRUPTED, error="The run was interrupted.")
        self._add()
        return Outcome(LOST, error=f"The worker that ran it died ({type(error).__name__}).")

    def _warn_of_waiting(self) -> None:
        if self._warn_at is None or self._idle or self.busy:
            self._warn_at = None
        elif time.monotonic() > self._warn_at:
            say("The cluster has not started a worker yet. Run `ray status` to see what it is waiting for.")
            self._warn_at = None

    def stop(self) -> None:
        self._stop_at = time.monotonic() + STOP_SECONDS
        for slot in self._by_ref.values():
            if slot.attempt is not None:
                slot.actor.stop.remote()

    def _kill_all(self) -> list[tuple[Attempt, Outcome]]:
        slots, self._by_ref = list(self._by_ref.values()), {}
        for slot in slots:
            self._ray.kill(slot.actor)
        outcome = Outcome(INTERRUPTED, error="The run was interrupted; its worker did not stop and was killed.")
        return [(slot.attempt, outcome) for slot in slots if slot.attempt is not None]

    def close(self) -> None:
        for slot in [*self._by_ref.values(), *self._idle]:
            self._ray.kill(slot.actor)
        self._ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raise OSError if nothing listens at host:port. Ray itself would retry for minutes and report only to its log."""
    host_name, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host_name.strip("[]"), int(port)), timeout=10).close()
