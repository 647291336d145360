"""Atomic files and folders, locks between processes, and checksums.

Disk errors are raised unchanged (`OSError`), so that each caller can say what failed and how to continue.

A file is written under a temporary name: a dot, the first characters of its name, 16 hexadecimal digits and ".part". The
temporary file is removed however the block that writes it ends. Only a killed process leaves one behind, which
`remove_stale_parts` removes later.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
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
_STEM = 32  # characters of the final name in the temporary one: more could exceed the file system's limit
_BLOCK = 2**20
# Errors of file systems that cannot sync a folder.
_CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


class LockHeld(UniWorldError):
    """Another process holds a lock."""


@contextlib.contextmanager
def atomic_file(path: Path, sync: bool = True) -> Iterator[BinaryIO]:
    """Open a file to write that replaces `path` atomically when the block ends without an error.

    Args:
        path: the final path, in an existing folder.
        sync: return only when content and name are on disk. Otherwise a power failure can lose the file.

    Raises:
        OSError: the file cannot be written. An existing file at `path` stays unchanged.
    """
    with temporary_file(path.parent, path.name) as file:
        yield file
        file.flush()
        if sync:
            os.fsync(file.fileno())
        file.close()  # Windows cannot rename an open file
        Path(file.name).replace(path)
    if sync:
        sync_folder(path.parent)


def write_atomic(path: Path, data: bytes, sync: bool = True) -> None:
    """Write a file atomically, as `atomic_file` does."""
    with atomic_file(path, sync) as file:
        file.write(data)


@contextlib.contextmanager
def temporary_file(folder: Path, stem: str = "") -> Iterator[BinaryIO]:
    """Create a temporary file that is removed when the block ends, unless it has been renamed. `file.name` is its path.

    Args:
        folder: an existing folder.
        stem: the final name if known, by which `remove_stale_parts` finds the file.
    """
    part = folder / f".{f'{stem[:_STEM]}.' if stem else ''}{secrets.token_hex(8)}{PART_SUFFIX}"
    try:
        with part.open("xb") as file:
            yield file
    finally:
        with contextlib.suppress(OSError):  # it has been renamed, or could not be created, which has raised already
            part.unlink()


def rename_new(file: BinaryIO, path: Path) -> bool:
    """Close a finished temporary file and rename it to `path`. Never replaces an existing file.

    Returns:
        False if `path` exists already.
    """
    part = Path(file.name)
    file.close()
    try:
        if os.name == "nt":
            part.rename(path)  # fails on Windows if the file exists
        else:
            # On POSIX, rename replaces an existing file without an error; link does not.
            os.link(part, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        if path.exists():
            return False
        part.rename(path)
    return True


def remove_stale_parts(folder: Path, stem: str = "", age: float = 0.0) -> None:
    """Remove the temporary files that killed processes have left behind.

    Args:
        folder: where they are.
        stem: beginning of their final names; empty for all.
        age: seconds. Files modified more recently may still be in use, and stay.
    """
    name = re.compile(rf"\.{re.escape(stem[:_STEM])}(.*\.)?[0-9a-f]{{16}}{re.escape(PART_SUFFIX)}", re.DOTALL)
    with contextlib.suppress(OSError):
        for entry in folder.iterdir():
            if name.fullmatch(entry.name):
                with contextlib.suppress(OSError):  # another process has removed it
                    if not age or time.time() - entry.stat().st_mtime > age:
                        entry.unlink()


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Create a folder to fill, which is renamed to `path`, synced to disk, when the block ends without an error.

    The remains of a killed attempt are removed, so only one process at a time may write a folder of that name.

    Raises:
        OSError: it cannot be written; the unfinished folder is removed. FileExistsError if `path` exists.
    """
    # Removed without asking, so the name must not be one that a user or another program would choose.
    part = path.with_name(f".{path.name}.uniworld-partial")
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
    """Append to an open file and sync it. If that fails, the file is truncated to its previous size.

    Args:
        file: a file descriptor, open for writing.

    Raises:
        OSError: the data cannot be written.
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
    """Sync the content of a file to disk."""
    _sync(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)


def sync_folder(folder: Path) -> None:
    """Sync the entries of a folder to disk, such as the name of a file just renamed, if the file system supports it."""
    if os.name == "nt":  # Windows cannot open a folder to sync it
        return
    try:
        _sync(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise


def sync_tree(folder: Path) -> None:
    """Sync a folder and everything in it to disk. The folder's own name needs `sync_folder(folder.parent)`."""
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)
        else:
            sync_file(path)
    sync_folder(folder)


def acquire_lock(path: Path, busy: str, wait: bool = False) -> BinaryIO:
    """Lock a file against other processes until it is closed, or until this process ends.

    The file is not removed on release: a process that waits for the lock would then hold a lock on a deleted file, while
    a third process locks a new one.

    Args:
        path: created if it does not exist. Symbolic links are not followed.
        busy: the message if another process holds the lock.
        wait: wait for that process instead of raising.

    Returns:
        The open file; close it to release the lock.

    Raises:
        LockHeld: another process holds the lock.
        UniWorldError: the file system does not support locks.
        OSError: the file cannot be opened.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    file = os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0)
    try:
        _lock(file.fileno(), path, busy, wait)
    except BaseException:
        file.close()
        raise
    return file  # type: ignore[return-value]  # FileIO has all methods of BinaryIO


def lock_path(path: Path) -> Path:
    """Return the file to lock for a data file: itself, or one next to it on Windows, where a lock prevents reading."""
    path = path.resolve()
    return path.with_name(f"{path.name}.lock") if os.name == "nt" else path


def check_locks(folder: Path) -> None:
    """Check that files in a folder can be locked. Raises UniWorldError if the file system does not support locks."""
    with temporary_file(folder) as file:
        _lock(file.fileno(), folder, "", wait=False)


def read_limited(path: Path, limit: int) -> bytes | None:
    """Read a file of at most `limit` bytes. Devices and pipes, whose size is unknown, are read no further than that.

    Returns:
        None if the file is larger.

    Raises:
        OSError: the file cannot be read.
    """
    content = io.BytesIO()
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size > limit:
            return None
        while block := file.read(min(_BLOCK, limit + 1 - content.tell())):
            content.write(block)
    return None if content.tell() > limit else content.getvalue()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal. The file is read in blocks. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _lock(file: int, path: Path, busy: str, wait: bool) -> None:
    # filelock's `FileLock` would not do. Where a file system has no locks it falls back to a marker file, which outlives a
    # killed process, and versions before 3.30 report any error as a held lock.
    from filelock import lock_descriptor

    try:
        taken = lock_descriptor(file, blocking=wait)
    except OSError as error:
        raise UniWorldError(
            f"'{path}' cannot be locked ({error.strerror or error}): its file system does not support locks. Choose a "
            "folder on another disk."
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
