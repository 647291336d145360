"""The commands `uniworld run`, `nodes`, `check`, `batch`, `bench`, `chat` and `serve`."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ...command_line import DONE, Parser, checked_exit_code, exit_code_of
from ...uniworld_core.errors import RunFailed
from .batch.command import add_arguments as add_batch_arguments
from .batch.command import run as run_batch
from .bench.arguments import add_arguments as add_bench_arguments
from .bench.command import run as run_bench
from .chat.command import EPILOG as CHAT_EPILOG
from .chat.command import run as run_chat
from .chat.options import add_arguments as add_chat_arguments
from .commands.check import check_workflow
from .commands.place import (
    RowsPlace,
    add_common_options,
    add_server_option,
    check_models,
    open_rows_place,
    set_up,
    set_up_models,
)
from .commands.run import run_workflow
from .commands.values import add_value_options
from .registry.node_list import format_nodes
from .registry.registry import Registry
from .remote.address import SERVER_HELP
from .run.report import JsonRunReport
from .serve.command import serve
from .serve.config import add_options
from .storage.output_folder import open_output
from .workflow.api_form import is_stdout

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

    run = _command(commands, "run", "run a workflow", run_workflow)
    run.add_argument("workflow", nargs="?", help="a workflow file in editor or API form, or the name of a shipped one")
    add_value_options(run)
    add_server_option(run)
    add_common_options(run)

    nodes = _command(commands, "nodes", "list the nodes, or show one", _nodes)
    nodes.add_argument("name", nargs="?", help="a node class")
    add_common_options(nodes)

    check = _command(commands, "check", "check a workflow without running it", check_workflow)
    check.add_argument("workflow", help="a workflow file in editor or API form, or the name of a shipped one")
    check.add_argument("--api", metavar="FILE", help="write the workflow in API form to FILE; - for standard output")
    add_value_options(check)
    add_server_option(check)
    add_common_options(check)

    batch = _command(commands, "batch", "run a workflow over many rows", _batch)
    add_batch_arguments(batch)
    batch.add_argument("--input", type=Path, default=Path("input"), metavar="DIR", help="folder of input pictures")
    batch.add_argument("--output", type=Path, default=Path("output"), metavar="DIR", help="folder for the results")
    batch.add_argument(
        "--server", action="append", default=[], metavar="URL", help=f"{SERVER_HELP}; several servers share the rows"
    )
    add_common_options(batch)

    bench = _command(commands, "bench", "measure a workflow on a published benchmark", _bench)
    add_bench_arguments(bench, add_common_options)

    chat = _command(commands, "chat", "chat with the model in a terminal", _chat, CHAT_EPILOG)
    add_chat_arguments(chat)
    add_common_options(chat)

    server = _command(commands, "serve", "serve the editor and ComfyUI's HTTP API", _serve)
    add_options(server)
    add_common_options(server)
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


def _batch(arguments: argparse.Namespace) -> int:
    out = sys.stdout
    # Output that nodes print must not mix with the batch's own.
    with contextlib.redirect_stdout(sys.stderr), open_rows_place(arguments) as place:
        return run_batch(arguments, out, place.registry, place.host, place.stop, place.servers)


@dataclass(frozen=True)
class _BenchBatch:
    """The place where `bench` makes pictures: `uniworld batch` with the options of the command line."""

    arguments: argparse.Namespace
    place: RowsPlace

    @property
    def registry(self) -> Registry:
        return self.place.registry

    def run(self, workflow: Path, rows: Path, results: Path, output: Path) -> int:
        place = self.place
        # Progress goes to standard error: standard output has the table.
        arguments = argparse.Namespace(**vars(self.arguments))
        arguments.workflow, arguments.rows, arguments.results = str(workflow), rows, results
        arguments.output, arguments.seed, arguments.json = output, None, False
        code = run_batch(arguments, sys.stderr, place.registry, place.host, place.stop, place.servers)
        if place.stop:  # the judge must not be asked about half of the pictures
            raise RunFailed("Interrupted. Run the same command again to continue; finished pictures are kept.")
        return code


def _bench(arguments: argparse.Namespace) -> int:
    @contextlib.contextmanager
    def open_place(output: Path) -> Iterator[_BenchBatch]:
        arguments.output = output
        with open_rows_place(arguments) as place:
            yield _BenchBatch(arguments, place)

    out = sys.stdout
    # Output that nodes print must not mix with the table.
    with contextlib.redirect_stdout(sys.stderr):
        return run_bench(arguments, out, open_place)


def _chat(arguments: argparse.Namespace) -> int:
    out = sys.stdout
    # Output that nodes print must not mix with the lines of --json.
    quiet = contextlib.redirect_stdout(sys.stderr) if arguments.json else contextlib.nullcontext()
    with quiet, open_output(arguments.output):
        _, plain = set_up_models(arguments)
        return run_chat(arguments, out, plain)


def _serve(arguments: argparse.Namespace) -> int:
    check_models(arguments)
    out = sys.stdout
    # Scripts read the server's address from standard output. Output of nodes must not mix with it, nor block once the
    # script has stopped reading.
    with contextlib.redirect_stdout(sys.stderr):
        return serve(arguments, out)


def _nodes(arguments: argparse.Namespace) -> int:
    registry, _ = set_up(arguments)
    print(format_nodes(registry, arguments.name, arguments.json))
    return DONE
