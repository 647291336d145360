"""Standard output and standard error that never end a command, whatever happens to the terminal, pipe or file behind them.

A full disk, a reader that has gone, a closed descriptor or a stopped terminal is no fault of what is being computed:
what cannot be written is dropped, and writing is tried again with the next text. Imports the standard library only, until
a bar is made.
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

_PATIENCE = 5.0  # seconds that a message waits for a terminal or pipe whose reader has stopped reading
_PIECE = 4096  # bytes for which a pipe that can be written has room, so that writing them does not block (PIPE_BUF)


class LastingStream(io.RawIOBase):
    """The raw end of an output stream, whose `write` never fails.

    Args:
        inner: the raw stream to write to; None for one that was closed before the program started.
        patience: seconds to wait for a reader that has stopped; None to wait as long as it takes.

    Attributes:
        lost: the last error by which something was not written; None if everything was.
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
                # Nothing is taken by a stream that does not block and is full.
                view = view[self._inner.write(view[: self._piece]) or 0 :]
        except (OSError, ValueError) as error:  # the latter for a stream that was closed
            self.lost = error if isinstance(error, OSError) else _closed()
        return size

    @property
    def _piece(self) -> int | None:
        return None if self._patience is None else _PIECE

    def _wait(self) -> None:
        """Wait until something can be written. Raises OSError after the time that this stream has for it."""
        if not hasattr(select, "poll"):  # Windows waits for sockets only
            return
        poll = select.poll()
        poll.register(self._inner.fileno(), select.POLLOUT)
        # Once it was given up, nothing waits for it until it can be written again.
        seconds = None if self._patience is None else 0.0 if self._stuck else self._patience
        self._stuck = not poll.poll(None if seconds is None else int(seconds * 1000))
        if self._stuck:
            raise OSError(errno.EAGAIN, "its reader has stopped reading")


def _closed() -> OSError:
    return OSError(errno.EBADF, os.strerror(errno.EBADF))


def make_lasting() -> None:
    """Let the process's own standard output and error be lasting ones; streams that stand in their place stay as they are."""
    _occupy_descriptors()
    if sys.stdin is None:  # closed before the program started: nothing can be read
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: PTH123, SIM115 (open for as long as the program runs)
    for name, patience in (("stdout", None), ("stderr", _PATIENCE)):
        stream = getattr(sys, name)
        if stream is None or (stream is getattr(sys, f"__{name}__") and _raw(stream) is not None):
            setattr(sys, name, _lasting(stream, patience))


def _occupy_descriptors() -> None:
    """Open /dev/null for standard descriptors that are closed: the next file would get the number, and foreign output."""
    if os.name == "nt":
        return
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                opened = os.open(os.devnull, os.O_RDWR)
                os.set_inheritable(opened, opened < 3)  # other programs that we start need them as well


def _raw(stream: Any) -> Any:
    buffer = getattr(stream, "buffer", None)
    return getattr(buffer, "raw", buffer)  # the same with `python -u`, where there is no buffer


def _lasting(stream: Any, patience: float | None) -> TextIO:
    raw = LastingStream(None if stream is None else _raw(stream), patience)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=getattr(stream, "encoding", None) or "utf-8",
        errors="replace",  # a console of an old code page must not end a run
        line_buffering=stream is None or stream.line_buffering,
        write_through=stream is not None and stream.write_through,
    )


def lost(stream: Any) -> OSError | None:
    """Why something that was written to a stream did not arrive; None if all of it did, or nobody wanted to read on."""
    try:
        stream.flush()
    except (OSError, ValueError, AttributeError) as error:
        return error if isinstance(error, OSError) else _closed()
    raw = _raw(stream)
    error = raw.lost if isinstance(raw, LastingStream) else None
    return None if error is not None and error.errno == errno.EPIPE else error


def say(text: str) -> None:
    """Print a line to standard error, if that can be written."""
    # RuntimeError: a signal handler speaks while the same stream is being written.
    with contextlib.suppress(OSError, ValueError, AttributeError, RuntimeError):
        if sys.stderr is not None:  # `print` would use standard output instead
            print(text, file=sys.stderr, flush=True)


@cache
def _bar_class() -> type:
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[type-arg]
        """tqdm's bar, whose lock is let go of even where the bar cannot be drawn: all bars of a process share it, and the
        next one in another thread would wait for ever."""

        def refresh(self, nolock: bool = False, lock_args: Any = None) -> Any:
            if nolock or self.disable:
                return super().refresh(nolock, lock_args)
            if not lock_args:
                self.get_lock().acquire()  # whose result says nothing
            elif not self.get_lock().acquire(*lock_args):
                return False
            try:
                return super().refresh(nolock=True)
            finally:
                self.get_lock().release()

    return Bar


def progress_bar(**options: Any) -> Any:
    """A progress bar with tqdm's options, drawn to standard error unless they say otherwise; the only way to make one."""
    return _bar_class()(**options)
