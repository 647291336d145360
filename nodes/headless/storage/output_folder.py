"""Checks of the output folder, and a temporary folder for previews."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ....uniworld_core.errors import UniWorldError

_PREVIEWS = "uniworld-previews-"
_DAY = 24 * 60 * 60.0


def check_writable(folder: Path, make: bool = True) -> None:
    """Check that a folder is writable: create it if missing, then write and remove a file.

    Args:
        make: False to check permissions only and leave the disk unchanged.

    Raises:
        UniWorldError: the folder is not writable; the message gives the reason and the fix.
    """
    try:
        if make:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"test")
            return
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not existing.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"'{existing}' is a file")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise unwritable(folder, error) from error


@contextlib.contextmanager
def open_output(folder: Path) -> Iterator[None]:
    """Create an output folder and check that it is writable; on exit, remove created folders that are still empty.

    Raises:
        UniWorldError: as for `check_writable`.
    """
    made: list[Path] = []
    try:
        with contextlib.suppress(OSError):
            place = folder.absolute()
            made = [path for path in (place, *place.parents) if not path.exists()]
        check_writable(folder)
        yield
    finally:
        with contextlib.suppress(OSError):  # not empty: it contains results
            for path in made:
                path.rmdir()


def unwritable(folder: Path, error: OSError) -> UniWorldError:
    """Return the error to raise when pictures cannot be written to an output folder."""
    # mkdir reports "File exists" if a file has the folder's name.
    reason = "it is a file" if isinstance(error, FileExistsError) else error.strerror or str(error)
    return UniWorldError(f"Pictures cannot be written to '{folder}': {reason}; free space or choose another --output.")


@contextlib.contextmanager
def preview_folder() -> Iterator[Path]:
    """Create a folder for the previews of one run, in the system's temporary folder.

    It is kept for a day, so that people and programs can open the pictures whose paths were printed.
    """
    for old in Path(tempfile.gettempdir()).glob(f"{_PREVIEWS}*"):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > _DAY:
                shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_PREVIEWS))
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):  # not empty: it contains previews
            folder.rmdir()
