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
from typing import Any

import torch

from ..parallel import RunFailed
from .stages import Progress


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


def do_jobs(lists: Sequence[Sequence[Job]], processes: int, progress: Progress) -> None:
    """Do all jobs of a list, then those of the next, several at a time.

    Args:
        progress: told how many are done of all, and the one that was done last.

    Raises:
        ValueError: what the first job raised that failed; those that were begun are ended, the others not begun.
        RunFailed: a process died.
        KeyboardInterrupt: Ctrl-C; every process is asked to stop as well, and waited for.
    """
    total, done = sum(map(len, lists)), 0
    threads = max(1, torch.get_num_threads() // processes)
    # A fresh interpreter for each: a copy of this one would share the locks of its threads.
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(processes, context, _begin, (threads,))
    try:
        for jobs in lists:
            waited = {pool.submit(_call, job): job for job in jobs}
            for future in as_completed(waited):
                future.result()
                done += 1
                progress("variants", done, total, {"last": waited[future].name})
    except BrokenProcessPool as error:
        raise RunFailed(
            "A process that trained a variant died; the system may have been short of memory. The same command goes on "
            "where it was; fewer processes need less memory."
        ) from error
    except BaseException:
        for process in set(multiprocessing.active_children()) - others:
            if process.pid is not None:
                os.kill(process.pid, signal.SIGINT)
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(threads: int) -> None:
    """What a process does before its first job."""
    torch.set_num_threads(threads)
    if sys.platform != "win32":
        os.setpgrp()  # Ctrl-C on the terminal reaches the process that waits alone, which passes it on once
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


_over = False  # once a job of this process failed or was stopped


def _call(job: Job) -> None:
    global _over
    if _over:  # a pool hands out some jobs ahead, which cannot be taken back
        raise KeyboardInterrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        job.call(*job.arguments)
    except BaseException:
        _over = True
        raise
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # between jobs there is nothing to stop


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # a run that is killed goes on where it was; one that nobody waits for would keep its folder busy
