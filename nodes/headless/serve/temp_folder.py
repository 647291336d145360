"""The folder of previews: held by one server at a time, and emptied when one starts."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ....uniworld_core.errors import UniWorldError
from ....uniworld_core.files import LockHeld, acquire_lock
from .config import ServerConfig

_OURS = ".made-by-uniworld-serve"  # in a temp folder that held nobody's files before
_LOCK = ".uniworld-serve.lock"


def make_folder(folder: Path) -> None:
    """Make a folder. Raises UniWorldError if it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UniWorldError(f"The folder '{folder}' cannot be made: {error.strerror}. Choose another.") from error


def make_temp(folder: Path) -> None:
    """Make the folder of previews, marked as ours if it was not there before."""
    if not folder.exists():
        make_folder(folder)
        with contextlib.suppress(OSError):
            (folder / _OURS).touch()
    make_folder(folder)


@contextlib.contextmanager
def held_temp(config: ServerConfig) -> Iterator[None]:
    """Hold the folder of previews for this server, emptied of those of earlier ones.

    Raises:
        UniWorldError: another server holds it.
    """
    held = _lock(config.temp)
    with held or contextlib.nullcontext():
        if held is not None:  # else another server's previews may be among them
            empty_temp(config)
        yield


def _lock(folder: Path) -> BinaryIO | None:
    """The open file that holds the folder; None where it cannot be locked: it is read-only, or on a disk without locks."""
    busy = f"Another server keeps its previews in '{folder}'. Choose another folder with --temp."
    try:
        return acquire_lock(folder / _LOCK, busy)
    except LockHeld:
        raise
    except (OSError, UniWorldError):
        return None


def empty_temp(config: ServerConfig) -> None:
    """Remove old previews, if a server made the folder and no other folder of this one is inside it. Links stay."""
    temp = config.temp.resolve()
    others = (config.input, config.output, config.user, config.models)
    if config.temp.is_symlink() or any(one.resolve().is_relative_to(temp) for one in others):
        return
    if not (temp / _OURS).is_file():
        return
    for path in temp.iterdir():
        if path.name in (_OURS, _LOCK) or path.is_symlink():
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()
