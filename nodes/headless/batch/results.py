"""The results of a batch on disk: a file of records, and a folder of pictures per row.

The file records the start and the outcome of every attempt at a row; `results_file.py` describes its format. "done" and
"error" are final. An attempt that was stopped is "interrupted"; one whose worker or program died is "lost"; one that a server
did not accept is "requeued". An attempt on a server is recorded with the id of its prompt before the prompt is sent. After a
crash, the server is asked for that id, so that no row runs twice.

An attempt writes its pictures to its own folder in `.running`. Its record is synced to disk first, and only then is the
folder renamed to the row's name. After a crash, opening the file finishes the job: folders of rows that are done are
renamed, and attempts without a final record are recorded as lost and their folders removed. A row is therefore recorded
as done at most once, with the pictures of the recorded attempt, and no recorded row runs again.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from ....uniworld_core.errors import UniWorldError
from ....uniworld_core.files import sync_folder, sync_tree
from .results_file import HEADER, VERSION, ResultsFile
from .rows import BatchRow

STATUSES = ("started", "done", "error", "interrupted", "lost", "requeued")
STARTED, DONE, ERROR, INTERRUPTED, LOST, REQUEUED = STATUSES
RUNNING_FOLDER = ".running"
_LOST_BY_CRASH = "The program died while the row ran."


@dataclass(frozen=True)
class Outcome:
    """Result of an attempt.

    Attributes:
        status: one of `STATUSES`.
        pictures: saved files, as paths relative to the attempt's folder.
        texts: texts that its nodes show.
        error: a sentence, if the status is not "done".
        warnings: warnings of its nodes.
    """

    status: str
    pictures: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    seconds: float = 0.0
    error: str | None = None
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class RemoteJob:
    """A prompt on a server, which runs an attempt."""

    server: str
    prompt_id: str


@dataclass(frozen=True)
class Attempt:
    """An attempt at a row, and the folder for its pictures until it is recorded.

    Attributes:
        job: the prompt on a server; None for an attempt in this program or on a cluster.
        resumed: whether an earlier program started it and died, so that the server may know its outcome.
    """

    row: BatchRow
    number: int
    folder: Path
    job: RemoteJob | None = None
    resumed: bool = False


@dataclass
class _State:
    """The recorded state of a row. `lost` counts the attempts that were lost since its last final record."""

    status: str = ""
    attempts: int = 0
    lost: int = 0
    job: RemoteJob | None = None

    def update(self, status: str, job: RemoteJob | None = None) -> None:
        if self.status == DONE:
            return
        self.status, self.job = status, job
        if status == STARTED:
            self.attempts += 1
        elif status == LOST:
            self.lost += 1
        elif status in (DONE, ERROR):
            self.lost = 0


class Results:
    """The results file of one batch, locked by one process at a time.

    Args:
        path: the file; created if missing.
        output: the folder that contains the folder of the batch.
        name: name of a new batch folder; a number is appended if it exists.
        workflow_hash: identifies the workflow, from `hash_json`.
        rows_hash: identifies the rows, from `hash_rows`.
        servers: URLs of the servers that can be asked for attempts that an earlier program started there.

    Raises:
        UniWorldError: another process has locked the file, or it is not a results file, is damaged, or belongs to another
            batch.
    """

    def __init__(
        self,
        path: Path,
        output: Path,
        name: str,
        rows: list[BatchRow],
        workflow_hash: str,
        rows_hash: str,
        servers: Collection[str] = (),
    ) -> None:
        self.path, self._output, self._servers = path, output, servers
        self._rows = {row.id: row for row in rows}
        self._states = {row.id: _State() for row in rows}
        wanted = {HEADER: VERSION, "workflow": workflow_hash, "rows": rows_hash, "count": len(rows)}
        self._file = ResultsFile(path)
        try:
            header = self._file.header or {**wanted, "folder": _new_folder(output, name)}
            self._check(header, wanted)
            # Nothing is written before the header has shown that the file is ours.
            self._file.repair()
            if self._file.header is None:
                self._file.append(header)
                sync_folder(path.parent)
            self.folder = output / str(header["folder"])
            self._recover(self._checked(number, record) for number, record in self._file.records())
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Results:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file and record running rows as interrupted; if an error is propagating, ignore a failing disk."""
        try:
            with contextlib.suppress(OSError) if kind else contextlib.nullcontext():
                for row_id in self.with_status(STARTED):
                    if self._states[row_id].job is not None:
                        continue  # the server may still run it; the next start asks
                    self._record(row_id, INTERRUPTED, error="The batch was stopped while the row ran.")
                    folder = self._attempt_folder(self._rows[row_id], self._states[row_id].attempts)
                    shutil.rmtree(folder, ignore_errors=True)
                with contextlib.suppress(OSError):  # not empty: a recorded attempt's folder has not been renamed yet
                    (self.folder / RUNNING_FOLDER).rmdir()
        finally:
            self._file.close()

    # --- records ------------------------------------------------------------------------------------------------------

    def with_status(self, *statuses: str) -> list[str]:
        """Return the ids of the rows whose last record has one of these statuses ("" for rows never started), in order."""
        return [row_id for row_id, state in self._states.items() if state.status in statuses]

    def lost_attempts(self, row: BatchRow) -> int:
        """Return the number of attempts at a row that were lost since its last final record."""
        return self._states[row.id].lost

    def start(self, row: BatchRow, job: RemoteJob | None = None) -> Attempt:
        """Record the start of an attempt at a row, and create the folder for its pictures.

        Args:
            job: the prompt that will run it. The record is synced to disk before this method returns.
        """
        number = self._states[row.id].attempts + 1
        attempt = Attempt(row, number, self._attempt_folder(row, number), job)
        _make_empty(attempt.folder)
        self._record(row.id, STARTED, number, **({} if job is None else asdict(job)))
        return attempt

    def attempts_on_servers(self) -> list[Attempt]:
        """Return the attempts that an earlier program started on servers and did not finish, with empty folders."""
        attempts = []
        for row_id in self.with_status(STARTED):
            row, state = self._rows[row_id], self._states[row_id]
            folder = self._attempt_folder(row, state.attempts)
            _make_empty(folder)
            attempts.append(Attempt(row, state.attempts, folder, state.job, resumed=True))
        return attempts

    def finish(self, attempt: Attempt, outcome: Outcome) -> dict[str, object]:
        """Record the outcome of an attempt, rename its folder to the row's name if it is done, and return the record."""
        row, target = attempt.row, self.folder / attempt.row.folder
        if outcome.status == DONE and target.exists():
            outcome = Outcome(ERROR, error=f"The folder '{target}' already exists. Move it away.")
        pictures: list[str] = []
        if outcome.status == DONE:
            sync_tree(attempt.folder)
            sync_folder(attempt.folder.parent)
            base = target.relative_to(self._output)
            pictures = [(base / picture).as_posix() for picture in outcome.pictures]
        details: dict[str, object] = {"seconds": outcome.seconds, "error": outcome.error}
        if outcome.warnings:
            details["warnings"] = outcome.warnings
        outputs = {"pictures": pictures, "texts": outcome.texts}
        record = self._record(row.id, outcome.status, attempt.number, **details, outputs=outputs)
        self._publish(attempt.folder, target, keep=outcome.status == DONE)
        return record

    def give_up(self, row: BatchRow, sentence: str) -> dict[str, object]:
        """Record a row as failed without another attempt."""
        return self._record(row.id, ERROR, error=sentence, outputs={"pictures": [], "texts": []})

    def _record(self, row_id: str, status: str, attempt: int | None = None, **more: object) -> dict[str, object]:
        state = self._states[row_id]
        record = {"id": row_id, "status": status, "attempt": state.attempts if attempt is None else attempt, **more}
        self._file.append(record)
        state.update(status, _job(record))
        return record

    # --- folders ------------------------------------------------------------------------------------------------------

    def _attempt_folder(self, row: BatchRow, attempt: int) -> Path:
        return self.folder / RUNNING_FOLDER / f"{row.folder}.{attempt}"

    def _publish(self, folder: Path, target: Path, keep: bool) -> None:
        """Rename the folder of an attempt to its final name; remove it if it is empty or not to be kept."""
        if keep and any(folder.iterdir()):
            folder.rename(target)
        else:
            shutil.rmtree(folder, ignore_errors=True)

    def _recover(self, records: Iterable[dict[str, Any]]) -> None:
        """Replay the records, and finish what a crash of the last process left undone."""
        (self.folder / RUNNING_FOLDER).mkdir(exist_ok=True)
        for record in records:
            row = self._rows[record["id"]]
            self._states[row.id].update(record["status"], _job(record))
            if record["status"] == DONE:
                folder, target = self._attempt_folder(row, record["attempt"]), self.folder / row.folder
                if folder.is_dir() and not target.exists():
                    self._publish(folder, target, keep=True)
        for row_id in self.with_status(STARTED):
            job = self._states[row_id].job
            if job is None or job.server not in self._servers:
                self._record(row_id, LOST, error=_LOST_BY_CRASH)
        for folder in (self.folder / RUNNING_FOLDER).iterdir():
            shutil.rmtree(folder, ignore_errors=True)

    # --- checks -------------------------------------------------------------------------------------------------------

    def _checked(self, number: int, record: dict[str, Any]) -> dict[str, Any]:
        row_id = record.get("id")
        known = isinstance(row_id, str) and row_id in self._rows and record.get("status") in STATUSES
        if not known or not isinstance(record.get("attempt"), int):
            raise UniWorldError(
                f"Line {number} of the results '{self.path}' is damaged. Remove it, or start again with other --results."
            )
        return record

    def _check(self, header: dict[str, object], wanted: dict[str, object]) -> None:
        for key, what in ((HEADER, "version of this program"), ("workflow", "workflow"), ("rows", "set of rows")):
            if header.get(key) != wanted[key]:
                raise UniWorldError(
                    f"The results '{self.path}' belong to another {what}. Choose other --results to start again, or "
                    f"continue with the {what} that they were started with."
                )
        folder = self._output / str(header.get("folder"))
        if not folder.is_dir():
            raise UniWorldError(
                f"The images for '{self.path}' should be in '{folder}', which does not exist. Pass "
                "the --output folder that the batch was started with."
            )


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def _job(record: dict[str, Any]) -> RemoteJob | None:
    server, prompt_id = record.get("server"), record.get("prompt_id")
    return RemoteJob(server, prompt_id) if isinstance(server, str) and isinstance(prompt_id, str) else None


def _new_folder(output: Path, name: str) -> str:
    """Create a folder for a batch, with a number appended if the name is taken, and return its name."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UniWorldError(
            f"The folder '{output}' cannot be created: {error.strerror}. Choose another --output."
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
