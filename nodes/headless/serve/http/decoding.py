"""Decodes the pictures of requests so that nobody's file keeps the others waiting.

Every file begins in one of a few threads with a small budget, which ordinary pictures do not exceed. What exceeds it
starts again in a process of its own, of which there are few at a time: a decoder that runs in C can only be stopped by
ending its process, and it may neither take the server's memory nor crash it.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TypeVar

from .....uniworld_core.errors import UniWorldError
from .....uniworld_core.images.picture_files import Limits, TooMuch, TooSlow, deadline
from .images import Budget, Encoded

T = TypeVar("T")

THREADS, PROCESSES = 4, 2
# Most photographs, and not much more than a second of work.
SMALL = Limits(pixels=2**24, frames=64)
SMALL_SECONDS = 1.0
PROCESS_SECONDS = 30.0

_PROGRAM = Path(__file__).with_name("decoder.py")
_threads = ThreadPoolExecutor(THREADS, thread_name_prefix="uniworld-pictures")
_waiting = ThreadPoolExecutor(PROCESSES, thread_name_prefix="uniworld-decoders")


async def in_thread(work: Callable[[], T]) -> T:
    """Run a short piece of work on pictures that is no decoding."""
    return await asyncio.get_running_loop().run_in_executor(_threads, work)


async def decoded(work: Callable[..., Encoded], *arguments: Path | IO[bytes] | str) -> Encoded:
    """The result of a function of `images.py`, called with these arguments and a budget.

    Raises:
        UniWorldError: the function's own, or decoding takes too long.
    """
    loop = asyncio.get_running_loop()
    try:
        return await loop.run_in_executor(_threads, lambda: work(*arguments, Budget(SMALL, deadline(SMALL_SECONDS))))
    except (TooMuch, TooSlow):
        process = DecoderProcess()
    try:
        return await loop.run_in_executor(_waiting, process.run, work.__name__, arguments)
    except asyncio.CancelledError:
        process.end()
        raise


class DecoderProcess:
    """A process that runs one function of `images.py` (`decoder.py`)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = False

    def run(
        self, work: str, arguments: tuple[Path | IO[bytes] | str, ...], seconds: float = PROCESS_SECONDS
    ) -> Encoded:
        """Start the process and wait for its result.

        Raises:
            UniWorldError: the function's own, decoding takes too long, or the process died.
        """
        request = _request(work, arguments)
        with self._lock:
            if self._ended:
                raise UniWorldError("The request was cancelled.")
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(_PROGRAM)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        try:
            answer, _ = self._process.communicate(request, seconds)
        except subprocess.TimeoutExpired:
            raise UniWorldError(
                f"Decoding the picture takes more than {seconds:g} seconds. Scale it down, or save it again as PNG."
            ) from None
        finally:
            self.end()
        head, _, data = answer.partition(b"\n")
        if not head:
            raise UniWorldError(
                f"The picture cannot be decoded: its decoder ended with code {self._process.returncode}."
            )
        told = json.loads(head)
        if "error" in told:
            raise UniWorldError(told["error"])
        return data, told["kind"]

    def end(self) -> None:
        """End the process, if it runs, or keep it from starting. May be called from any thread."""
        with self._lock:
            self._ended = True
            if self._process is not None:
                self._process.kill()
                self._process.wait()
                for pipe in (self._process.stdin, self._process.stdout):
                    if pipe is not None:
                        pipe.close()


def _request(work: str, arguments: tuple[Path | IO[bytes] | str, ...]) -> bytes:
    """A line of JSON, and after it the content of the files that have no path."""
    told: list[dict[str, object]] = []
    contents: list[bytes] = []
    for argument in arguments:
        if isinstance(argument, Path):
            told.append({"path": str(argument.absolute())})
        elif isinstance(argument, str):
            told.append({"text": argument})
        else:
            argument.seek(0)
            contents.append(argument.read())
            told.append({"bytes": len(contents[-1])})
    # The process finds Pillow where this one found it.
    return json.dumps({"work": work, "arguments": told, "modules": sys.path}).encode() + b"\n" + b"".join(contents)
