"""Files that are there as a whole or not at all, and one writer at a time."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ...uniworld_core.errors import UniWorldError

PARTIAL = ".partial"
# What the system says of a lock that another process holds.
_BUSY = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file beside its place, put it on disk, and rename it into its place, over what was there; its folder is made.

    Raises:
        UniWorldError: it cannot be written, such as on a full disk. What was there stays, and nothing half-written does.
    """
    with whole_file(path) as file:
        file.write(data)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes its place when the block ends without an error. Raises as `write_whole` does."""
    beside = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    make_folder(path.parent)
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise UniWorldError(cannot_write(path, error)) from error
    finally:
        with suppress(OSError):
            beside.unlink()


def make_folder(folder: Path) -> None:
    """Make a folder and those around it, where they are not there. Raises UniWorldError if that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UniWorldError(cannot_write(folder, error)) from error


def cannot_write(path: Path, error: OSError) -> str:
    """What to say where a file cannot be written."""
    return (
        f"'{path}' cannot be written: {error.strerror or error}. Free room on the disk or name another folder, then "
        "run the same command again: what is finished is kept."
    )


@contextmanager
def locked(path: Path, wait: bool, busy: str) -> Iterator[None]:
    """Hold a lock file, until the block ends or the process does.

    Args:
        wait: for another process that holds it, instead of giving up.
        busy: what to say when giving up.

    Raises:
        UniWorldError: another process holds it, or the file cannot be written.
    """
    try:
        file = path.open("a+b")
    except OSError as error:
        raise UniWorldError(cannot_write(path, error)) from error
    with file:
        try:
            _lock(file.fileno(), wait)
        except OSError as error:
            if error.errno in _BUSY:
                raise UniWorldError(busy) from error
            raise UniWorldError(
                f"'{path}' cannot be locked ({error.strerror or error}), as its file system has no locks: name a folder on "
                "another disk."
            ) from error
        yield


def _lock(file: int, wait: bool) -> None:
    if sys.platform == "win32":
        import msvcrt

        while True:
            try:
                # Waits ten seconds by itself, where it may wait.
                msvcrt.locking(file, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
                return
            except OSError:
                if not wait:
                    raise
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def sync_folder(folder: Path) -> None:
    """Put a rename on disk."""
    if os.name == "nt":  # Windows has no such thing
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
