"""The records of the batches that make the pictures of a run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from ....uniworld_core.errors import UniWorldError
from ....uniworld_core.files import acquire_lock, lock_path
from ....uniworld_core.json_text import BadJson, loads


def read_records(files: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Return the last record of each row; that of a finished one stays."""
    found: dict[str, dict[str, Any]] = {}
    for file in files:
        for line in file.read_bytes().split(b"\n")[1:] if file.is_file() else ():
            try:
                record = loads(line) if line.strip() else None
            except BadJson:  # a line that a crash has truncated
                continue
            if isinstance(record, dict) and isinstance(record.get("id"), str):
                done = found.get(record["id"], {}).get("status") == "done"
                if not done:
                    found[record["id"]] = record
    return found


def record_problem(record: dict[str, Any]) -> str | None:
    """Return why a row has no picture for the benchmark; None if it has one."""
    if record["status"] != "done":
        return str(record.get("error") or "the row has not finished")
    count = len(record["outputs"]["pictures"])
    return None if count == 1 else f"the workflow saved {count} pictures; a benchmark needs exactly one"


def clear_records(files: Iterable[Path], output: Path) -> None:
    """Forget batches that have made nothing, with their folders.

    The files of records are emptied rather than removed, because they are what processes lock.

    Raises:
        UniWorldError: another process is writing one of them.
    """
    for file in files:
        with unused(file):
            os.truncate(file, 0)
    try:
        if output.is_dir():
            shutil.rmtree(output)
    except OSError as error:
        raise UniWorldError(f"'{output}' cannot be removed: {error.strerror}. Choose another --out.") from error


def unused(file: Path) -> BinaryIO:
    """Lock a file of a run. Raises UniWorldError if another process is writing it."""
    return acquire_lock(lock_path(file), f"Another process is writing '{file}'. Wait for it, or choose another --out.")
