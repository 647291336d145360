"""The results file of a batch: append-only JSON Lines, locked by one process at a time.

The first line identifies the workflow and the rows. Every other line records an event of one attempt at one row:

    {"id": "fox", "status": "started", "attempt": 1, ...}
    {"id": "fox", "status": "done", "attempt": 1, "outputs": {"pictures": [...], "texts": [...]}, "seconds": 8.1, ...}

Every line is synced to disk. A last line that a crash truncated is removed when the file is opened again.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from ....uniworld_core.errors import RunFailed, UniWorldError
from ....uniworld_core.files import acquire_lock, append_atomic, lock_path
from ....uniworld_core.json_text import BadJson, loads

HEADER, VERSION = "uniworld_batch", 1


class ResultsFile:
    """The open file. Opening writes nothing, so that a file of another batch or of another kind stays as it is.

    Attributes:
        header: the first line; None if the file is new.

    Raises:
        UniWorldError: another process has locked the file, it cannot be opened, or it is not a results file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with contextlib.ExitStack() as opened:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                busy = f"Another batch is writing the results '{path}'. Wait for it, or choose other --results."
                opened.enter_context(acquire_lock(lock_path(path), busy))
                self._file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
            except OSError as error:
                raise UniWorldError(
                    f"The results '{path}' cannot be opened: {error.strerror}. Choose other --results."
                ) from error
            opened.callback(os.close, self._file)
            self._lines, self._tail = self._read()
            self.header = self._parse_header(self._lines[0]) if self._lines else None
            self._opened = opened.pop_all()

    def close(self) -> None:
        """Close the file and release its lock."""
        self._opened.close()

    def repair(self) -> None:
        """Complete the last line if only its newline is missing, and remove it if a crash truncated it."""
        size = os.lseek(self._file, 0, os.SEEK_END)
        if _parse(self._tail) is not None:
            os.write(self._file, b"\n")
        elif self._tail:
            os.ftruncate(self._file, size - len(self._tail))

    def records(self) -> Iterator[tuple[int, dict[str, object]]]:
        """Yield number and content of each line after the first that was there when the file was opened. {} is damaged."""
        for number, line in enumerate(self._lines[1:], 2):
            yield number, _parse(line) or {}

    def append(self, record: dict[str, object]) -> None:
        """Append a line and sync it to disk. Raises RunFailed if that fails, which leaves the file unchanged."""
        data = json.dumps(record, allow_nan=False).encode() + b"\n"
        try:
            append_atomic(self._file, data)
        except OSError as error:
            raise RunFailed(
                f"The results '{self.path}' cannot be written: {error.strerror}. Fix that and run the same command again; "
                "rows that are done do not run again."
            ) from error

    def _read(self) -> tuple[list[bytes], bytes]:
        """Return the lines of the file, and the bytes after the last newline; these count as a line if they parse."""
        with os.fdopen(os.dup(self._file), "rb") as file:
            data = file.read()
        terminated, _, tail = data.rpartition(b"\n")
        lines = terminated.split(b"\n") if terminated else []
        if _parse(tail) is not None or (not lines and not _is_truncated_header(tail)):
            lines.append(tail)
        return lines, tail

    def _parse_header(self, line: bytes) -> dict[str, object]:
        header = _parse(line)
        if header is None or HEADER not in header:
            raise UniWorldError(f"'{self.path}' is not a results file of a batch. Choose other --results.")
        return header


def _parse(line: bytes) -> dict[str, object] | None:
    try:
        record = loads(line)
    except BadJson:
        return None
    return record if isinstance(record, dict) else None


def _is_truncated_header(tail: bytes) -> bool:
    start = f'{{"{HEADER}": '.encode()
    return tail.startswith(start) or start.startswith(tail) or not tail.strip(b"\0")
