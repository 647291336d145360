"""Decode the pictures of requests without letting one file block the others.

Each file is first decoded in one of a few threads, with a small budget that ordinary pictures do not exceed. Files that
exceed it are decoded again in a separate process, at most `PROCESSES` at a time: decoders are C code, which can only be
stopped by killing the process, and which must not use up the server's memory or crash it.
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
# Enough for most photographs, which decode in about a second at this size.
SMALL = Limits(pixels=2**24, frames=64)
SMALL_SECONDS = 1.0
PROCESS_SECONDS = 30.0

_PROGRAM = Path(__file__).with_name("decoder.py")
_threads = ThreadPoolExecutor(THREADS, thread_name_prefix="uniworld-pictures")
_waiting = ThreadPoolExecutor(PROCESSES, thread_name_prefix="uniworld-decoders")


async def in_thread(work: Callable[[], T]) -> T:
    """Run a short function on pictures, other than decoding, in a thread."""
    return await asyncio.get_running_loop().run_in_executor(_threads, work)


async def decoded(work: Callable[..., Encoded], *arguments: Path | IO[bytes] | str) -> Encoded:
    """Call a function of `images.py` with these arguments and a budget, and return its result.

    Raises:
        UniWorldError: raised by the function, or decoding takes too long.
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
            UniWorldError: raised by the function, decoding takes too long, or the process died.
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
                f"Decoding the picture takes longer than {seconds:g} seconds. Scale it down, or save it again as PNG."
            ) from None
        finally:
            self.end()
        head, _, data = answer.partition(b"\n")
        if not head:
            raise UniWorldError(
                f"The picture cannot be decoded: the decoder exited with code {self._process.returncode}."
            )
        result = json.loads(head)
        if "error" in result:
            raise UniWorldError(result["error"])
        return data, result["kind"]

    def end(self) -> None:
        """Kill the process if it runs, or prevent it from starting. Thread-safe."""
        with self._lock:
            self._ended = True
            if self._process is not None:
                self._process.kill()
                self._process.wait()
                for pipe in (self._process.stdin, self._process.stdout):
                    if pipe is not None:
                        pipe.close()


def _request(work: str, arguments: tuple[Path | IO[bytes] | str, ...]) -> bytes:
    """Serialize a call: one line of JSON, followed by the contents of the files that have no path."""
    entries: list[dict[str, object]] = []
    contents: list[bytes] = []
    for argument in arguments:
        if isinstance(argument, Path):
            entries.append({"path": str(argument.absolute())})
        elif isinstance(argument, str):
            entries.append({"text": argument})
        else:
            argument.seek(0)
            contents.append(argument.read())
            entries.append({"bytes": len(contents[-1])})
    # The process starts with `-I` and gets our module path, so that it imports the same Pillow.
    return json.dumps({"work": work, "arguments": entries, "modules": sys.path}).encode() + b"\n" + b"".join(contents)
