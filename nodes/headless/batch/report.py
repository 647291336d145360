"""Progress reports of a batch: a progress bar and a sentence per failure, or one line of JSON per event."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, TextIO

from ....streams import progress_bar, say
from ..run.report import JsonRunReport
from .results import DONE, ERROR, LOST, REQUEUED, Attempt


class BatchReport:
    """Show a progress bar of the rows and failures on standard error; print the results path to standard output."""

    def __init__(self, out: TextIO, results: Path) -> None:
        self._out, self._results = out, results
        self._bar: Any = None
        self._failed = 0

    def start(self, total: int, done: int) -> None:
        self._bar = progress_bar(total=total, initial=done, unit="row", file=sys.stderr, dynamic_ncols=True)

    def row_started(self, attempt: Attempt) -> None:
        self._bar.set_postfix_str(attempt.row.id)

    def progress(self, row_id: str, data: dict[str, object]) -> None:
        self._bar.set_postfix_str(f"{row_id} {data['value']}/{data['max']}")

    def row_finished(self, record: dict[str, Any]) -> None:
        if record["status"] in (DONE, ERROR):
            self._bar.update(1)
        if record["status"] in (ERROR, LOST, REQUEUED):
            again = "" if record["status"] == ERROR else " The row will run again."
            self._bar.write(f"Row {record['id']}: {record['error']}{again}", file=sys.stderr)
        for warning in record.get("warnings", ()):
            self._bar.write(f"Row {record['id']}: warning: {warning}", file=sys.stderr)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def result(self, counts: dict[str, int], sentence: str) -> None:
        say(sentence)
        print(self._results, file=self._out)


class JsonBatchReport:
    """Print one JSON object per line, `{"event": ..., ...}`: "row" has the record of a row, "result" comes last."""

    def __init__(self, out: TextIO, results: Path) -> None:
        self._report, self._results = JsonRunReport(out), results

    def start(self, total: int, done: int) -> None:
        self._report.line("batch", rows=total, done=done, results=str(self._results))

    def row_started(self, attempt: Attempt) -> None:
        where = {} if attempt.job is None else {"server": attempt.job.server}
        self._report.line("started", id=attempt.row.id, attempt=attempt.number, **where)

    def progress(self, row_id: str, data: dict[str, object]) -> None:
        self._report.line("progress", id=row_id, node=data["node"], value=data["value"], max=data["max"])

    def row_finished(self, record: dict[str, object]) -> None:
        self._report.line("row", **record)

    def close(self) -> None:
        pass

    def result(self, counts: dict[str, int], sentence: str) -> None:
        self._report.line("result", message=sentence, results=str(self._results), **counts)
