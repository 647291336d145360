"""Dispatch of the commands `uniworld train`, `convert`, `data`, `eval`, `lora` and `reward`."""

from __future__ import annotations

import argparse
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ...command_line import DONE, Parser, UsageError, checked_exit_code, exit_code_of
from .command import Command
from .convert import CONVERT_COMMANDS
from .data import DATA_COMMANDS
from .eval import EVAL_COMMANDS
from .lora import LORA_COMMANDS
from .reward import REWARD_COMMANDS
from .train import TRAIN_COMMANDS

COMMANDS: dict[tuple[str, ...], Command] = {
    **TRAIN_COMMANDS,
    **CONVERT_COMMANDS,
    **DATA_COMMANDS,
    **EVAL_COMMANDS,
    **LORA_COMMANDS,
    **REWARD_COMMANDS,
}

_EPILOG = "Exit codes: 0 success, 1 failed or interrupted, 2 bad usage, configuration or data."


def main(argv: list[str]) -> int:
    """Run one command and return its exit code.

    Under torchrun every process calls it: `torchrun --nproc-per-node 2 -m uniworld train ...`.
    """
    rank = os.environ.get("RANK", "0")
    prefix = "" if rank == "0" else f"rank {rank}: "
    return exit_code_of(lambda: _run(argv), "--debug" in argv, prefix=prefix)


def _run(argv: list[str]) -> int:
    if argv[1:2] in (["-h"], ["--help"]) and (argv[0],) not in COMMANDS:
        print(f"usage: uniworld {argv[0]} COMMAND ...\n\n{_table(_group(argv[0]))}\n\n{_EPILOG}")
        return DONE
    words, command = _find(argv)
    arguments = _parser(words, command).parse_args(argv[len(words) :])
    with _terminable():
        code = command.run(arguments)
    return checked_exit_code(code, command.prints_result(arguments))


@contextmanager
def _terminable() -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C within the block, so that finished work is kept.

    `kill`, containers and schedulers send SIGTERM.
    """
    if threading.current_thread() is not threading.main_thread():  # Python allows signal handlers there only
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# Commands that were renamed, with the message to print.
_MOVED = {
    ("train", "convert"): "`uniworld train convert QWEN FLUX TARGET` is now `uniworld convert QWEN TARGET --flux FLUX`."
}


def _find(argv: list[str]) -> tuple[tuple[str, ...], Command]:
    """Return the longest command that the command line starts with: `train plot` rather than `train`."""
    if tuple(argv[:2]) in _MOVED:
        raise UsageError(_MOVED[argv[0], argv[1]])
    for length in (2, 1):
        words = tuple(argv[:length])
        if len(words) == length and words in COMMANDS:
            return words, COMMANDS[words]
    problem = f"Unknown command '{argv[0]} {argv[1]}'." if argv[1:] else f"'{argv[0]}' needs a command."
    raise UsageError(f"{problem} The commands are:\n{_table(_group(argv[0]))}")


def _group(word: str) -> dict[tuple[str, ...], Command]:
    return {words: command for words, command in COMMANDS.items() if words[0] == word}


def _table(commands: Mapping[tuple[str, ...], Command]) -> str:
    return "\n".join(f"  uniworld {' '.join(words):<14}{command.text}" for words, command in commands.items())


def _parser(words: tuple[str, ...], command: Command) -> argparse.ArgumentParser:
    subcommands = {longer: other for longer, other in COMMANDS.items() if longer[:-1] == words}
    epilog = f"Subcommands:\n{_table(subcommands)}\n\n{_EPILOG}" if subcommands else _EPILOG
    parser = Parser(
        prog=f"uniworld {' '.join(words)}",
        description=command.text,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="print the Python traceback of an error")
    return parser
