"""Files and folders that are there as a whole or not at all, locks between processes, and checksums.

Errors of the disk are raised as they come (`OSError`), so that each caller can say what did not work and how to go on.

What is being written has a name that begins with a dot and ends in 16 hexadecimal digits and ".part". It is removed however the
block that writes it ends, and only a process that is killed leaves it behind: `remove_stale_parts` removes it later.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .errors import UniWorldError

PART_SUFFIX = ".part"
_STEM = 32  # characters of a name that its part file carries, so that any valid name gives a valid one
_BLOCK = 2**20
# What file systems say that have no such thing as putting the names of a folder on disk.
_CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


class LockHeld(UniWorldError):
    """Another process holds a lock."""


@contextlib.contextmanager
def atomic_file(path: Path, sync: bool = True) -> Iterator[BinaryIO]:
    """A file to write, which takes its place, over what was there, when the block ends without an error.

    Args:
        path: in a folder that exists.
        sync: return when the file and its name are on disk. Without, a power cut can lose what was written just before.

    Raises:
        OSError: it cannot be written. What was there stays, and nothing half-written does.
    """
    with temporary_file(path.parent, path.name) as file:
        yield file
        file.flush()
        if sync:
            os.fsync(file.fileno())
        file.close()  # on Windows, an open file cannot be renamed
        Path(file.name).replace(path)
    if sync:
        sync_folder(path.parent)


def write_atomic(path: Path, data: bytes, sync: bool = True) -> None:
    """Write a file as `atomic_file` does."""
    with atomic_file(path, sync) as file:
        file.write(data)


@contextlib.contextmanager
def temporary_file(folder: Path, stem: str = "") -> Iterator[BinaryIO]:
    """A new file, named by its `name` attribute, that is removed when the block ends unless it has another name by then.

    Args:
        folder: where it is; exists.
        stem: the name that it will have, if that is known, for `remove_stale_parts`.
    """
    part = folder / f".{f'{stem[:_STEM]}.' if stem else ''}{secrets.token_hex(8)}{PART_SUFFIX}"
    try:
        with part.open("xb") as file:
            yield file
    finally:
        with contextlib.suppress(OSError):  # it has its name, or could not be made; what went wrong has been raised
            part.unlink()


def rename_new(file: BinaryIO, path: Path) -> bool:
    """Give a part file, to which nothing is added, its name; False if something has that name, which stays."""
    part = Path(file.name)
    file.close()
    try:
        if os.name == "nt":
            part.rename(path)  # fails where the file exists
        else:
            os.link(part, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        if path.exists():
            return False
        part.rename(path)
    return True


def remove_stale_parts(folder: Path, stem: str = "", age: float = 0.0) -> None:
    """Remove what killed processes left of files that they were writing.

    Args:
        stem: how the names begin that the files would have; empty for all.
        age: seconds; what was written to since may be a file in work, and stays.
    """
    name = re.compile(rf"\.{re.escape(stem[:_STEM])}(.*\.)?[0-9a-f]{{16}}{re.escape(PART_SUFFIX)}", re.DOTALL)
    with contextlib.suppress(OSError):
        for entry in folder.iterdir():
            if name.fullmatch(entry.name):
                with contextlib.suppress(OSError):  # another process was faster
                    if not age or time.time() - entry.stat().st_mtime > age:
                        entry.unlink()


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which takes its name, on disk with all that is in it, when the block ends without an error.

    What a killed attempt left goes as well: one process at a time writes a folder of that name.

    Raises:
        OSError: it cannot be written, and then nothing of it stays; FileExistsError if there is something of that name.
    """
    part = path.with_name(f".{path.name}.uniworld-partial")  # a name that is nobody else's, as it is removed
    try:
        _check_free(path)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        sync_tree(part)
        _check_free(path)
        part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    sync_folder(path.parent)


def append_atomic(file: int, data: bytes) -> None:
    """Append to an open file, and return when it is on disk; after an error nothing of it is there.

    Args:
        file: a descriptor, open for writing.

    Raises:
        OSError: it cannot be written.
    """
    size = os.lseek(file, 0, os.SEEK_END)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(file, rest) :]
        os.fsync(file)
    except BaseException:
        os.ftruncate(file, size)
        raise


def sync_file(path: Path) -> None:
    """Put the content of a file on disk."""
    _sync(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on disk, such as that of a file just renamed, where its file system can."""
    if os.name == "nt":  # Windows has no handle on a folder to flush
        return
    try:
        _sync(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise


def sync_tree(folder: Path) -> None:
    """Put a folder with everything in it on disk. Its own name is `sync_folder(folder.parent)`'s."""
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)
        else:
            sync_file(path)
    sync_folder(folder)


def acquire_lock(path: Path, busy: str, wait: bool = False) -> BinaryIO:
    """An open lock file that no other process gets, until it is closed, at the latest with this process.

    It stays when it is let go of: a process that waits for a lock file which another one removes holds a lock on nothing.

    Args:
        path: is made if need be. A link is not followed.
        busy: what to say if another process holds it.
        wait: for that process, instead of raising.

    Raises:
        LockHeld: another process holds it.
        UniWorldError: its file system has no locks.
        OSError: it cannot be opened.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    file = os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0)
    try:
        _lock(file.fileno(), path, busy, wait)
    except BaseException:
        file.close()
        raise
    return file  # type: ignore[return-value]  # a FileIO has what a BinaryIO has


def check_locks(folder: Path) -> None:
    """Check that files of a folder can be locked. Raises UniWorldError if its file system has no locks."""
    with temporary_file(folder) as file:
        _lock(file.fileno(), folder, "", wait=False)


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's content as hexadecimal digits, read in blocks. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _lock(file: int, path: Path, busy: str, wait: bool) -> None:
    # Of filelock only this function keeps what is promised here: its `FileLock` turns into a file that outlives a killed
    # process where a file system has no locks, and versions before 3.30 take any error for a lock that is held.
    from filelock import lock_descriptor

    try:
        taken = lock_descriptor(file, blocking=wait)
    except OSError as error:
        raise UniWorldError(
            f"'{path}' cannot be locked ({error.strerror or error}), as its file system has no locks: name a folder on "
            "another disk."
        ) from error
    if not taken:
        raise LockHeld(busy)


def _sync(path: Path, flags: int) -> None:
    opened = os.open(path, flags)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _check_free(path: Path) -> None:
    if path.exists() or path.is_symlink():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
