"""The commands `uniworld run`, `nodes`, `check`, `batch`, `bench`, `chat` and `serve`."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...command_line import DONE, FAILED, MISUSED, Parser, checked_exit_code, exit_code_of
from ...streams import say
from ...uniworld_core.errors import RunFailed, UniWorldError, shown
from ...uniworld_core.loading.memory import ModelMemory, default_budget
from .. import host
from .batch.command import add_arguments as add_batch_arguments
from .batch.command import run as run_batch
from .bench.arguments import add_arguments as add_bench_arguments
from .bench.command import run as run_bench
from .chat.command import EPILOG as CHAT_EPILOG
from .chat.command import run as run_chat
from .chat.options import add_arguments as add_chat_arguments
from .check.validate import Validation, WorkflowRefused, validate_prompt
from .registry.node_list import format_nodes
from .registry.registry import Registry, load_registry
from .remote.address import SERVER_HELP
from .remote.connect import connect
from .run.executor import EventHook, Executor, RunResult
from .run.report import JsonRunReport, RunReport, never_failing
from .run.stopping import StopRequest, stop_on_interrupt
from .serve.command import serve
from .serve.config import add_options
from .storage import folders
from .storage.output_folder import check_writable, open_output, preview_folder
from .workflow.api_form import is_stdout, non_finite_inputs, not_reported, write_api_form
from .workflow.file import Workflow, find_node, find_workflow, list_shipped, node_name, read_workflow, set_value
from .workflow.prompt_choices import SEED_HELP
from .workflow.shipped import missing_model

if TYPE_CHECKING:
    from .remote.session import Servers

EPILOG = "Exit codes: 0 done, 1 the run failed or was interrupted, 2 bad usage or a bad workflow."


def main(argv: list[str]) -> int:
    """Run one command and return its exit code. With --json, the last line on standard output is the result."""
    # Created before the arguments are parsed: with --json, even a usage error must end in a JSON line.
    report = JsonRunReport(sys.stdout, debug="--debug" in argv)

    def last_line(event: str, sentence: str, problems: list[str]) -> None:
        if "--json" in argv and not report.finished:
            report.line(event, message=sentence, problems=problems)

    return exit_code_of(lambda: _run_command(argv, report), "--debug" in argv, last_line)


def _run_command(argv: list[str], report: JsonRunReport) -> int:
    arguments = build_parser().parse_args(argv)
    arguments.report = report
    output_is_result = arguments.command == "nodes" or is_stdout(getattr(arguments, "api", None) or "")
    return checked_exit_code(arguments.handler(arguments), output_is_result)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="uniworld", epilog=EPILOG)
    commands = parser.add_subparsers(dest="command", required=True)

    run = _command(commands, "run", "run a workflow", _run)
    run.add_argument("workflow", nargs="?", help="a workflow file in editor or API form, or the name of a shipped one")
    _add_value_options(run)
    _add_server_option(run)
    _add_common_options(run)

    nodes = _command(commands, "nodes", "list the nodes, or show one", _nodes)
    nodes.add_argument("name", nargs="?", help="a node class")
    _add_common_options(nodes)

    check = _command(commands, "check", "check a workflow without running it", _check)
    check.add_argument("workflow", help="a workflow file in editor or API form, or the name of a shipped one")
    check.add_argument("--api", metavar="FILE", help="write the workflow in API form to FILE; - for standard output")
    _add_value_options(check)
    _add_server_option(check)
    _add_common_options(check)

    batch = _command(commands, "batch", "run a workflow over many rows", _batch)
    add_batch_arguments(batch)
    batch.add_argument("--input", type=Path, default=Path("input"), metavar="DIR", help="folder of input pictures")
    batch.add_argument("--output", type=Path, default=Path("output"), metavar="DIR", help="folder for the results")
    batch.add_argument(
        "--server", action="append", default=[], metavar="URL", help=f"{SERVER_HELP}; several servers share the rows"
    )
    _add_common_options(batch)

    bench = _command(commands, "bench", "measure a workflow on a published benchmark", _bench)
    add_bench_arguments(bench, _add_common_options)

    chat = _command(commands, "chat", "chat with the model in a terminal", _chat, CHAT_EPILOG)
    add_chat_arguments(chat)
    _add_common_options(chat)

    server = _command(commands, "serve", "serve the editor and ComfyUI's HTTP API", _serve)
    add_options(server)
    _add_common_options(server)
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    text: str,
    handler: Callable[..., int],
    epilog: str = EPILOG,
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text, epilog=epilog)
    parser.set_defaults(handler=handler)
    return parser


def _add_value_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--set", action="append", default=[], metavar="NODE.input=value", help="set an input's value")
    parser.add_argument(
        "--image", action="append", default=[], metavar="NODE=picture", help="set the picture that a node loads"
    )
    parser.add_argument("--seed", type=int, metavar="N", help=SEED_HELP)
    parser.add_argument("--input", type=Path, default=Path("input"), metavar="DIR", help="folder of input pictures")
    parser.add_argument("--output", type=Path, default=Path("output"), metavar="DIR", help="folder for the results")


def _add_server_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--server", metavar="URL", help=SERVER_HELP)


_MODELS = Path("models")


def _add_common_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", type=Path, default=_MODELS, metavar="DIR", help="folder of the models")
    parser.add_argument("--pack", type=Path, action="append", default=[], metavar="DIR", help="load another node pack")
    parser.add_argument("--json", action="store_true", help="print only JSON lines to standard output")
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")


def _check_models(arguments: argparse.Namespace) -> None:
    # The default folder may be missing: the shipped models do not need it.
    if arguments.models is not _MODELS and not arguments.models.is_dir():
        raise UniWorldError(
            f"--models '{arguments.models}' is not a folder. Pass the one with uniworld/, diffusers/ and siglip/ in it."
        )


def _set_up(arguments: argparse.Namespace, temp: Path | None = None) -> tuple[Registry, host.PlainHost]:
    _check_models(arguments)
    plain = host.PlainHost(models=[arguments.models])
    host.install(plain)
    _set_folders(arguments, temp)
    return load_registry(arguments.pack), plain


def _set_folders(arguments: argparse.Namespace, temp: Path | None) -> None:
    folders.install(
        folders.Folders(
            input=getattr(arguments, "input", Path("input")),
            output=getattr(arguments, "output", Path("output")),
            temp=temp or getattr(arguments, "output", Path("output")).parent / "temp",
        )
    )


@contextlib.contextmanager
def _connect(arguments: argparse.Namespace, urls: list[str], temp: Path | None = None) -> Iterator[Servers]:
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
class _Executing:
    """Where a workflow is checked and runs: this process or a server."""

    registry: Registry
    host: host.PlainHost
    check: Callable[[dict[str, Any]], Validation]
    run: Callable[[Workflow, Validation, StopRequest, EventHook], RunResult]


@contextlib.contextmanager
def _executing(arguments: argparse.Namespace, previews: Path) -> Iterator[_Executing]:
    if arguments.server is not None:
        with _connect(arguments, [arguments.server], previews) as servers:
            yield _Executing(
                servers.registry,
                host.PlainHost(),
                lambda prompt: servers.validate(prompt, lenient=True),
                lambda workflow, _checked, stop, on_event: servers.run(workflow, stop, on_event),
            )
        return
    registry, plain = _set_up(arguments, previews)
    plain.memory = ModelMemory(default_budget())

    def run(workflow: Workflow, checked: Validation, stop: StopRequest, on_event: EventHook) -> RunResult:
        return Executor(registry, plain).run(
            checked.prompt,
            checked.outputs,
            original=workflow.prompt,
            extra_pnginfo=workflow.extra_pnginfo,
            stop=stop,
            on_event=on_event,
        )

    yield _Executing(registry, plain, lambda prompt: validate_prompt(prompt, registry), run)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.workflow is None:
        raise UniWorldError(f"Name a workflow to run. Shipped workflows: {list_shipped()}.")
    # Output that nodes print must not mix with the lines of --json.
    out = sys.stdout
    quiet = contextlib.redirect_stdout(sys.stderr) if arguments.json else contextlib.nullcontext()
    with quiet, preview_folder() as previews, _executing(arguments, previews) as place:
        registry = place.registry
        file = find_workflow(arguments.workflow)
        workflow = read_workflow(file, registry)
        notes = _apply_values(workflow, registry, arguments)
        report = arguments.report if arguments.json else RunReport(out, workflow.prompt)
        checked = place.check(workflow.prompt)
        for note in notes + checked.notes:
            report.note(note)
        if checked.problems:
            if not arguments.server and (missing := missing_model(file)):
                report.note(missing)
            report.invalid(checked)
            return MISUSED
        try:
            with open_output(arguments.output), stop_on_interrupt(place.host) as stop, report:
                result = place.run(workflow, checked, stop, never_failing(report.event))
        except WorkflowRefused as refusal:
            report.invalid(refusal.checked)
            return MISUSED
        never_failing(report.result)(result)
        if result.sentence:
            say(result.sentence)
        if arguments.debug and result.error is not None:
            inputs = ", ".join(f"{name}={value}" for name, value in result.error["current_inputs"].items())
            say(f"{''.join(result.error['traceback'])}Inputs of the node: {inputs or 'none'}.")
    return DONE if result.status == "success" else FAILED


def _apply_values(workflow: Workflow, registry: Registry, arguments: argparse.Namespace) -> list[str]:
    """Set the values of --set, --image and --seed, then resolve the random choices in the workflow's prompts.

    Returns:
        A note for each prompt that this changed.
    """
    for entry in arguments.set:
        target, equals, text = entry.partition("=")
        node, dot, name = target.rpartition(".")
        if not equals or not dot or not node:
            raise UniWorldError(f"--set {shown(entry)} is invalid. Write NODE.input=value, such as Sampler.steps=20.")
        set_value(workflow, registry, node, name, text)
    for entry in arguments.image:
        node, equals, path = entry.partition("=")
        if not equals or not node:
            raise UniWorldError(f"--image {shown(entry)} is invalid. Write NODE=picture, such as LoadImage=cat.jpg.")
        if not path:
            raise UniWorldError(
                f"--image {shown(entry)} has an empty path. Write NODE=picture, such as LoadImage=cat.jpg."
            )
        # The node is looked up first, so that a wrong node name is reported before a wrong path.
        node_id = find_node(workflow.prompt, node)
        set_value(workflow, registry, node_id, "image", folders.current().bind(Path(path)))
    return workflow.resolve_texts(registry, arguments.seed)


def _batch(arguments: argparse.Namespace) -> int:
    out = sys.stdout
    # Output that nodes print must not mix with the batch's own.
    with contextlib.redirect_stdout(sys.stderr):
        if arguments.server:
            plain = host.PlainHost()
            with _connect(arguments, arguments.server) as servers, stop_on_interrupt(plain) as stop:
                return run_batch(arguments, out, servers.registry, plain, stop, servers)
        registry, plain = _set_up(arguments)
        plain.memory = ModelMemory(default_budget())
        with stop_on_interrupt(plain) as stop:
            return run_batch(arguments, out, registry, plain, stop)


@dataclass(frozen=True)
class _BenchBatch:
    """The place where `bench` makes pictures: `uniworld batch` with the options of the command line."""

    arguments: argparse.Namespace
    registry: Registry
    host: host.PlainHost
    stop: StopRequest
    servers: Servers | None = None

    def run(self, workflow: Path, rows: Path, results: Path, output: Path) -> int:
        # Progress goes to standard error: standard output has the table.
        arguments = argparse.Namespace(**vars(self.arguments))
        arguments.workflow, arguments.rows, arguments.results = str(workflow), rows, results
        arguments.output, arguments.seed, arguments.json = output, None, False
        code = run_batch(arguments, sys.stderr, self.registry, self.host, self.stop, self.servers)
        if self.stop:  # the judge must not be asked about half of the pictures
            raise RunFailed("Interrupted. Run the same command again to continue; finished pictures are kept.")
        return code


def _bench(arguments: argparse.Namespace) -> int:
    @contextlib.contextmanager
    def open_place(output: Path) -> Iterator[_BenchBatch]:
        arguments.output = output
        if arguments.server:
            plain = host.PlainHost()
            with _connect(arguments, arguments.server) as servers, stop_on_interrupt(plain) as stop:
                yield _BenchBatch(arguments, servers.registry, plain, stop, servers)
            return
        registry, plain = _set_up(arguments)
        plain.memory = ModelMemory(default_budget())
        with stop_on_interrupt(plain) as stop:
            yield _BenchBatch(arguments, registry, plain, stop)

    out = sys.stdout
    # Output that nodes print must not mix with the table.
    with contextlib.redirect_stdout(sys.stderr):
        return run_bench(arguments, out, open_place)


def _chat(arguments: argparse.Namespace) -> int:
    out = sys.stdout
    # Output that nodes print must not mix with the lines of --json.
    quiet = contextlib.redirect_stdout(sys.stderr) if arguments.json else contextlib.nullcontext()
    with quiet, open_output(arguments.output):
        _, plain = _set_up(arguments)
        plain.memory = ModelMemory(default_budget())
        return run_chat(arguments, out, plain)


def _serve(arguments: argparse.Namespace) -> int:
    _check_models(arguments)
    out = sys.stdout
    # Scripts read the server's address from standard output. Output of nodes must not mix with it, nor block once the
    # script has stopped reading.
    with contextlib.redirect_stdout(sys.stderr):
        return serve(arguments, out)


def _check(arguments: argparse.Namespace) -> int:
    to_stdout = arguments.api is not None and is_stdout(arguments.api)
    if to_stdout and arguments.json:
        raise UniWorldError(f"--api {arguments.api} and --json both write to standard output. Pass --api a file name.")
    # Output that packs print must not mix with the API form.
    out = sys.stderr if to_stdout else sys.stdout
    registry: Registry
    check: Callable[[dict[str, Any]], Validation]
    with contextlib.ExitStack() as stack:
        if arguments.server is not None:
            servers = stack.enter_context(_connect(arguments, [arguments.server]))
            registry, check = servers.registry, servers.validate
        else:
            with contextlib.redirect_stdout(out):
                registry, _ = _set_up(arguments)
            check = partial(validate_prompt, registry=registry)
        workflow = read_workflow(find_workflow(arguments.workflow), registry)
        notes = _apply_values(workflow, registry, arguments)
        checked = check(workflow.prompt)
    notes += checked.notes
    if arguments.json:
        for note in notes:
            arguments.report.note(note)
    problems = checked.sentences
    try:
        check_writable(arguments.output, make=False)
    except UniWorldError as error:
        problems.append(str(error))
    if arguments.api is not None:
        unwritable = non_finite_inputs(workflow.prompt)
        problems += not_reported(unwritable, problems)
        if unwritable:
            problems.append("The API form was not written.")
        else:
            write_api_form(workflow.prompt, arguments.api)
    if arguments.json and problems:
        arguments.report.invalid(checked, problems)
    elif arguments.json:
        arguments.report.line("valid", outputs=checked.outputs)
    else:
        outputs = ", ".join(f"{one} ({node_name(checked.prompt[one], registry)})" for one in checked.outputs)
        kind = "output nodes" if len(checked.outputs) > 1 else "output node"
        valid = f"The workflow is valid: {len(checked.prompt)} nodes; {kind}: {outputs}."
        print("\n".join([*(f"note: {note}" for note in notes), *(problems or [valid])]), file=out)
    return MISUSED if problems else DONE


def _nodes(arguments: argparse.Namespace) -> int:
    registry, _ = _set_up(arguments)
    print(format_nodes(registry, arguments.name, arguments.json))
    return DONE
