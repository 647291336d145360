"""The command `uniworld batch`: one workflow over many rows, in this process or on a Ray cluster."""

from __future__ import annotations

import argparse
from collections import deque
from pathlib import Path
from typing import Any, Protocol, TextIO

from ....command_line import DONE as ALL_DONE
from ....command_line import FAILED as NOT_ALL_DONE
from ....command_line import MAX_SEED, whole_number
from ....streams import say
from ....uniworld_core.errors import UniWorldError
from ...host import PlainHost
from ..registry.registry import Registry
from ..run.report import never_failing
from ..run.stopping import StopRequest
from ..storage import folders
from ..workflow.file import NO_CHOICES, Workflow, find_workflow, read_workflow
from ..workflow.prompt_choices import SEED_HELP
from .report import BatchReport, JsonBatchReport
from .results import DONE, ERROR, LOST, REQUEUED, Attempt, Outcome, RemoteJob, Results
from .rows import BatchRow, check_rows, hash_json, hash_rows, read_rows
from .worker import BatchWorker

DEFAULT_RETRIES = 2


class Pool(Protocol):
    """A pool of workers that run attempts at rows."""

    @property
    def has_room(self) -> bool:
        """Whether a worker is idle."""

    @property
    def busy(self) -> bool:
        """Whether an attempt is running."""

    def next_job(self) -> RemoteJob | None:
        """Return the prompt that will run the next attempt, for the record; None for a pool without servers."""

    def start(self, attempt: Attempt) -> None:
        """Start an attempt on an idle worker, or on the server of its job."""

    def wait(self) -> list[tuple[Attempt, Outcome]]:
        """Wait briefly and return the attempts that finished, with their pictures in their folders; possibly none."""

    def stop(self) -> None:
        """Stop all attempts within a step."""

    def close(self) -> None: ...


class BatchServers(Protocol):
    """Running servers that share a batch.

    Attributes:
        urls: their addresses, as in the records.
    """

    urls: list[str]

    def problems(self, prompt: dict[str, Any]) -> list[str]:
        """Return the problems of a workflow in API form, one sentence each."""

    def pool(
        self, workflow: Workflow, pictures: Path, report: BatchReport | JsonBatchReport, stop: StopRequest
    ) -> Pool:
        """Return workers that run rows of a workflow. Pictures of rows are relative to the folder `pictures`."""


class LocalPool:
    """A pool of one worker: this process."""

    def __init__(self, worker: BatchWorker, pictures: Path, report: BatchReport | JsonBatchReport) -> None:
        self._worker, self._pictures, self._report = worker, pictures, report
        self._attempt: Attempt | None = None

    @property
    def has_room(self) -> bool:
        return self._attempt is None

    @property
    def busy(self) -> bool:
        return self._attempt is not None

    def next_job(self) -> None:
        return None

    def start(self, attempt: Attempt) -> None:
        self._attempt = attempt

    def wait(self) -> list[tuple[Attempt, Outcome]]:
        attempt, self._attempt = self._attempt, None
        if attempt is None:
            return []

        def on_event(name: str, data: dict[str, object]) -> None:
            if name == "progress":
                never_failing(self._report.progress)(attempt.row.id, data)

        return [(attempt, self._worker.run(attempt.row, self._pictures, attempt.folder, on_event))]

    def stop(self) -> None:
        pass  # the worker checks the request itself

    def close(self) -> None:
        pass


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workflow", help="a workflow file in editor or API form, or the name of a shipped one")
    parser.add_argument(
        "--rows", type=Path, required=True, metavar="FILE",
        help='a JSON Lines file with one line per run: {"id": "fox", "set": {"NODE.input": value}, "image": {"NODE": '
        '"picture"}}; picture paths are relative to this file',
    )  # fmt: skip
    parser.add_argument(
        "--results", type=Path, metavar="FILE",
        help="file that records the results and resumes the batch (default: next to the rows, *.results.jsonl)",
    )  # fmt: skip
    parser.add_argument(
        "--retries", type=whole_number(), default=DEFAULT_RETRIES, metavar="N",
        help=f"retries of a row after its worker or this program died (default {DEFAULT_RETRIES})",
    )  # fmt: skip
    parser.add_argument("--seed", type=whole_number(0, MAX_SEED), metavar="N", help=SEED_HELP)
    parser.add_argument("--retry-failed", action="store_true", help="also run rows that are recorded as failed")
    parser.add_argument("--ray", metavar="ADDRESS", help='run on this Ray cluster; "local" starts one on this machine')
    parser.add_argument(
        "--workers", type=whole_number(1), metavar="N", help="number of workers on the cluster (default: one per GPU)"
    )


def run(
    arguments: argparse.Namespace,
    out: TextIO,
    registry: Registry,
    plain: PlainHost,
    stop: StopRequest,
    servers: BatchServers | None = None,
) -> int:
    """Run the batch that the command line describes and return the exit code.

    Args:
        out: the stream that results are printed to.
        stop: the user's request to stop.
        servers: servers that run the rows; None for this process or a Ray cluster.

    Raises:
        UniWorldError: the batch cannot start; `BadRows` names the lines.
    """
    if arguments.ray is None and arguments.workers is not None:
        raise UniWorldError("--workers needs a Ray cluster. Add --ray local for workers on this machine.")
    if servers is not None and arguments.ray is not None:
        raise UniWorldError("--server and --ray exclude each other: a batch runs on servers or on a Ray cluster.")
    workflow = read_workflow(find_workflow(arguments.workflow), registry)
    identity: object = workflow.prompt
    if arguments.seed is not None:
        if workflow.choices is not None and workflow.choices.places:
            workflow.choices.seed = arguments.seed
            identity = [workflow.prompt, arguments.seed]
        else:
            say(f"note: {NO_CHOICES}")
    rows = read_rows(arguments.rows)
    check_rows(rows, arguments.rows, workflow, registry, None if servers is None else servers.problems)
    path = arguments.results or arguments.rows.with_suffix(".results.jsonl")
    report = JsonBatchReport(out, path) if arguments.json else BatchReport(out, path)
    hashes = hash_json(identity), hash_rows(rows)
    urls = () if servers is None else servers.urls
    with Results(path, folders.current().output, arguments.rows.stem, rows, *hashes, urls) as results:
        finished = set(results.with_status(DONE) if arguments.retry_failed else results.with_status(DONE, ERROR))
        todo = deque(row for row in rows if row.id not in finished)
        report.start(len(rows), len(finished))
        try:
            if todo:
                if servers is None:
                    pool = _pool(arguments, workflow, registry, plain, report, stop)
                else:
                    pool = servers.pool(workflow, arguments.rows.parent, report, stop)
                try:
                    _run_rows(todo, results, pool, arguments.retries, report, stop)
                finally:
                    pool.close()
        finally:
            report.close()
        done, failed = len(results.with_status(DONE)), len(results.with_status(ERROR))
    counts = {"rows": len(rows), "done": done, "failed": failed, "left": len(rows) - done - failed}
    report.result(counts, _sentence(counts, path, results.folder))
    return ALL_DONE if done == len(rows) else NOT_ALL_DONE


def _pool(
    arguments: argparse.Namespace,
    workflow: Workflow,
    registry: Registry,
    plain: PlainHost,
    report: BatchReport | JsonBatchReport,
    stop: StopRequest,
) -> Pool:
    pictures = arguments.rows.parent
    if arguments.ray is None:
        return LocalPool(BatchWorker(workflow, registry, plain, folders.current(), stop), pictures, report)
    from .ray_pool import RayPool, WorkerSetup

    setup = WorkerSetup(
        workflow=workflow,
        models=[folder.resolve() for folder in plain.models],
        packs=[folder.resolve() for folder in arguments.pack],
        input=folders.current().input.resolve(),
        output=folders.current().output.resolve(),
    )
    return RayPool(arguments.ray, arguments.workers, setup, pictures)


def _run_rows(
    todo: deque[BatchRow],
    results: Results,
    pool: Pool,
    retries: int,
    report: BatchReport | JsonBatchReport,
    stop: StopRequest,
) -> None:
    for attempt in results.attempts_on_servers():
        todo.remove(attempt.row)
        report.row_started(attempt)
        pool.start(attempt)
    stopping = False
    while True:
        if stop and not stopping:
            pool.stop()
            stopping = True
        while todo and pool.has_room and not stop:
            row = todo.popleft()
            if (lost := results.lost_attempts(row)) > retries:
                times = "once" if lost == 1 else f"{lost} times"
                report.row_finished(results.give_up(row, f"Its worker or the program died {times} while it ran."))
                continue
            attempt = results.start(row, pool.next_job())
            report.row_started(attempt)
            pool.start(attempt)
        if not pool.busy and (stop or not todo):
            return
        for attempt, outcome in pool.wait():
            report.row_finished(results.finish(attempt, outcome))
            if outcome.status in (LOST, REQUEUED):
                todo.appendleft(attempt.row)


def _sentence(counts: dict[str, int], path: Path, folder: Path) -> str:
    parts = [f"{counts['done']} of {counts['rows']} rows are done"]
    if counts["failed"]:
        parts.append(f"{counts['failed']} failed (--retry-failed runs them again)")
    if counts["left"]:
        parts.append(f"{counts['left']} are left (run the same command again to continue)")
    return (
        f"{', '.join(parts)}. The results are recorded in '{path}'. Saved files are in '{folder}', one folder per row."
    )
