"""Jobs done in several processes, which share the cores; each begins when those that it needs are done.

The standard library has all of it (`graphlib`, `ProcessPoolExecutor`); joblib knows no order among jobs, and ray would be
a cluster for a dozen of them.
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
from dataclasses import dataclass
from graphlib import TopologicalSorter
from multiprocessing.process import BaseProcess

import torch

from ....uniworld_core.errors import RunFailed

# Called with what is being done, the step, how many there are, and what is known of it.
Progress = Callable[[str, int, int, Mapping[str, object]], None]


@dataclass(frozen=True)
class Job:
    """A call that another process can make.

    Attributes:
        name: for whoever waits; no other job has it.
        call: a function that can be pickled.
        arguments: of the call.
        after: names of the jobs that must be done before.
    """

    name: str
    call: Callable[..., object]
    arguments: tuple[object, ...]
    after: tuple[str, ...] = ()


def do_jobs(jobs: Sequence[Job], processes: int, progress: Callable[[int, int, str], None] | None = None) -> None:
    """Do all jobs, several at a time; of those that could begin, the first does.

    Args:
        progress: told how many are done of all, and the name of the last one.

    Raises:
        RunFailed: a process died.
        KeyboardInterrupt: Ctrl-C; every process is asked to stop as well, and waited for.
        Exception: what the first job raised that failed; those that were begun are stopped, the others not begun.
    """
    threads = max(1, torch.get_num_threads() // processes)
    others = set(multiprocessing.active_children())
    # A fresh interpreter for each: a copy of this one would share the locks of its threads.
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _begin, (threads,))
    try:
        for done, name in enumerate(_ended(pool, jobs, processes), 1):
            if progress is not None:
                progress(done, len(jobs), name)
    except BrokenProcessPool as error:
        raise RunFailed(
            "One of the processes died; the system may have been short of memory. The same command goes on where it was; "
            "fewer processes need less memory."
        ) from error
    except BaseException:
        _stop_all(others)
        raise
    finally:
        _shut(pool, others)


def _ended(pool: ProcessPoolExecutor, jobs: Sequence[Job], processes: int) -> Iterator[str]:
    """Do the jobs, and tell the name of each that has ended. Raises what a job raised."""
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
            running[pool.submit(_call, named[name])] = name
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            future.result()
            name = running.pop(future)
            order.done(name)
            yield name


def _shut(pool: ProcessPoolExecutor, others: set[BaseProcess]) -> None:
    while True:
        try:
            return pool.shutdown(wait=True, cancel_futures=True)
        except KeyboardInterrupt:  # asked once more: so are they
            _stop_all(others)


def _stop_all(others: set[BaseProcess]) -> None:
    for process in set(multiprocessing.active_children()) - others:
        if process.pid is not None:
            os.kill(process.pid, signal.SIGINT)


# In one of the processes: set once a job failed there, or Ctrl-C came before the job that it was meant for.
_over = threading.Event()


def _begin(threads: int) -> None:
    """What a process does before its first job."""
    torch.set_num_threads(threads)
    if sys.platform != "win32":
        os.setpgrp()  # Ctrl-C on the terminal reaches the process that waits alone, which passes it on once
    signal.signal(signal.SIGINT, _stop)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _call(job: Job) -> None:
    if _over.is_set():
        raise KeyboardInterrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        job.call(*job.arguments)
    except BaseException:
        _over.set()
        raise
    finally:
        signal.signal(signal.SIGINT, _stop)


def _stop(*_: object) -> None:
    _over.set()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # what is killed goes on where it was; a process that nobody waits for would keep its folder busy
