"""Connected servers: their nodes for conversion and checks, single runs, and workers for a batch."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ....streams import say
from ....uniworld_core.errors import UniWorldError
from ..batch.report import BatchReport, JsonBatchReport
from ..check.validate import Validation, WorkflowRefused, validate_prompt
from ..problems import Problem, node_label
from ..run.executor import EventHook, RunResult
from ..run.stopping import StopRequest
from ..storage import folders
from ..workflow.api_form import non_finite_inputs, not_reported
from ..workflow.file import Workflow
from .address import ServerAddress
from .client import ServerClient, ServerFailed, Timeouts
from .downloads import download_all
from .loop_thread import LoopThread
from .node_infos import RemoteRegistry, read_registry
from .prompt_run import PromptInvalid, PromptRun
from .workflow_files import Uploader, file_uses, foreign_paths, missing_files

if TYPE_CHECKING:
    from .pool import ServerPool

# Problems that a pack's VALIDATE_INPUTS may accept. object_info does not show it, so the server decides.
_DOUBTFUL = frozenset(
    {
        "value_not_in_list",
        "value_smaller_than_min",
        "value_bigger_than_max",
        "return_type_mismatch",
        "invalid_input_type",
    }
)


_CLOSING = 5.0  # seconds


class Servers:
    """Connections to servers. Workflows are converted with the nodes of the first server that responds.

    Args:
        token: sent to all of them.

    Attributes:
        urls: the URLs of the servers.
        clients: one client per server, in the same order.
        registries: the nodes of each server that has responded, by URL.
    """

    def __init__(
        self, addresses: Iterable[ServerAddress], token: str | None = None, timeouts: Timeouts | None = None
    ) -> None:
        self.clients = [ServerClient(address, token, timeouts) for address in addresses]
        self.urls = [client.url for client in self.clients]
        self.registries: dict[str, RemoteRegistry] = {}
        self.loop = LoopThread()

    def __enter__(self) -> Servers:
        """Connect to all servers.

        Raises:
            UniWorldError: no server can be used.
        """
        self.loop.__enter__()
        try:
            answers = self.loop.call(self._connect())
            failed = [answer for answer in answers if isinstance(answer, BaseException)]
            for error in failed:
                if not isinstance(error, ServerFailed):
                    raise error
            self.registries = {
                client.url: answer
                for client, answer in zip(self.clients, answers)
                if isinstance(answer, RemoteRegistry)
            }
            if not self.registries:
                # Nothing has run yet, so this is a usage error.
                raise UniWorldError(" ".join(str(error) for error in failed), [str(error) for error in failed])
            for error in failed:
                say(f"warning: {error} It is used when it responds.")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(concurrent.futures.TimeoutError):
            self.loop.start(self._close()).result(_CLOSING)
        self.loop.__exit__(kind, error, trace)

    async def _connect(self) -> list[RemoteRegistry | BaseException]:
        return await asyncio.gather(*map(read_nodes, self.clients), return_exceptions=True)

    async def _close(self) -> None:
        for client in self.clients:
            await client.close()

    @property
    def registry(self) -> RemoteRegistry:
        return next(iter(self.registries.values()))

    @property
    def _client(self) -> ServerClient:
        return next(client for client in self.clients if client.url in self.registries)

    # --- one workflow -----------------------------------------------------------------------------------------------

    def validate(self, prompt: dict[str, Any], lenient: bool = False) -> Validation:
        """Check a workflow against the nodes of the first server, and check that its files exist.

        Nothing is queued or uploaded.

        Args:
            lenient: ignore problems that a pack's own checks may accept.
        """
        return self.loop.call(self._validate(self._client, prompt, lenient))

    def problems(self, prompt: dict[str, Any]) -> list[str]:
        """Return the problems that prevent a workflow from running on any of the servers, one sentence each."""
        found: list[str] = []
        for client in self.clients:
            if client.url in self.registries:
                checked = self.loop.call(self._validate(client, prompt, lenient=True))
                several = f" (on {client.url})" if len(self.registries) > 1 else ""
                found += [f"{sentence}{several}" for sentence in checked.sentences]
        return found

    async def _validate(self, client: ServerClient, prompt: dict[str, Any], lenient: bool) -> Validation:
        registry = self.registries[client.url]
        uses, problems = file_uses(prompt, registry)
        problems += await missing_files(uses, client, registry)
        checked = validate_prompt(prompt, registry)
        found = [one for one in checked.problems if not (lenient and _may_be_allowed(one, registry))]
        found += problems
        unsendable = not_reported(non_finite_inputs(prompt), [one.sentence for one in found])
        found += [Problem("", "", {"type": "invalid_prompt"}, sentence) for sentence in unsendable]
        notes = checked.notes + foreign_paths(prompt, client)
        errors = checked.node_errors if found else {}
        for problem in problems:
            about = {"errors": [], "dependent_outputs": [], "class_type": problem.class_type}
            errors.setdefault(problem.node_id, about)["errors"].append(problem.error)
        error = checked.error if found else None
        return replace(checked, problems=found, node_errors=errors, error=error, notes=notes)

    def run(self, workflow: Workflow, stop: StopRequest, on_event: EventHook) -> RunResult:
        """Run a workflow on the first server and download its results into the current folders.

        Raises:
            WorkflowRefused: the server rejected the workflow.
            RunFailed: the server fails, or the results cannot be downloaded.
        """
        current = folders.current()
        places = {"output": current.output, "temp": current.temp, "input": current.temp}
        return self.loop.call(self._run(workflow, stop, on_event, places))

    async def _run(
        self, workflow: Workflow, stop: StopRequest, on_event: EventHook, places: Mapping[str, Path]
    ) -> RunResult:
        client = self._client
        registry = self.registries[client.url]
        uses, _ = file_uses(workflow.prompt, registry)
        sent = await Uploader(client).upload_all(workflow, uses, registry)
        run = PromptRun(client, new_prompt_id(), sent.prompt, extra_data(sent), on_event, stop)
        try:
            result = await run.run()
        except PromptInvalid as invalid:
            raise WorkflowRefused(refused(invalid, sent.prompt, registry)) from invalid
        ui = await download_all(client, result.ui, places)
        return replace(result, ui=ui)

    # --- a batch ----------------------------------------------------------------------------------------------------

    def pool(
        self, workflow: Workflow, pictures: Path, report: BatchReport | JsonBatchReport, stop: StopRequest
    ) -> ServerPool:
        """Return a pool with one worker per server."""
        from .pool import ServerPool

        return ServerPool(self, workflow, pictures, report, stop)


async def read_nodes(client: ServerClient) -> RemoteRegistry:
    """Return the nodes of a server. Raises ServerFailed if the request fails."""
    return read_registry(await client.get_json("/object_info"), client.url)


def new_prompt_id() -> str:
    return str(uuid.uuid4())


def extra_data(workflow: Workflow) -> dict[str, Any]:
    """Return the metadata of a prompt: the editor form, which SaveImage stores in images."""
    return {} if workflow.extra_pnginfo is None else {"extra_pnginfo": workflow.extra_pnginfo}


def _may_be_allowed(problem: Problem, registry: RemoteRegistry) -> bool:
    """Return whether a pack's own check may accept a value that the declaration excludes."""
    module = registry.modules.get(problem.class_type, "")
    return module.startswith("custom_nodes.") and problem.error.get("type") in _DOUBTFUL


def refused(invalid: PromptInvalid, prompt: dict[str, Any], registry: RemoteRegistry) -> Validation:
    """Return a server's rejection as a `Validation`, with the messages of the local check where it finds the same."""
    known = {_place(one.node_id, one.error): one.sentence for one in validate_prompt(prompt, registry).problems}
    problems: list[Problem] = []
    for node_id, about in invalid.node_errors.items():
        errors = about.get("errors") if isinstance(about, dict) else None
        class_type = str(about.get("class_type") or "") if isinstance(about, dict) else ""
        for error in errors if isinstance(errors, list) else []:
            if isinstance(error, dict):
                sentence = known.get(_place(node_id, error), f"{node_label(node_id, class_type)}: {_sentence(error)}")
                problems.append(Problem(node_id, class_type, error, sentence))
    if not problems:
        message, details = invalid.error.get("message"), invalid.error.get("details")
        reason = ": ".join(str(part) for part in (message, details) if part) or "it gives no reason."
        problems = [Problem("", "", invalid.error, f"The server rejected the workflow: {reason}")]
    error = invalid.error or {"type": "prompt_outputs_failed_validation", "message": "Prompt outputs failed validation"}
    error = {"details": "", "extra_info": {}, **error}
    return Validation(prompt, [], problems, error, invalid.node_errors)


def _place(node_id: str, error: Mapping[str, Any]) -> tuple[str, object, object]:
    extra = error.get("extra_info")
    return node_id, error.get("type"), extra.get("input_name") if isinstance(extra, dict) else None


def _sentence(error: Mapping[str, Any]) -> str:
    """Return one of ComfyUI's error objects as a sentence."""
    message, details = str(error.get("message") or ""), str(error.get("details") or "")
    if error.get("type") == "custom_validation_failed" and " - " in details:
        return details.partition(" - ")[2]  # the message of the node's own check
    parts = [part.rstrip(".") for part in (message, details) if part]
    return f"{': '.join(parts) or 'it is not valid'}."
