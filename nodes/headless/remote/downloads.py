"""Downloading the results of a run, under the names that a local run would use."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from ....uniworld_core.errors import RunFailed, UniWorldError, shown
from ....uniworld_core.files import rename_new, temporary_file
from ..storage.folders import NewPicture, resolve_inside
from ..storage.output_folder import unwritable
from .client import ServerClient, ServerFailed, Unreachable

# Files of the server's input folder are downloaded as previews.
_KIND_HERE = {"input": "temp"}
MAX_FILES = 10_000  # of one run
KINDS = ("output", "temp", "input")
_COUNTED = re.compile(r"^(?P<stem>.+)_(?P<number>\d{1,9})_(?P<rest>.*)$", re.DOTALL)
_ATTEMPTS, _PAUSE = 4, 0.5  # of a download; the pause doubles


@dataclass(frozen=True)
class ResultFile:
    """A result file on a server."""

    name: str
    subfolder: str
    kind: str


def _read_file(entry: object) -> ResultFile | None:
    """Return the file that an entry of a node's output names; None for other entries, such as text."""
    if not isinstance(entry, dict) or not isinstance(entry.get("filename"), str) or not entry["filename"]:
        return None
    subfolder, kind = entry.get("subfolder") or "", entry.get("type") or "output"
    if not isinstance(subfolder, str) or kind not in KINDS:
        return None
    return ResultFile(entry["filename"], subfolder.replace("\\", "/").strip("/"), kind)


def result_files(outputs: Mapping[str, Mapping[str, Any]]) -> list[ResultFile]:
    """Return the files in the outputs of nodes: images, animations, video and audio, without duplicates, in order."""
    lists = (value for ui in outputs.values() for value in ui.values() if isinstance(value, list))
    found = (_read_file(entry) for entries in lists for entry in entries)
    return list(dict.fromkeys(file for file in found if file is not None))


async def download_all(
    client: ServerClient, outputs: dict[str, dict[str, Any]], places: Mapping[str, Path]
) -> dict[str, dict[str, Any]]:
    """Download the files of a run and return its outputs with the local file names.

    The files are named when all of them are complete. If one fails, none is kept.

    Args:
        places: the target folder for each kind of file. Other files are skipped and removed from the outputs.

    Raises:
        RunFailed: a file cannot be downloaded or written, or its name points outside its folder.
    """
    files = [file for file in result_files(outputs) if file.kind in places]
    if len(files) > MAX_FILES:
        raise RunFailed(f"{client.url} names {len(files)} files as results; at most {MAX_FILES} are downloaded.")
    with contextlib.ExitStack() as parts:
        targets = []
        for file in files:
            folder = _folder(file, places[file.kind], client)
            try:
                folder.mkdir(parents=True, exist_ok=True)
                part = parts.enter_context(temporary_file(folder))
                await _download(client, file, part)
            except OSError as error:
                raise RunFailed(str(unwritable(folder, error))) from error
            targets.append((file, folder, part))
        named = await asyncio.to_thread(lambda: {file: _name(*target) for target in targets for file in target[:1]})
    return {node: _renamed(ui, named) for node, ui in outputs.items()}


def _folder(file: ResultFile, base: Path, client: ServerClient) -> Path:
    """Return the target folder of a file. Raises RunFailed if its name points outside `base`."""
    whole = f"{file.subfolder}/{file.name}" if file.subfolder else file.name
    try:
        if PurePosixPath(file.name.replace("\\", "/")).name != file.name:
            raise UniWorldError(f"The file name {shown(file.name)} names a folder.")
        return resolve_inside(base, whole).parent
    except UniWorldError as error:
        raise RunFailed(f"A result of {client.url} is not downloaded: {error}") from error


async def _download(client: ServerClient, file: ResultFile, part: BinaryIO) -> None:
    pause = _PAUSE
    for attempt in range(_ATTEMPTS):
        try:
            return await client.download(file.name, file.subfolder, file.kind, part)
        except Unreachable:
            if attempt + 1 == _ATTEMPTS:
                raise
        except ServerFailed as error:
            raise RunFailed(f"The result {shown(file.name)} cannot be downloaded: {error}") from error
        await asyncio.sleep(pause)
        pause *= 2
    raise AssertionError("unreachable")


def _name(file: ResultFile, folder: Path, part: BinaryIO) -> str:
    """Rename a complete file to the next free name in its folder, and return the name."""
    for name in _names(file.name, folder):
        if rename_new(part, folder / name):
            return name
    raise AssertionError("unreachable")


def _names(name: str, folder: Path) -> Iterable[str]:
    counted = _COUNTED.match(name)
    if counted is not None:
        # Like SaveImage, continue the counter of the local folder; the server's folder has other files.
        numbered = NewPicture(folder, "", counted["stem"])
        while True:
            yield f"{counted['stem']}_{numbered.next_counter():05}_{counted['rest']}"
    yield name
    path, number = PurePosixPath(name), 2
    while True:
        yield f"{path.stem}_{number}{path.suffix}"
        number += 1


def _renamed(ui: dict[str, Any], named: Mapping[ResultFile, str]) -> dict[str, Any]:
    changed = {}
    for key, value in ui.items():
        if not isinstance(value, list):
            changed[key] = value
            continue
        entries = [(entry, _read_file(entry)) for entry in value]
        changed[key] = [
            entry
            if file is None
            else {
                **entry,
                "filename": named[file],
                "subfolder": file.subfolder,
                "type": _KIND_HERE.get(file.kind, file.kind),
            }
            for entry, file in entries
            if file is None or file in named
        ]
    return changed
