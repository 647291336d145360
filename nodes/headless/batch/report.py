"""What a batch tells on the way: a bar of rows and a sentence per failure for people, or a line of JSON per event."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, TextIO

from ....streams import progress_bar, say
from ..run.report import JsonRunReport
from .results import DONE, ERROR, LOST, Attempt


class BatchReport:
    """A bar of all rows and sentences on standard error; the path of the results on standard output."""

    def __init__(self, out: TextIO, results: Path) -> None:
        self._out, self._results = out, results
        self._bar: Any = None
        self._failed = 0

    def begin(self, total: int, done: int) -> None:
        self._bar = progress_bar(total=total, initial=done, unit="row", file=sys.stderr, dynamic_ncols=True)

    def started(self, attempt: Attempt) -> None:
        self._bar.set_postfix_str(attempt.row.id)

    def progress(self, row_id: str, data: dict[str, object]) -> None:
        self._bar.set_postfix_str(f"{row_id} {data['value']}/{data['max']}")

    def ended(self, record: dict[str, Any]) -> None:
        if record["status"] in (DONE, ERROR):
            self._bar.update(1)
        if record["status"] in (ERROR, LOST):
            again = " It is given to another." if record["status"] == LOST else ""
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
    """One JSON object per line: `{"event": ..., ...}`, "row" with what is recorded of a row, and at last "result"."""

    def __init__(self, out: TextIO, results: Path) -> None:
        self._report, self._results = JsonRunReport(out), results

    def begin(self, total: int, done: int) -> None:
        self._report.line("batch", rows=total, done=done, results=str(self._results))

    def started(self, attempt: Attempt) -> None:
        self._report.line("started", id=attempt.row.id, attempt=attempt.number)

    def progress(self, row_id: str, data: dict[str, object]) -> None:
        self._report.line("progress", id=row_id, node=data["node"], value=data["value"], max=data["max"])

    def ended(self, record: dict[str, object]) -> None:
        self._report.line("row", **record)

    def close(self) -> None:
        pass

    def result(self, counts: dict[str, int], sentence: str) -> None:
        self._report.line("result", message=sentence, results=str(self._results), **counts)
