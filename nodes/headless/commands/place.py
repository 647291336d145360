"""Where a command runs: with nodes in this process, or on servers. The options that select it."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....uniworld_core.errors import UniWorldError
from ....uniworld_core.loading.memory import ModelMemory, default_budget
from ... import host
from ..check.validate import Validation, validate_prompt
from ..registry.registry import Registry, load_registry
from ..remote.address import SERVER_HELP
from ..remote.connect import connect
from ..run.executor import EventHook, Executor, RunResult
from ..run.stopping import StopRequest, stop_on_interrupt
from ..storage import folders
from ..workflow.file import Workflow

if TYPE_CHECKING:
    from ..remote.session import Servers

_MODELS = Path("models")


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that all commands on nodes have."""
    parser.add_argument("--models", type=Path, default=_MODELS, metavar="DIR", help="folder of the models")
    parser.add_argument("--pack", type=Path, action="append", default=[], metavar="DIR", help="load another node pack")
    parser.add_argument("--json", action="store_true", help="print only JSON lines to standard output")
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")


def add_server_option(parser: argparse.ArgumentParser) -> None:
    """Add the option of commands that can use one server instead of nodes in this process."""
    parser.add_argument("--server", metavar="URL", help=SERVER_HELP)


def check_models(arguments: argparse.Namespace) -> None:
    """Raise UniWorldError if the folder of `--models` does not exist."""
    # The default folder may be missing: the shipped models do not need it.
    if arguments.models is not _MODELS and not arguments.models.is_dir():
        raise UniWorldError(
            f"--models '{arguments.models}' is not a folder. Pass the one with uniworld/, diffusers/ and siglip/ in it."
        )


def set_up(arguments: argparse.Namespace, temp: Path | None = None) -> tuple[Registry, host.PlainHost]:
    """Install the host and the folders of this process, and load the nodes."""
    check_models(arguments)
    plain = host.PlainHost(models=[arguments.models])
    host.install(plain)
    _set_folders(arguments, temp)
    return load_registry(arguments.pack), plain


def set_up_models(arguments: argparse.Namespace, temp: Path | None = None) -> tuple[Registry, host.PlainHost]:
    """Set up nodes in this process that will load models: their memory has a budget."""
    registry, plain = set_up(arguments, temp)
    plain.memory = ModelMemory(default_budget())
    return registry, plain


def _set_folders(arguments: argparse.Namespace, temp: Path | None) -> None:
    folders.install(
        folders.Folders(
            input=getattr(arguments, "input", Path("input")),
            output=getattr(arguments, "output", Path("output")),
            temp=temp or getattr(arguments, "output", Path("output")).parent / "temp",
        )
    )


@contextlib.contextmanager
def connect_servers(arguments: argparse.Namespace, urls: list[str], temp: Path | None = None) -> Iterator[Servers]:
    """Connect to the servers of `--server`.

    Raises:
        UniWorldError: none of them can be used, or an option is about nodes in this process.
    """
    if arguments.pack or arguments.models is not _MODELS:
        option = "--pack" if arguments.pack else "--models"
        raise UniWorldError(f"{option} has no effect with --server: the server has its own packs and models. Omit it.")
    _set_folders(arguments, temp)
    with connect(urls) as servers:
        yield servers


@dataclass(frozen=True)
class WorkflowPlace:
    """Where one workflow is checked and runs: this process or a server."""

    registry: Registry
    host: host.PlainHost
    check: Callable[[dict[str, Any]], Validation]
    run: Callable[[Workflow, Validation, StopRequest, EventHook], RunResult]


@contextlib.contextmanager
def open_workflow_place(arguments: argparse.Namespace, previews: Path) -> Iterator[WorkflowPlace]:
    """Set up the nodes or connect to the server of `--server`; `previews` is the folder for temporary files."""
    if arguments.server is not None:
        with connect_servers(arguments, [arguments.server], previews) as servers:
            yield WorkflowPlace(
                servers.registry,
                host.PlainHost(),
                lambda prompt: servers.validate(prompt, lenient=True),
                lambda workflow, _checked, stop, on_event: servers.run(workflow, stop, on_event),
            )
        return
    registry, plain = set_up_models(arguments, previews)

    def run(workflow: Workflow, checked: Validation, stop: StopRequest, on_event: EventHook) -> RunResult:
        return Executor(registry, plain).run(
            checked.prompt,
            checked.outputs,
            original=workflow.prompt,
            extra_pnginfo=workflow.extra_pnginfo,
            stop=stop,
            on_event=on_event,
        )

    yield WorkflowPlace(registry, plain, lambda prompt: validate_prompt(prompt, registry), run)


@dataclass(frozen=True)
class RowsPlace:
    """Where the rows of a batch run: this process, or servers that share them."""

    registry: Registry
    host: host.PlainHost
    stop: StopRequest
    servers: Servers | None = None


@contextlib.contextmanager
def open_rows_place(arguments: argparse.Namespace) -> Iterator[RowsPlace]:
    """Set up the nodes or connect to the servers of `--server`. An interrupt stops the batch."""
    if arguments.server:
        plain = host.PlainHost()
        with connect_servers(arguments, arguments.server) as servers, stop_on_interrupt(plain) as stop:
            yield RowsPlace(servers.registry, plain, stop, servers)
        return
    registry, plain = set_up_models(arguments)
    with stop_on_interrupt(plain) as stop:
        yield RowsPlace(registry, plain, stop)
