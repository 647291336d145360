"""The folder of previews: locked by one server at a time, and emptied when a server starts."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ....uniworld_core.errors import UniWorldError
from ....uniworld_core.files import LockHeld, acquire_lock
from .config import ServerConfig

_MARKER = ".made-by-uniworld-serve"  # in a temp folder that a server created, which it may therefore empty
_LOCK = ".uniworld-serve.lock"


def create_folder(folder: Path) -> None:
    """Create a folder if it does not exist. Raises UniWorldError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UniWorldError(
            f"The folder '{folder}' cannot be created: {error.strerror}. Choose another one."
        ) from error


def create_temp(folder: Path) -> None:
    """Create the folder of previews. Mark it as ours only if it did not exist before."""
    if not folder.exists():
        create_folder(folder)
        with contextlib.suppress(OSError):
            (folder / _MARKER).touch()
    create_folder(folder)


@contextlib.contextmanager
def locked_temp(config: ServerConfig) -> Iterator[None]:
    """Lock the folder of previews for this server, and remove the previews of earlier ones.

    Raises:
        UniWorldError: another server uses the folder.
    """
    held = _lock(config.temp)
    with held or contextlib.nullcontext():
        if held is not None:  # without a lock, another running server's previews might be removed
            empty_temp(config)
        yield


def _lock(folder: Path) -> BinaryIO | None:
    """Return the locked file; None if the folder cannot be locked (read-only, or on a file system without locks)."""
    busy = f"Another server uses '{folder}' for its previews. Choose another folder with --temp."
    try:
        return acquire_lock(folder / _LOCK, busy)
    except LockHeld:
        raise
    except (OSError, UniWorldError):
        return None


def empty_temp(config: ServerConfig) -> None:
    """Remove old previews, if a server created the folder and none of the other folders is inside it. Keep symlinks."""
    temp = config.temp.resolve()
    others = (config.input, config.output, config.user, config.models)
    if config.temp.is_symlink() or any(one.resolve().is_relative_to(temp) for one in others):
        return
    if not (temp / _MARKER).is_file():
        return
    for path in temp.iterdir():
        if path.name in (_MARKER, _LOCK) or path.is_symlink():
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()
