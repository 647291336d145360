"""Files of long runs: what is wrong with the disk, said so that the same command can be run again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

from ..uniworld_core import files
from ..uniworld_core.errors import UniWorldError

T = TypeVar("T")


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file and put it on disk, over what was there; its folder is made.

    Raises:
        UniWorldError: it cannot be written, such as on a full disk. What was there stays, and nothing half-written does.
    """
    with atomic_file(path) as file:
        file.write(data)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes its place when the block ends without an error. Raises as `write_atomic` does."""
    make_folder(path.parent)
    try:
        with files.atomic_file(path) as file:
            yield file
    except OSError as error:
        raise UniWorldError(cannot_write(path, error)) from error


def read_kept(file: Path, read: Callable[[Path], T]) -> T:
    """What `read` gives of a file that an earlier run of the same command kept.

    Raises:
        UniWorldError: the file is damaged; once it is deleted, the command makes it again.
    """
    try:
        return read(file)
    except Exception as error:  # torch and safetensors raise errors of many types
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UniWorldError(f"'{file}' is damaged ({reason}): delete it, then run the same command again.") from error


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
        UniWorldError: another process holds it, its file system has no locks, or it cannot be written.
    """
    try:
        held = files.acquire_lock(path, busy, wait)
    except OSError as error:
        raise UniWorldError(cannot_write(path, error)) from error
    with held:
        yield
