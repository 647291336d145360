"""Batch workers on servers: one row at a time per server; rows of a server that dies run on the others."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import time
import traceback
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ....command_line import bug_note, describe_error
from ....streams import say
from ....uniworld_core.errors import RunFailed, UniWorldError
from ..batch.report import BatchReport, JsonBatchReport
from ..batch.results import DONE, ERROR, INTERRUPTED, LOST, REQUEUED, Attempt, Outcome, RemoteJob
from ..batch.rows import apply_row
from ..batch.worker import saved_and_texts
from ..check.validate import WorkflowRefused
from ..run.executor import RunResult
from ..run.report import never_failing
from ..run.stopping import StopRequest
from ..storage import folders
from ..workflow.file import Workflow
from .client import TOO_MANY_REQUESTS, Refusal, ServerClient, ServerFailed, Unreachable
from .downloads import download_all
from .prompt_run import PATIENCE, PromptInvalid, PromptRun, PromptUnknown, Unconfirmed, cancel
from .session import extra_data, new_prompt_id, read_nodes, refused
from .workflow_files import Uploader, file_uses

if TYPE_CHECKING:
    from .session import Servers

POLL_SECONDS = 0.2
# Seconds to wait for an unresponsive server while other servers respond.
SHORT_PATIENCE = 5.0
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds between two polls of an unresponsive server
# The batch fails after this many seconds without any server.
ALL_DOWN_SECONDS = 300.0


@dataclass
class ServerWorker:
    """The state of a server in the pool.

    Attributes:
        up: whether it responds and has all nodes of the workflow.
        attempts: ids of the running attempts; more than one only after a restart of the batch.
        abandoned: prompts that it may still run although their rows were given to other servers.
    """

    client: ServerClient
    uploader: Uploader
    up: bool = True
    attempts: set[int] = field(default_factory=set)
    abandoned: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class _Progress:
    row_id: str
    data: dict[str, object]


@dataclass(frozen=True)
class _Ended:
    """A finished attempt. The outcome is None if its server may still be running it."""

    attempt: Attempt
    outcome: Outcome | None


class ServerPool:
    """A pool with one worker per server.

    Args:
        servers: the connections; servers without a registry have not responded yet.
        pictures: the base folder for the images of rows.
    """

    def __init__(
        self,
        servers: Servers,
        workflow: Workflow,
        pictures: Path,
        report: BatchReport | JsonBatchReport,
        stop: StopRequest,
    ) -> None:
        self._all, self._workflow, self._pictures, self._report = servers, workflow, pictures, report
        self._folders = folders.current()
        self._servers = {client.url: ServerWorker(client, Uploader(client)) for client in servers.clients}
        self._reports: queue.SimpleQueue[_Ended | _Progress] = queue.SimpleQueue()
        self._running = 0
        self._stop = stop
        self._down_since: float | None = None
        for server in self._servers.values():
            if server.client.url not in servers.registries:
                self._take_down(server)

    # --- called by the batch ----------------------------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        return self._idle() is not None

    @property
    def busy(self) -> bool:
        return self._running > 0

    def _idle(self) -> ServerWorker | None:
        return next((server for server in self._servers.values() if server.up and not server.attempts), None)

    def next_job(self) -> RemoteJob | None:
        server = self._idle()
        return None if server is None else RemoteJob(server.client.url, new_prompt_id())

    def start(self, attempt: Attempt) -> None:
        self._running += 1
        if attempt.job is None:  # the last idle server has just stopped answering
            self._reports.put(_Ended(attempt, Outcome(REQUEUED, error="No server responds.")))
            return
        server = self._servers[attempt.job.server]
        server.attempts.add(id(attempt))
        self._all.loop.start(self._attempt(attempt, server, attempt.job))

    def wait(self) -> list[tuple[Attempt, Outcome]]:
        ended = []
        with contextlib.suppress(queue.Empty):
            report = self._reports.get(timeout=POLL_SECONDS)
            while True:
                if isinstance(report, _Ended):
                    ended.append(report)
                else:
                    # Printed in this thread, because lines from two threads would mix.
                    never_failing(self._report.progress)(report.row_id, report.data)
                report = self._reports.get_nowait()
        self._running -= len(ended)
        self._check_servers()
        # Attempts without an outcome stay recorded as started, and the next start asks the server.
        return [(one.attempt, one.outcome) for one in ended if one.outcome is not None]

    def stop(self) -> None:
        pass  # each run checks the stop request

    def close(self) -> None:
        pass  # `Servers` closes the connections

    def _check_servers(self) -> None:
        """Raise RunFailed if no server has responded for `ALL_DOWN_SECONDS`."""
        if any(server.up for server in self._servers.values()):
            self._down_since = None
            return
        now = time.monotonic()
        self._down_since = self._down_since or now
        if now - self._down_since > ALL_DOWN_SECONDS and not self.busy:
            raise RunFailed(
                f"No server has responded for {ALL_DOWN_SECONDS:.0f} seconds: {', '.join(self._servers)}. Start one, and run "
                "the batch again: it continues after the rows that are done."
            )

    # --- in the event loop ------------------------------------------------------------------------------------------

    async def _attempt(self, attempt: Attempt, server: ServerWorker, job: RemoteJob) -> None:
        started = time.monotonic()
        outcome: Outcome | None = None
        try:
            outcome = await self._outcome(attempt, server, job)
        except Unconfirmed as error:
            say(f"Row {attempt.row.id}: {error}")
            outcome = None
        except PromptUnknown as error:
            outcome = Outcome(LOST, error=str(error))
        except ServerFailed as error:
            outcome = self._failed(server, job, error)
        except WorkflowRefused as invalid:
            outcome = Outcome(ERROR, error=str(invalid))
        except (UniWorldError, OSError) as error:
            outcome = Outcome(ERROR, error=str(error))
        except Exception as error:  # a bug must not keep the batch waiting for this attempt
            say("".join(traceback.format_exception(error)).rstrip())
            outcome = Outcome(ERROR, error=f"{describe_error(error)}. {bug_note('above')}")
        finally:
            server.attempts.discard(id(attempt))
            if outcome is not None:
                outcome = replace(outcome, seconds=round(time.monotonic() - started, 3))
            self._reports.put(_Ended(attempt, outcome))

    async def _outcome(self, attempt: Attempt, server: ServerWorker, job: RemoteJob) -> Outcome:
        row = attempt.row
        with folders.use(replace(self._folders, bound={})):
            registry = self._all.registries.get(server.client.url, self._all.registry)
            workflow = apply_row(self._workflow, row, self._pictures, self._all.registry)

            def on_event(name: str, data: dict[str, object]) -> None:
                if name == "progress":
                    self._reports.put(_Progress(row.id, data))

            run = PromptRun(
                server.client, job.prompt_id, workflow.prompt, {}, on_event, self._stop, lambda: self._patience(server)
            )
            if attempt.resumed:
                result = await run.resume()
            else:
                uses, _ = file_uses(workflow.prompt, registry)
                sent = await server.uploader.upload_all(workflow, uses, registry)
                run.prompt, run.extra_data = sent.prompt, extra_data(sent)
                try:
                    result = await run.run()
                except PromptInvalid as invalid:
                    raise WorkflowRefused(refused(invalid, sent.prompt, registry)) from invalid
        return await self._collected(server, attempt, result)

    async def _collected(self, server: ServerWorker, attempt: Attempt, result: RunResult) -> Outcome:
        if result.status == "interrupted":
            # A server that shuts down marks its running prompt as interrupted.
            status = INTERRUPTED if self._stop else LOST
            return Outcome(status, error=result.sentence, warnings=result.warnings)
        if result.status != "success":
            return Outcome(ERROR, error=result.sentence, warnings=result.warnings)
        ui = await download_all(server.client, result.ui, {"output": attempt.folder})
        return Outcome(DONE, *saved_and_texts(replace(result, ui=ui)), warnings=result.warnings)

    def _patience(self, server: ServerWorker) -> float:
        others = any(other.up for other in self._servers.values() if other is not server)
        return SHORT_PATIENCE if others else PATIENCE

    def _failed(self, server: ServerWorker, job: RemoteJob, error: ServerFailed) -> Outcome:
        """Return the outcome of an attempt whose server failed. It is an error of the row only if the request was rejected."""
        if isinstance(error, Refusal) and error.status < 500 and error.status != TOO_MANY_REQUESTS:
            return Outcome(ERROR, error=str(error))
        self._take_down(server)
        if isinstance(error, Unreachable) and not error.sent:
            return Outcome(REQUEUED, error=str(error))
        server.abandoned.add(job.prompt_id)
        return Outcome(LOST, error=str(error))

    def _take_down(self, server: ServerWorker) -> None:
        if server.up:
            server.up = False
            server.uploader.stored.clear()  # it may restart with an empty input folder
            self._all.loop.start(self._bring_up(server))

    async def _bring_up(self, server: ServerWorker) -> None:
        """Poll a server until it responds, and mark it as up."""
        pause = FIRST_PAUSE
        while True:
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            try:
                registry = await read_nodes(server.client)
                for prompt_id in list(server.abandoned):
                    await cancel(server.client, prompt_id)
                    server.abandoned.discard(prompt_id)
            except ServerFailed:
                continue
            missing = {str(node.get("class_type")) for node in self._workflow.prompt.values()} - set(registry.classes)
            if missing:
                say(
                    f"warning: {server.client.url} is not used. It does not have the nodes {', '.join(sorted(missing))}."
                )
                return
            self._all.registries[server.client.url] = registry
            say(f"note: {server.client.url} responds again and is used.")
            server.up = True
            return
