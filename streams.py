"""Standard output and standard error that never fail, whatever happens to the terminal, pipe or file behind them.

A full disk, a closed pipe or descriptor, or a stopped terminal must not abort a computation. Text that cannot be written
is dropped, and the next write is attempted as usual. Only the standard library is imported until a progress bar is
created, because `python3 .` uses this module before anything is installed.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
from functools import cache
from typing import Any, TextIO

_PATIENCE = 5.0  # seconds to wait for a terminal or pipe whose reader has stopped reading
_CHUNK = 4096  # bytes that a pipe reported as writable accepts without blocking (PIPE_BUF)


class ResilientStream(io.RawIOBase):
    """A raw output stream whose `write` never fails.

    Args:
        inner: the raw stream to write to; None if it was closed before the program started.
        patience: seconds to wait for a reader that has stopped reading; None to wait without limit.

    Attributes:
        lost: the last error because of which output was dropped; None if everything was written.
    """

    def __init__(self, inner: Any, patience: float | None = None) -> None:
        self._inner, self._patience = inner, patience
        self._stuck = False
        self.lost: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        if self._inner is None:
            raise _closed()
        return int(self._inner.fileno())

    def isatty(self) -> bool:
        try:
            return self._inner is not None and bool(self._inner.isatty())
        except (OSError, ValueError):
            return False

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        size = len(view)
        try:
            if self._inner is None:
                raise _closed()
            while view:
                self._wait()
                # A full non-blocking stream returns None: it has written nothing.
                view = view[self._inner.write(view[: self._chunk_size]) or 0 :]
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            self.lost = error if isinstance(error, OSError) else _closed()
        return size

    @property
    def _chunk_size(self) -> int | None:
        return None if self._patience is None else _CHUNK

    def _wait(self) -> None:
        """Wait until the stream is writable. Raises OSError after `patience` seconds."""
        if not hasattr(select, "poll"):  # on Windows, only sockets can be waited for
            return
        poll = select.poll()
        poll.register(self._inner.fileno(), select.POLLOUT)
        # After a timeout, later writes do not wait, until the stream is writable again.
        seconds = None if self._patience is None else 0.0 if self._stuck else self._patience
        self._stuck = not poll.poll(None if seconds is None else int(seconds * 1000))
        if self._stuck:
            raise OSError(errno.EAGAIN, "its reader has stopped reading")


def _closed() -> OSError:
    return OSError(errno.EBADF, os.strerror(errno.EBADF))


def protect_standard_streams() -> None:
    """Wrap the process's standard output and error in `ResilientStream`; leave streams that replace them unchanged.

    Bytes of standard input that are not text in its encoding become lone surrogates, as in file names, so that one wrong
    line does not end a program that reads line by line.
    """
    _occupy_descriptors()
    if sys.stdin is None:  # closed before the program started: nothing can be read
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: PTH123, SIM115 (open for as long as the program runs)
    if isinstance(sys.stdin, io.TextIOWrapper):
        with contextlib.suppress(OSError, ValueError):  # some of it has been read already
            sys.stdin.reconfigure(errors="surrogateescape")
    for name, patience in (("stdout", None), ("stderr", _PATIENCE)):
        stream = getattr(sys, name)
        if stream is None or (stream is getattr(sys, f"__{name}__") and _raw(stream) is not None):
            setattr(sys, name, _resilient(stream, patience))


def _occupy_descriptors() -> None:
    """Open /dev/null for closed standard descriptors: the next file to be opened would get the number, and the output."""
    if os.name == "nt":
        return
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                opened = os.open(os.devnull, os.O_RDWR)
                os.set_inheritable(opened, opened < 3)  # child processes need them as well


def _raw(stream: Any) -> Any:
    buffer = getattr(stream, "buffer", None)
    return getattr(buffer, "raw", buffer)  # with `python -u`, `buffer` is the raw stream itself


def _resilient(stream: Any, patience: float | None) -> TextIO:
    raw = ResilientStream(None if stream is None else _raw(stream), patience)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=getattr(stream, "encoding", None) or "utf-8",
        errors="replace",  # legacy console encodings must not crash a run
        line_buffering=stream is None or stream.line_buffering,
        write_through=stream is not None and stream.write_through,
    )


def write_error(stream: Any) -> OSError | None:
    """Return the error because of which output to a stream was lost; None if nothing was lost or the reader closed it."""
    try:
        stream.flush()
    except (OSError, ValueError, AttributeError) as error:
        return error if isinstance(error, OSError) else _closed()
    raw = _raw(stream)
    error = raw.lost if isinstance(raw, ResilientStream) else None
    return None if error is not None and error.errno == errno.EPIPE else error


def say(text: str) -> None:
    """Print a line to standard error; never fails."""
    # RuntimeError: called from a signal handler during a write to the same stream.
    with contextlib.suppress(OSError, ValueError, AttributeError, RuntimeError):
        if sys.stderr is not None:  # with file=None, `print` uses standard output
            print(text, file=sys.stderr, flush=True)


@cache
def _bar_class() -> type:
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[type-arg]
        """tqdm's bar, which releases its lock even if drawing fails.

        All bars of a process share the lock: otherwise a bar in another thread would wait for it forever.
        """

        def refresh(self, nolock: bool = False, lock_args: Any = None) -> Any:
            if nolock or self.disable:
                return super().refresh(nolock, lock_args)
            if not lock_args:
                self.get_lock().acquire()  # tqdm's own lock returns None here, so the result cannot be checked
            elif not self.get_lock().acquire(*lock_args):
                return False
            try:
                return super().refresh(nolock=True)
            finally:
                self.get_lock().release()

    return Bar


def progress_bar(**options: Any) -> Any:
    """Create a progress bar with tqdm's options. All bars are created here, so that all have the lock fixed."""
    return _bar_class()(**options)
