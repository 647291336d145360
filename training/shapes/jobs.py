"""Jobs done in several processes, which share the cores."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from ..parallel import RunFailed

# Called with what is being done, the step, how many there are, and what is known of it.
Progress = Callable[[str, int, int, "dict[str, Any]"], None]


@dataclass(frozen=True)
class Job:
    """A call that another process can make.

    Attributes:
        name: for whoever waits.
        call: a function that can be pickled.
        arguments: of the call.
    """

    name: str
    call: Callable[..., Any]
    arguments: tuple[Any, ...]


def do_jobs(
    lists: Sequence[Sequence[Job]], processes: int, progress: Callable[[int, int, str], None] | None = None
) -> None:
    """Do all jobs of a list, then those of the next, several at a time.

    Args:
        progress: told how many are done of all, and the name of the last one.

    Raises:
        RunFailed: a process died.
        KeyboardInterrupt: Ctrl-C; every process is asked to stop as well, and waited for.
        Exception: what the first job raised that failed; those that were begun are stopped, the others not begun.
    """
    total, done = sum(map(len, lists)), 0
    threads = max(1, torch.get_num_threads() // processes)
    others = set(multiprocessing.active_children())
    # A fresh interpreter for each: a copy of this one would share the locks of its threads.
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _begin, (threads,))
    try:
        for jobs in lists:
            waited = {pool.submit(_call, job): job for job in jobs}
            for future in as_completed(waited):
                future.result()
                done += 1
                if progress is not None:
                    progress(done, total, waited[future].name)
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


# In one of the processes: set once a job failed or was stopped, as the pool hands out some ahead, which cannot be taken
# back.
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


def _stop(*_: Any) -> None:
    _over.set()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # what is killed goes on where it was; a process that nobody waits for would keep its folder busy
