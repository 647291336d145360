"""The working folder of a conversion: files are written one by one, survive interruptions, and are published together."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...uniworld_core.errors import UniWorldError
from ...uniworld_core.files import acquire_lock, sha256_file, sync_folder, sync_tree, write_atomic
from ...uniworld_core.json_text import loads
from .tensor_file import TensorFile

_SAMPLE = 2**20  # bytes at either end of a file that its fingerprint covers
_GIB, _MIB = 2**30, 2**20
_STATE = "state.json"
_WEIGHTS = {".safetensors", ".bin", ".ckpt", ".pt"}


def fingerprint(folder: Path) -> str:
    """Return a SHA-256 that identifies a model folder, of its files' names, sizes, and first and last MiB.

    The first MiB of a safetensors file contains the names and shapes of its tensors. Hashing all 82 GB would take as long
    as the conversion.
    """
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as opened:
            digest.update(opened.read(_SAMPLE))
            opened.seek(max(0, size - _SAMPLE))
            digest.update(opened.read())
    return digest.hexdigest()


def _stamp(folders: Iterable[Path]) -> str:
    """Return a SHA-256 that changes when weights in the folders are written.

    A fingerprint does not see that training changed values in the middle of a shard. It is the one in the record, because
    copies of a folder have other times.
    """
    digest = hashlib.sha256()
    for file in (path for folder in folders for path in sorted(folder.iterdir()) if path.suffix in _WEIGHTS):
        status = file.stat()
        digest.update(f"{file.name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class ConvertedFiles:
    """The output of a conversion.

    Attributes:
        tensors: {path relative to the target: file of tensors}.
        rest: writes everything else into a folder: configuration and tokenizer files.
        about: entries of the record besides the files.
        record: name of the record, a JSON file in the target.
        sources: the folders that are read.
    """

    tensors: Mapping[str, TensorFile]
    rest: Callable[[Path], None]
    about: Mapping[str, Any]
    record: str
    sources: Sequence[Path] = ()


def publish(
    output: ConvertedFiles,
    target: Path,
    into_existing: bool,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write all files of a conversion, or resume an interrupted one; the files appear together at the end.

    Everything is first written to a temporary folder, in `target` or next to it. An interruption keeps it, and the next call
    with the same source and settings resumes from it. An error removes it.

    Args:
        output: the files.
        target: the folder to create; with `into_existing` it may exist, such as ComfyUI's models folder.
        into_existing: add the files to `target` instead of creating it.
        progress: called with the number of written tensors and their total.

    Raises:
        UniWorldError: `target` or a file in it already exists, another process writes to it, there is not enough disk space,
            the target cannot be written, or a source was written meanwhile.
    """
    stamp = _stamp(output.sources)
    names = [*output.tensors, output.record]
    work = target / ".uniworld-convert" if into_existing else target.with_name(f".{target.name}.uniworld-convert")
    moved = _moved(work, output, target, stamp) if into_existing else set()
    taken = [target / name for name in names if name not in moved] if into_existing else [target]
    for path in taken:
        if path.exists() or path.is_symlink():
            raise UniWorldError(f"{path} already exists and is not overwritten: choose another target, or move it.")
    created = [folder for folder in work.parents if not folder.exists()]
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UniWorldError(f"{work} cannot be created ({error}): choose another target.") from error
    with acquire_lock(work / "lock", f"Another process is converting to {target}: wait for it."):
        try:
            if not moved:
                _fill(work, output, target, stamp, progress)
            _move(work, [name for name in names if name not in moved], target, into_existing)
        except (UniWorldError, OSError) as error:
            if not _moving(work):  # otherwise the finished files wait for the next call
                shutil.rmtree(work, ignore_errors=True)
                with suppress(OSError):  # not empty
                    for folder in created:
                        folder.rmdir()
            if isinstance(error, UniWorldError):
                raise
            if work.exists():
                raise UniWorldError(f"{target} cannot be written ({error}): run the same command again.") from error
            raise UniWorldError(
                f"{target} cannot be written ({error}); the partial output was removed. Free disk space, or choose another "
                "folder."
            ) from error


def _fill(work: Path, output: ConvertedFiles, target: Path, stamp: str, progress: Callable[[int, int], None]) -> None:
    state_file = work / _STATE
    state = _read_state(state_file, output, stamp)
    if state is None:
        _clear(work)
        state = {"about": dict(output.about), "stamp": stamp, "names": list(output.tensors), "files": {}}
        write_atomic(state_file, json.dumps(state).encode())
    finished: dict[str, Any] = state["files"]
    missing = sum(file.size for name, file in output.tensors.items() if name not in finished)
    written = sum(path.stat().st_size for path in work.rglob("*.part"))
    free = shutil.disk_usage(work).free
    if missing - written > free:
        raise UniWorldError(
            f"{target} needs {_size(missing - written)}, but only {_size(free)} are free: free disk space, or choose another "
            "folder."
        )
    total = sum(len(file.entries) for file in output.tensors.values())
    done = 0
    for name, tensors in output.tensors.items():
        start = done

        def step() -> None:
            nonlocal done
            done += 1
            progress(done, total)

        if name not in finished:
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            checksum = tensors.write(work / name, step)
            finished[name] = {"bytes": (work / name).stat().st_size, "sha256": checksum}
            write_atomic(state_file, json.dumps(state).encode())
        done = start + len(tensors.entries)
        progress(done, total)
    output.rest(work)
    if _stamp(output.sources) != stamp:
        raise UniWorldError(
            f"The weights of the source were written while they were converted, so {target} would mix two versions: run the "
            "same command again when the source is complete."
        )
    kept = (work / "lock", work / _STATE, work / output.record)  # the record is there if moving was interrupted
    others = sorted(path for path in work.rglob("*") if path.is_file() and path not in kept)
    files = {
        path.relative_to(work).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in others
        if path.relative_to(work).as_posix() not in finished
    }
    record = {**output.about, "files": dict(sorted((finished | files).items()))}
    write_atomic(work / output.record, (json.dumps(record, indent=2) + "\n").encode())


def _move(work: Path, names: list[str], target: Path, into_existing: bool) -> None:
    sync_tree(work)
    if into_existing:
        state = _read_json(work / _STATE) or {}
        write_atomic(work / _STATE, json.dumps(state | {"moving": True}).encode())
        for name in names:  # the record last
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (work / name).replace(target / name)
            sync_folder((target / name).parent)
        shutil.rmtree(work)
        return
    for name in ("lock", _STATE):
        with suppress(OSError):  # an open lock file cannot be removed on Windows
            (work / name).unlink()
    work.rename(target)
    sync_folder(target.parent)


def _size(count: int) -> str:
    return f"{count / _GIB:.1f} GiB" if count >= _GIB / 10 else f"{count / _MIB:.1f} MiB"


def _read_json(file: Path) -> dict[str, Any] | None:
    try:
        state = loads(file.read_bytes())
    except (OSError, UniWorldError, ValueError):
        return None
    return state if isinstance(state, dict) else None


def _moving(work: Path) -> bool:
    """Return whether an interrupted conversion has written everything, and was moving its files into the target."""
    return (_read_json(work / _STATE) or {}).get("moving") is True


def _moved(work: Path, output: ConvertedFiles, target: Path, stamp: str) -> set[str]:
    """Return the files that an interrupted conversion of the same source and settings has already moved into the target.

    The set is empty unless every file is either there or waits in `work`, with the size that it was written with.
    """
    state = _read_json(work / _STATE) or {}
    if not _moving(work) or (state.get("about"), state.get("stamp")) != (dict(output.about), stamp):
        return set()
    moved = {name for name in (*output.tensors, output.record) if not (work / name).exists()}
    try:
        sizes = {name: int(state["files"][name]["bytes"]) for name in output.tensors}
        places = {name: (target if name in moved else work) / name for name in (*sizes, output.record)}
        intact = all(places[name].stat().st_size == size for name, size in sizes.items())
        return moved if intact and places[output.record].is_file() else set()
    except (OSError, KeyError, TypeError, ValueError):
        return set()


def _read_state(file: Path, output: ConvertedFiles, stamp: str) -> dict[str, Any] | None:
    """Return the state of an interrupted conversion, or None unless source, settings, file names and file sizes match."""
    same = {"about": dict(output.about), "stamp": stamp, "names": list(output.tensors)}
    try:
        state: dict[str, Any] = loads(file.read_bytes())
        files = {name: dict(entry) for name, entry in state["files"].items()}
        intact = {name for name, entry in files.items() if (file.parent / name).stat().st_size == entry["bytes"]}
    except (OSError, UniWorldError, KeyError, TypeError, AttributeError, ValueError):
        return None
    matches = all(state.get(key) == value for key, value in same.items()) and intact == files.keys()
    return same | {"files": files} if matches else None


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "lock":
            path.unlink()
