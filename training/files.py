"""Files of long-running commands. Disk errors become sentences that say how to run the same command again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

from ..uniworld_core import files
from ..uniworld_core.errors import UniWorldError

T = TypeVar("T")


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file atomically and sync it to disk. Its folder is created; an existing file is replaced.

    Raises:
        UniWorldError: it cannot be written, for example because the disk is full. An existing file is then unchanged.
    """
    with atomic_file(path) as file:
        file.write(data)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a temporary file that is renamed to `path` if the block succeeds. Raises like `write_atomic`."""
    make_folder(path.parent)
    try:
        with files.atomic_file(path) as file:
            yield file
    except OSError as error:
        raise UniWorldError(cannot_write(path, error)) from error


def read_saved(file: Path, read: Callable[[Path], T]) -> T:
    """Call `read` on a file that an earlier run of the same command saved.

    Raises:
        UniWorldError: the file is damaged. The command creates it again once it is deleted.
    """
    try:
        return read(file)
    except Exception as error:  # torch and safetensors raise errors of many types
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UniWorldError(f"'{file}' is damaged ({reason}): delete it, then run the same command again.") from error


def make_folder(folder: Path) -> None:
    """Create a folder and its parents if they do not exist. Raises UniWorldError if they cannot be created."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UniWorldError(cannot_write(folder, error)) from error


def cannot_write(path: Path, error: OSError) -> str:
    """Return the message for a file that cannot be written."""
    return (
        f"'{path}' cannot be written: {error.strerror or error}. Free disk space or choose another folder, then run the "
        "same command again: finished work is kept."
    )


@contextmanager
def locked(path: Path, wait: bool, busy: str) -> Iterator[None]:
    """Hold a lock file until the block or the process ends.

    Args:
        path: the lock file; it is created if it does not exist.
        wait: wait for another process that holds the lock, instead of raising.
        busy: message of the error if another process holds the lock.

    Raises:
        UniWorldError: another process holds the lock, the file system does not support locks, or the file cannot be
            written.
    """
    try:
        held = files.acquire_lock(path, busy, wait)
    except OSError as error:
        raise UniWorldError(cannot_write(path, error)) from error
    with held:
        yield
