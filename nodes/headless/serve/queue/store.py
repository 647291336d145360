"""Persistent queue and history: waiting, running and finished prompts survive a restart, a crash and a SIGKILL.

One SQLite file in write-ahead mode, locked by one process at a time. A prompt is stored when it is accepted, and marked as
running before its first node runs, so that it cannot run twice. JSON is stored as the text that clients receive.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .....uniworld_core.errors import UniWorldError
from .....uniworld_core.files import check_locks
from .....uniworld_core.json_text import dumps

SCHEMA = """
CREATE TABLE IF NOT EXISTS prompts (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, number REAL NOT NULL, state TEXT NOT NULL,
    client TEXT, workflow TEXT, prompt TEXT NOT NULL, extra TEXT NOT NULL, outputs_to_run TEXT NOT NULL,
    created INTEGER NOT NULL, started INTEGER, ended INTEGER, done_order INTEGER,
    ui TEXT, messages TEXT, error TEXT, ui_count INTEGER, ui_shown INTEGER, preview TEXT);
CREATE INDEX IF NOT EXISTS prompts_waiting ON prompts (number, seq) WHERE state = 'pending';
CREATE INDEX IF NOT EXISTS prompts_active ON prompts (state) WHERE state IN ('pending', 'running');
CREATE INDEX IF NOT EXISTS prompts_done ON prompts (done_order) WHERE done_order IS NOT NULL;
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
INSERT OR IGNORE INTO counters VALUES ('number', 0);
"""
_JOURNAL_BYTES = 16 * 1024 * 1024  # size to which the write-ahead log is truncated after a large transaction
PENDING, RUNNING, SUCCESS, ERROR, INTERRUPTED = "pending", "running", "success", "error", "interrupted"


@dataclass(frozen=True)
class QueuedPrompt:
    """An accepted prompt. The one with the lowest `number` runs first."""

    id: str
    number: float
    prompt: dict[str, Any]
    extra: dict[str, Any]
    outputs: list[str]

    @property
    def client(self) -> str | None:
        return self.extra.get("client_id")


@dataclass(frozen=True)
class PromptResult:
    """The result of a finished prompt.

    Attributes:
        state: one of SUCCESS, ERROR, INTERRUPTED.
        ui: the nodes' UI outputs by node id.
        messages: [event, data] pairs, as in ComfyUI's history.
        error: the data of the execution_error message, if there was one.
    """

    state: str
    ui: dict[str, Any]
    messages: list[list[Any]]
    error: dict[str, object] | None = None


class Store:
    """The prompts of one server. All methods are thread-safe.

    Raises:
        UniWorldError: on opening, if another server uses the file or it cannot be written.
    """

    def __init__(self, path: Path, history_limit: int) -> None:
        self._lock = threading.RLock()
        self._limit = history_limit
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=0.5)
            self._db.row_factory = sqlite3.Row
            # A second server must not mark our running prompts as interrupted. The system releases this lock when the
            # process exits or dies.
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            # Lets `_reclaim_space` return deleted pages to the disk. SQLite applies it only to files that are still empty.
            self._db.execute("PRAGMA auto_vacuum = INCREMENTAL")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute(f"PRAGMA journal_size_limit = {_JOURNAL_BYTES}")
            # Safe if the process dies; only a power failure may lose the last transactions.
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.executescript(f"BEGIN IMMEDIATE; {SCHEMA} COMMIT;")
        except sqlite3.OperationalError as error:
            reason = str(error)
            if "locked" in reason:  # SQLite reports the same for file systems that do not support locks
                check_locks(path.parent)
                reason = "another server is using it"
            raise UniWorldError(
                f"The queue '{path}' cannot be opened: {reason}. Choose another --user folder."
            ) from error
        except (OSError, sqlite3.DatabaseError) as error:
            raise UniWorldError(
                f"The queue '{path}' cannot be opened: {error}. Move it away, or choose another --user folder."
            ) from error
        self._recount()

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _all(self, sql: str, *values: object) -> list[sqlite3.Row]:
        with self._lock:
            return self._db.execute(sql, _storable(values)).fetchall()

    def _one(self, sql: str, *values: object) -> sqlite3.Row | None:
        with self._lock:
            return self._db.execute(sql, _storable(values)).fetchone()

    def _change(self, sql: str, *values: object) -> int:
        with self._lock:
            changed = self._db.execute(sql, _storable(values)).rowcount
            self._recount()
            return changed

    def _recount(self) -> None:
        """Count the rows. The three changes that every prompt goes through keep these numbers without counting."""
        rows = self._db.execute(
            "SELECT state, COUNT(*) FROM prompts WHERE state IN ('pending', 'running') GROUP BY state"
        )
        self._counts = {PENDING: 0, RUNNING: 0, **{row[0]: row[1] for row in rows}}
        done = "SELECT COUNT(*), COALESCE(MAX(done_order), 0) FROM prompts WHERE done_order IS NOT NULL"
        self._done, self._last_done = self._db.execute(done).fetchone()

    def _next_number(self) -> int:
        (value,) = self._db.execute("SELECT value FROM counters WHERE name = 'number'").fetchone()
        self._db.execute("UPDATE counters SET value = value + 1 WHERE name = 'number'")
        return int(value)

    # --- waiting and running -----------------------------------------------------------------------------------------

    def put(
        self,
        prompt_id: str,
        prompt: dict[str, object],
        extra: dict[str, object],
        outputs: list[str],
        *,
        number: float | None = None,
        front: bool = False,
    ) -> float | None:
        """Add a prompt and return its number; None if the id already exists."""
        with self._lock:
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                if self._db.execute("SELECT 1 FROM prompts WHERE id = ?", (prompt_id,)).fetchone():
                    return None
                if number is None:
                    number = self._next_number() * (-1 if front else 1)
                self._db.execute(
                    "INSERT INTO prompts (id, number, state, client, workflow, prompt, extra, outputs_to_run, created)"
                    " VALUES (?, ?, 'pending', ?, ?, ?, ?, ?, ?)",
                    (prompt_id, number, *_storable((extra.get("client_id"), _workflow_id(extra))), dumps(prompt),
                     dumps(extra), dumps(outputs), _now()),
                )  # fmt: skip
            self._counts[PENDING] += 1  # after the commit, which is what fails on a full disk
            return number

    def claim_next(self) -> QueuedPrompt | None:
        """Mark the next prompt as running and return it; None if none is waiting."""
        with self._lock:
            row = self._one("SELECT * FROM prompts WHERE state = 'pending' ORDER BY number, seq LIMIT 1")
            if row is None:
                return None
            self._db.execute("UPDATE prompts SET state = 'running', started = ? WHERE seq = ?", (_now(), row["seq"]))
            self._counts[PENDING] -= 1
            self._counts[RUNNING] += 1
        return QueuedPrompt(
            row["id"], row["number"], *(json.loads(row[key]) for key in ("prompt", "extra", "outputs_to_run"))
        )

    def finish(self, prompt_id: str, result: PromptResult) -> None:
        """Store the result of a running prompt, and delete the oldest history beyond the limit."""
        count, shown, preview = output_summary(result.ui)
        with self._lock:
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                finished = self._db.execute(
                    "UPDATE prompts SET state = ?, ended = ?, done_order = ?, ui = ?, messages = ?, error = ?, ui_count = ?,"
                    " ui_shown = ?, preview = ? WHERE id = ? AND state = 'running'",
                    (result.state, _now(), self._last_done + 1, dumps(result.ui), dumps(result.messages),
                     None if result.error is None else dumps(result.error), count, shown,
                     None if preview is None else dumps(preview), prompt_id),
                ).rowcount  # fmt: skip
                excess = max(0, self._done + finished - self._limit)
                if excess:
                    self._db.execute(
                        "DELETE FROM prompts WHERE seq IN (SELECT seq FROM prompts WHERE done_order IS NOT NULL"
                        " ORDER BY done_order LIMIT ?)",
                        (excess,),
                    )
            self._counts[RUNNING] -= finished
            self._done += finished - excess
            self._last_done += finished

    def mark_interrupted(self, sentence: str) -> int:
        """Mark prompts that were running when the last server died as interrupted, and return their number.

        They are not run again: if one of them crashed the server, it would do so at every start.
        """
        rows = self._all("SELECT id, started FROM prompts WHERE state = 'running'")
        for row in rows:
            about = {"prompt_id": row["id"], "node_id": "", "node_type": "", "executed": [], "message": sentence}
            start = ["execution_start", {"prompt_id": row["id"], "timestamp": row["started"]}]
            self.finish(
                row["id"],
                PromptResult(INTERRUPTED, {}, [start, ["execution_interrupted", {**about, "timestamp": _now()}]]),
            )
        return len(rows)

    @property
    def remaining(self) -> int:
        return self._counts[PENDING] + self._counts[RUNNING]

    @property
    def waiting(self) -> int:
        return self._counts[PENDING]

    def active(self) -> tuple[list[sqlite3.Row], list[sqlite3.Row]]:
        """Return the running and the waiting prompts, in execution order."""
        rows = self._all("SELECT * FROM prompts WHERE state IN ('pending', 'running') ORDER BY number, seq")
        return [row for row in rows if row["state"] == RUNNING], [row for row in rows if row["state"] == PENDING]

    def delete_waiting(self, ids: Iterable[str] | None = None) -> list[str]:
        """Remove prompts from the queue, all if `ids` is None. Returns the ids of those that were waiting."""
        with self._lock:
            if ids is None:
                ids = [row["id"] for row in self._all("SELECT id FROM prompts WHERE state = 'pending'")]
            return [one for one in ids if self._change("DELETE FROM prompts WHERE id = ? AND state = 'pending'", one)]

    # --- done --------------------------------------------------------------------------------------------------------

    def row(self, prompt_id: str) -> sqlite3.Row | None:
        return self._one("SELECT * FROM prompts WHERE id = ?", prompt_id)

    def done(self, max_items: int | None = None, offset: int = -1) -> list[sqlite3.Row]:
        """Return finished prompts, oldest first. `max_items` without an offset selects the newest ones."""
        known = "FROM prompts WHERE done_order IS NOT NULL ORDER BY done_order"
        if max_items is not None and offset < 0:
            return self._all(f"SELECT * {known} DESC LIMIT ?", max(max_items, 0))[::-1]
        return self._all(f"SELECT * {known} LIMIT ? OFFSET ?", -1 if max_items is None else max_items, max(offset, 0))

    def delete_history(self, ids: Iterable[str] | None = None) -> None:
        """Remove prompts from the history, all if `ids` is None."""
        if ids is None:
            self._change("DELETE FROM prompts WHERE done_order IS NOT NULL")
            self._reclaim_space()
            return
        for one in ids:
            self._change("DELETE FROM prompts WHERE id = ? AND done_order IS NOT NULL", one)

    def _reclaim_space(self) -> None:
        """Return the space of deleted rows to the disk."""
        with self._lock, contextlib.suppress(sqlite3.Error):  # not essential: new rows would reuse the space
            # As a script, because `execute` frees only one page: the statement frees one per step and returns no rows.
            self._db.executescript("PRAGMA incremental_vacuum; PRAGMA wal_checkpoint(TRUNCATE);")

    def jobs(
        self, states: list[str], workflow: str | None, order: str, limit: int, offset: int
    ) -> tuple[list[Any], int]:
        """Return a page of prompts in these states, without their graphs, and the total number."""
        marks = ", ".join("?" * len(states))
        where = f"WHERE state IN ({marks}) AND (? IS NULL OR workflow = ?)"
        total = self._one(f"SELECT COUNT(*) FROM prompts {where}", *states, workflow, workflow)
        columns = "id, number, state, workflow, created, started, ended, error, ui_count, ui_shown, preview"
        rows = self._all(
            f"SELECT {columns} FROM prompts {where} ORDER BY {order} LIMIT ? OFFSET ?",
            *states, workflow, workflow, limit, offset,
        )  # fmt: skip
        return rows, total[0] if total is not None else 0


def _storable(values: Iterable[object]) -> list[object]:
    # JSON can contain unpaired surrogates, which cannot be encoded as UTF-8.
    return [one.encode(errors="backslashreplace").decode() if isinstance(one, str) else one for one in values]


def _now() -> int:
    return int(time.time() * 1000)


def _workflow_id(extra: dict[str, object]) -> str | None:
    pnginfo = extra.get("extra_pnginfo")
    graph = pnginfo.get("workflow") if isinstance(pnginfo, dict) else None
    found = graph.get("id") if isinstance(graph, dict) else None
    return found if isinstance(found, str) else None


def output_summary(ui: dict[str, Any]) -> tuple[int, int, dict[str, Any] | None]:
    """Summarize the nodes' UI outputs.

    Returns:
        The number of files, the number of pictures among them, and the output to show: a saved picture, else a preview,
        else a text.
    """
    files = [
        (node, kind, item)
        for node, parts in ui.items()
        for kind, items in parts.items()
        if isinstance(items, (list, tuple))
        for item in items
        if isinstance(item, dict) and "filename" in item
    ]
    shown = [{**item, "nodeId": node, "mediaType": kind} for node, kind, item in files if kind == "images"]
    best = next((item for item in shown if item.get("type") == "output"), shown[0] if shown else None)
    if best is None:
        best = next(
            ({"content": str(text)[:1024], "nodeId": node, "mediaType": "text"}
             for node, parts in ui.items() for text in parts.get("text", ())), None
        )  # fmt: skip
    return len(files), len(shown), best
