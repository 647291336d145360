"""The folder that results go to: whether it takes them, and what to say if not; and one for previews."""

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
    """Check that files can be written into a folder: it is made if need be, and a file is written and removed.

    Args:
        make: False to leave the disk as it is, and to look at permissions only.

    Raises:
        UniWorldError: they cannot; the sentence says why and what mends it.
    """
    try:
        if make:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"test")
            return
        present = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not present.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"'{present}' is a file")
        if not os.access(present, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise unwritable(folder, error) from error


@contextlib.contextmanager
def open_output(folder: Path) -> Iterator[None]:
    """Make an output folder and check that it can be written to; what was made is removed if nothing came into it.

    Raises:
        UniWorldError: as `check_writable`.
    """
    made: list[Path] = []
    try:
        with contextlib.suppress(OSError):
            place = folder.absolute()
            made = [path for path in (place, *place.parents) if not path.exists()]
        check_writable(folder)
        yield
    finally:
        with contextlib.suppress(OSError):  # results are in it
            for path in made:
                path.rmdir()


def unwritable(folder: Path, error: OSError) -> UniWorldError:
    """What to say when pictures cannot be written to an output folder."""
    # "File exists" is what the system says when a folder is to be made where a file is.
    reason = "a file stands in its place" if isinstance(error, FileExistsError) else error.strerror or str(error)
    return UniWorldError(f"Pictures cannot be written to '{folder}': {reason}; free space or choose another --output.")


@contextlib.contextmanager
def preview_folder() -> Iterator[Path]:
    """A folder of a run's own for what it only previews, in the system's temporary folder.

    It stays for a day, so that people and programs that are told of the pictures can look at them.
    """
    for old in Path(tempfile.gettempdir()).glob(f"{_PREVIEWS}*"):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > _DAY:
                shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_PREVIEWS))
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):  # it holds pictures
            folder.rmdir()
