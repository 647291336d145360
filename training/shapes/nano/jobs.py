"""Run dependent jobs in several processes that share the cores; a job starts when its dependencies are done.

The standard library suffices (`graphlib`, `ProcessPoolExecutor`): joblib does not support dependencies between jobs, and
Ray would be a cluster for a dozen jobs.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from graphlib import TopologicalSorter
from multiprocessing.process import BaseProcess

import torch

from ....uniworld_core.errors import RunFailed

# Called with the name of the phase, the step, the number of steps, and values to show.
Progress = Callable[[str, int, int, Mapping[str, object]], None]


@dataclass(frozen=True)
class Job:
    """A function call to run in another process.

    Attributes:
        name: unique name, shown as progress.
        call: a picklable function.
        arguments: its arguments.
        after: names of the jobs that must be done first.
    """

    name: str
    call: Callable[..., object]
    arguments: tuple[object, ...]
    after: tuple[str, ...] = ()


def run_jobs(jobs: Sequence[Job], processes: int, progress: Callable[[int, int, str], None] | None = None) -> None:
    """Run all jobs, several at a time; of the jobs that are ready, the first in the list starts first.

    Args:
        jobs: the jobs.
        processes: number of processes.
        progress: called with the number of finished jobs, their total, and the name of the last one.

    Raises:
        RunFailed: a process died.
        KeyboardInterrupt: Ctrl-C; all processes are interrupted too, and waited for.
        Exception: the error of the first job that failed. Running jobs are interrupted, and no others are started.
    """
    threads = max(1, torch.get_num_threads() // processes)
    others = set(multiprocessing.active_children())
    # Spawned, because a forked process would inherit locks that other threads hold.
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _init_worker, (threads,))
    try:
        for done, name in enumerate(_run(pool, jobs, processes), 1):
            if progress is not None:
                progress(done, len(jobs), name)
    except BrokenProcessPool as error:
        raise RunFailed(
            "One of the processes died; the system may be out of memory. Run the same command again to resume; fewer "
            "processes need less memory."
        ) from error
    except BaseException:
        _interrupt_workers(others)
        raise
    finally:
        _shut_down(pool, others)


def _run(pool: ProcessPoolExecutor, jobs: Sequence[Job], processes: int) -> Iterator[str]:
    """Run the jobs and yield the name of each finished one. Raises the error of a job."""
    named = {job.name: job for job in jobs}
    places = {name: place for place, name in enumerate(named)}
    order = TopologicalSorter({job.name: job.after for job in jobs})
    order.prepare()
    ready: list[str] = []
    running: dict[Future[None], str] = {}
    while order.is_active():
        ready = sorted([*ready, *order.get_ready()], key=places.__getitem__)
        while ready and len(running) < processes:
            name = ready.pop(0)
            running[pool.submit(_run_job, named[name])] = name
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            future.result()
            name = running.pop(future)
            order.done(name)
            yield name


def _shut_down(pool: ProcessPoolExecutor, others: set[BaseProcess]) -> None:
    while True:
        try:
            return pool.shutdown(wait=True, cancel_futures=True)
        except KeyboardInterrupt:  # forward a second Ctrl-C as well
            _interrupt_workers(others)


def _interrupt_workers(others: set[BaseProcess]) -> None:
    for process in set(multiprocessing.active_children()) - others:
        if process.pid is not None:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(process.pid, signal.SIGINT)


# In a worker process: set when a job failed there, or when Ctrl-C arrived between two jobs.
_stop_event = threading.Event()


def _init_worker(threads: int) -> None:
    """Set up a worker process before its first job."""
    torch.set_num_threads(threads)
    if sys.platform != "win32":
        os.setpgrp()  # the terminal's Ctrl-C then reaches only the parent, which forwards it once
    signal.signal(signal.SIGINT, _stop)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _run_job(job: Job) -> None:
    if _stop_event.is_set():
        raise KeyboardInterrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        job.call(*job.arguments)
    except BaseException:
        _stop_event.set()
        raise
    finally:
        signal.signal(signal.SIGINT, _stop)


def _stop(*_: object) -> None:
    _stop_event.set()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # safe because jobs can be resumed; an orphaned process would keep its folder locked
