"""The commands `uniworld train`, `uniworld data` and `uniworld eval`: what they are called, and how they end."""

from __future__ import annotations

import argparse
import os
import signal
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NoReturn

from .cli_command import DONE, FAILED, MISUSED, Command, Failed, say
from .cli_data import DATA_COMMANDS
from .cli_eval import EVAL_COMMANDS
from .cli_train import TRAIN_COMMANDS

COMMANDS: dict[tuple[str, ...], Command] = {**TRAIN_COMMANDS, **DATA_COMMANDS, **EVAL_COMMANDS}

_EPILOG = "Exit codes: 0 done, 1 it failed or was interrupted, 2 bad usage, configuration or data."


def main(argv: list[str]) -> int:
    """Run one command and return its exit code.

    The same under torchrun, where every process runs it: `torchrun --nproc-per-node 2 -m uniworld train ...`.
    """
    debug = "--debug" in argv
    try:
        words, command = _find(argv)
        arguments = _parser(words, command).parse_args(argv[len(words) :])
        with _terminable():
            return command.run(arguments)
    except _Told as told:
        print(told)
        return DONE
    except KeyboardInterrupt:
        return _ended("Interrupted.", FAILED, debug=False)
    except ValueError as error:
        return _ended(str(error), MISUSED, debug)
    except Failed as error:
        return _ended(str(error), FAILED, debug)
    except Exception as error:
        return _ended(f"{type(error).__name__}: {error} (run again with --debug for details)", FAILED, debug)


@contextmanager
def _terminable() -> Iterator[None]:
    """Within it SIGTERM, which `kill`, containers and schedulers send, ends a command as Ctrl-C does: what is done is kept."""
    if threading.current_thread() is not threading.main_thread():  # others get no signals
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class UsageError(ValueError):
    """The command line cannot be understood."""


class _Told(Exception):
    """Help that was asked for, and nothing else is to be done."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.format_usage()}{self.prog}: error: {message}")


def _find(argv: list[str]) -> tuple[tuple[str, ...], Command]:
    """The command that a command line begins with, the longest: `train plot` before `train`."""
    for length in (2, 1):
        words = tuple(argv[:length])
        if len(words) == length and words in COMMANDS:
            return words, COMMANDS[words]
    group = {words: command for words, command in COMMANDS.items() if words[0] == argv[0]}
    if argv[1:2] in (["-h"], ["--help"]):
        raise _Told(f"usage: uniworld {argv[0]} COMMAND ...\n\n{_table(group)}\n\n{_EPILOG}")
    given = f"There is no command '{argv[0]} {argv[1]}'." if argv[1:] else f"Say what '{argv[0]}' is to do."
    raise UsageError(f"{given} The commands are:\n{_table(group)}")


def _table(commands: Mapping[tuple[str, ...], Command]) -> str:
    return "\n".join(f"  uniworld {' '.join(words):<14}{command.text}" for words, command in commands.items())


def _parser(words: tuple[str, ...], command: Command) -> argparse.ArgumentParser:
    below = {longer: other for longer, other in COMMANDS.items() if longer[:-1] == words}
    epilog = f"Further commands:\n{_table(below)}\n\n{_EPILOG}" if below else _EPILOG
    parser = _Parser(
        prog=f"uniworld {' '.join(words)}",
        description=command.text,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show Python's traceback of an error")
    return parser


def _ended(sentence: str, code: int, debug: bool) -> int:
    """Tell that a command could not be ended as it should, and by which process of several; gives the exit code."""
    if debug:
        traceback.print_exc()
    rank = os.environ.get("RANK", "0")
    say(sentence if rank == "0" else f"process {rank}: {sentence}")
    return code
