"""The results of a batch on disk: a file of JSON lines that only grows, and a folder of pictures for each row.

The first line says which workflow and which rows the file belongs to; every other one tells of one attempt at one row:

    {"id": "fox", "status": "started", "attempt": 1, ...}
    {"id": "fox", "status": "done", "attempt": 1, "outputs": {"pictures": [...], "texts": [...]}, "seconds": 8.1, ...}

A row has ended with "done" or "error". An attempt that was stopped is "interrupted", and one whose worker or program
died is "lost". An attempt writes its pictures into a folder of its own below `.running`. It ends when its line is on
disk: then, and not before, the folder gets the row's name. Whoever opens the file next does what a crash kept from being
done: gives folders of rows that are done their names, removes those of other attempts, and records these as lost. So a
row is recorded as done at most once, its pictures are those of the attempt that was recorded, and nothing recorded runs
again.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from ....uniworld_core.errors import RunFailed, UniWorldError
from ....uniworld_core.files import append_whole, hold, sync_folder, sync_tree
from ....uniworld_core.json_text import BadJson, loads
from .rows import BatchRow

STARTED, DONE, ERROR, INTERRUPTED, LOST = STATUSES = ("started", "done", "error", "interrupted", "lost")
HEADER, VERSION = "uniworld_batch", 1
RUNNING_FOLDER = ".running"
_LOST_BY_CRASH = "The program ended while the row ran."


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended: one of the statuses, what it gave, and a sentence when it was not done.

    Attributes:
        pictures: paths relative to the attempt's folder.
        warnings: what its nodes warned of.
    """

    status: str
    pictures: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    seconds: float = 0.0
    error: str | None = None
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Attempt:
    """An attempt at a row, and the folder that its pictures go to until it is recorded."""

    row: BatchRow
    number: int
    folder: Path


@dataclass
class _State:
    """What is recorded of a row. `lost` counts the attempts since it last came to an end that did not come to one."""

    status: str = ""
    attempts: int = 0
    lost: int = 0

    def follow(self, status: str) -> None:
        if self.status == DONE:
            return
        self.status = status
        if status == STARTED:
            self.attempts += 1
        elif status == LOST:
            self.lost += 1
        elif status in (DONE, ERROR):
            self.lost = 0


class Results:
    """The results file of one batch, held by one process at a time.

    Args:
        path: the file; made if it is not there.
        output: the folder below which the folder of the batch lies.
        name: how a new folder of the batch is called, with a number behind it if need be.

    Raises (on opening):
        UniWorldError: another process holds the file, it is no results file, it is damaged, or it belongs to another batch.
    """

    def __init__(
        self, path: Path, output: Path, name: str, rows: list[BatchRow], workflow_hash: str, rows_hash: str
    ) -> None:
        self.path, self._output = path, output
        self._rows = {row.id: row for row in rows}
        self._states = {row.id: _State() for row in rows}
        wanted = {HEADER: VERSION, "workflow": workflow_hash, "rows": rows_hash, "count": len(rows)}
        with contextlib.ExitStack() as opened:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                busy = f"Another batch is writing the results '{path}'. Wait for it, or name others."
                opened.enter_context(hold(_lock_file(path), busy))
                self._file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
            except OSError as error:
                raise UniWorldError(
                    f"The results '{path}' cannot be opened: {error.strerror}. Name other --results."
                ) from error
            opened.callback(os.close, self._file)
            lines, tail = self._read()
            header = self._parse_header(lines[0]) if lines else {**wanted, "folder": _new_folder(output, name)}
            self._check(header, wanted)
            # Only now is it sure to be ours to mend.
            self._mend(tail)
            if not lines:
                self._append(header)
                sync_folder(path.parent)
            self.folder = output / str(header["folder"])
            self._recover(self._parse_record(line, number) for number, line in enumerate(lines[1:], 2))
            self._opened = opened.pop_all()

    def __enter__(self) -> Results:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file. Rows that still run are recorded as interrupted, as far as the disk takes it."""
        try:
            with contextlib.suppress(OSError) if kind else contextlib.nullcontext():
                for row_id in self.with_status(STARTED):
                    self._tell(row_id, INTERRUPTED, error="The batch was stopped while the row ran.")
                    folder = self._running(self._rows[row_id], self._states[row_id].attempts)
                    shutil.rmtree(folder, ignore_errors=True)
                with contextlib.suppress(OSError):  # not empty: a folder in it waits to get its row's name
                    (self.folder / RUNNING_FOLDER).rmdir()
        finally:
            self._opened.close()

    # --- what is recorded ---------------------------------------------------------------------------------------------

    def with_status(self, *statuses: str) -> list[str]:
        """Ids of the rows of which this is the last that is recorded, in their order; "" for those never started."""
        return [row_id for row_id, state in self._states.items() if state.status in statuses]

    def lost(self, row: BatchRow) -> int:
        """How many attempts at a row have been lost since it last came to an end."""
        return self._states[row.id].lost

    def start(self, row: BatchRow) -> Attempt:
        """Record that an attempt at a row begins, and make the folder for its pictures."""
        number = self._states[row.id].attempts + 1
        attempt = Attempt(row, number, self._running(row, number))
        shutil.rmtree(attempt.folder, ignore_errors=True)
        attempt.folder.mkdir()
        self._tell(row.id, STARTED, number)
        return attempt

    def end(self, attempt: Attempt, outcome: Outcome) -> dict[str, object]:
        """Record how an attempt ended and, if it is done, give its folder the row's name; gives what was recorded."""
        row, target = attempt.row, self.folder / attempt.row.folder
        if outcome.status == DONE and target.exists():
            outcome = Outcome(ERROR, error=f"The folder '{target}' is there already. Move it away.")
        pictures: list[str] = []
        if outcome.status == DONE:
            sync_tree(attempt.folder)
            sync_folder(attempt.folder.parent)
            base = target.relative_to(self._output)
            pictures = [(base / picture).as_posix() for picture in outcome.pictures]
        told: dict[str, object] = {"seconds": outcome.seconds, "error": outcome.error}
        if outcome.warnings:
            told["warnings"] = outcome.warnings
        outputs = {"pictures": pictures, "texts": outcome.texts}
        record = self._tell(row.id, outcome.status, attempt.number, **told, outputs=outputs)
        self._settle(attempt.folder, target, keep=outcome.status == DONE)
        return record

    def give_up(self, row: BatchRow, sentence: str) -> dict[str, object]:
        """Record a row as failed without another attempt."""
        return self._tell(row.id, ERROR, error=sentence, outputs={"pictures": [], "texts": []})

    # --- the folders --------------------------------------------------------------------------------------------------

    def _running(self, row: BatchRow, attempt: int) -> Path:
        return self.folder / RUNNING_FOLDER / f"{row.folder}.{attempt}"

    def _settle(self, folder: Path, target: Path, keep: bool) -> None:
        """Give the folder of an attempt its final name, or remove it if it holds nothing to keep."""
        if keep and any(folder.iterdir()):
            folder.rename(target)
        else:
            shutil.rmtree(folder, ignore_errors=True)

    def _recover(self, records: Iterable[dict[str, Any]]) -> None:
        """Take in what is recorded, and finish what the last process could not."""
        (self.folder / RUNNING_FOLDER).mkdir(exist_ok=True)
        for record in records:
            row = self._rows[record["id"]]
            self._states[row.id].follow(record["status"])
            if record["status"] == DONE:
                folder, target = self._running(row, record["attempt"]), self.folder / row.folder
                if folder.is_dir() and not target.exists():
                    self._settle(folder, target, keep=True)
        for row_id in self.with_status(STARTED):
            self._tell(row_id, LOST, error=_LOST_BY_CRASH)
        for folder in (self.folder / RUNNING_FOLDER).iterdir():
            shutil.rmtree(folder, ignore_errors=True)

    # --- the file -----------------------------------------------------------------------------------------------------

    def _read(self) -> tuple[list[bytes], bytes]:
        """The lines of the file, and what stands behind the last end of line, which is a line too if it is whole."""
        with os.fdopen(os.dup(self._file), "rb") as file:
            data = file.read()
        whole, _, tail = data.rpartition(b"\n")
        lines = whole.split(b"\n") if whole else []
        if _parse(tail) is not None or (not lines and not _is_header_cut_short(tail)):
            lines.append(tail)
        return lines, tail

    def _mend(self, tail: bytes) -> None:
        """End the last line where only its end is missing, and cut it off where a crash cut it short."""
        size = os.lseek(self._file, 0, os.SEEK_END)
        if _parse(tail) is not None:
            os.write(self._file, b"\n")
        elif tail:
            os.ftruncate(self._file, size - len(tail))

    def _parse_header(self, line: bytes) -> dict[str, object]:
        header = _parse(line)
        if header is None or HEADER not in header:
            raise UniWorldError(f"'{self.path}' is no results file of a batch. Name other --results.")
        return header

    def _parse_record(self, line: bytes, number: int) -> dict[str, object]:
        record = _parse(line) or {}
        known = record.get("id") in self._rows and record.get("status") in STATUSES
        if not known or not isinstance(record.get("attempt"), int):
            raise UniWorldError(f"Line {number} of the results '{self.path}' is damaged. Take it out, or start anew.")
        return record

    def _check(self, header: dict[str, object], wanted: dict[str, object]) -> None:
        for key, what in ((HEADER, "version of this program"), ("workflow", "workflow"), ("rows", "set of rows")):
            if header.get(key) != wanted[key]:
                raise UniWorldError(
                    f"The results '{self.path}' are of another {what}. Name other --results to start anew, or run it "
                    "with what it was begun with."
                )
        folder = self._output / str(header.get("folder"))
        if not folder.is_dir():
            raise UniWorldError(
                f"The pictures of the results '{self.path}' should be in '{folder}', which is not there. Give the "
                "--output folder that it was begun with."
            )

    def _tell(self, row_id: str, status: str, attempt: int | None = None, **more: object) -> dict[str, object]:
        state = self._states[row_id]
        record = {"id": row_id, "status": status, "attempt": state.attempts if attempt is None else attempt, **more}
        self._append(record)
        state.follow(status)
        return record

    def _append(self, record: dict[str, object]) -> None:
        """Write a line, and return when it is on disk; after an error nothing of it is there."""
        data = json.dumps(record, allow_nan=False).encode() + b"\n"
        try:
            append_whole(self._file, data)
        except OSError as error:
            raise RunFailed(
                f"The results '{self.path}' cannot be written: {error.strerror}. Put that right and run the batch again: "
                "it continues after the rows that are done."
            ) from error


def _parse(line: bytes) -> dict[str, object] | None:
    try:
        record = loads(line)
    except BadJson:
        return None
    return record if isinstance(record, dict) else None


def _is_header_cut_short(tail: bytes) -> bool:
    start = f'{{"{HEADER}": '.encode()
    return tail.startswith(start) or start.startswith(tail) or not tail.strip(b"\0")


def _new_folder(output: Path, name: str) -> str:
    """Make a folder for a batch that no other batch has."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UniWorldError(
            f"The folder '{output}' cannot be made: {error.strerror}. Name another --output."
        ) from error
    number = 1
    while True:
        folder = name if number == 1 else f"{name}_{number}"
        try:
            (output / folder).mkdir()
        except FileExistsError:
            number += 1
            continue
        return folder


def _lock_file(path: Path) -> Path:
    """What is locked of a results file: itself, or a file beside it on Windows, where nobody reads a file that is locked."""
    path = path.resolve()
    return path.with_name(f"{path.name}.lock") if os.name == "nt" else path
