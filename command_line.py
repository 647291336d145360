"""Command-line parsing, exit codes and error messages.

Imports no third-party package, so that a missing one can be reported.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import json
import math
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from .streams import say, write_error
from .uniworld_core.errors import RunFailed, UniWorldError, shown

# Exit codes: success; a failure at run time, an interrupt or a bug; bad usage, or an invalid workflow, configuration or
# data.
DONE, FAILED, MISUSED = 0, 1, 2

LastLine = Callable[[str, str, list[str]], None]

MAX_SEED = 2**64 - 1  # torch's range

_MAX_LENGTH = 1000
# The folders of this package's code. Its virtual environment may be beside them.
_OWN = tuple(Path(__file__).with_name(name) for name in ("uniworld_core", "nodes", "training"))
# torch's RuntimeErrors about the device or the network. Matched by name, because torch may not be installed.
_ENVIRONMENT_ERRORS = {"OutOfMemoryError", "AcceleratorError", "DistError"}
# These errors mean an invalid path, whichever call reports them first.
_INVALID_PATH_ERRORS = {errno.ENAMETOOLONG, errno.ELOOP}


class UsageError(UniWorldError):
    """The command line is invalid."""


class Parser(argparse.ArgumentParser):
    """A parser that raises `UsageError` and accepts no abbreviated options: `bootstrap.py` matches options by name."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Reject unknown arguments here: argparse would report those of a subcommand with the usage of its parent."""
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            near = difflib.get_close_matches(
                unknown[0].partition("=")[0], self._option_string_actions, n=1, cutoff=0.75
            )
            hint = f"Did you mean {near[0]}?" if near else f"Run `{self.prog} --help` for the options."
            self.error(f"unrecognized arguments: {' '.join(unknown)}. {hint}")
        return namespace, unknown

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.format_usage()}{self.prog}: error: {message}")


def whole_number(low: int = 0, high: int = 10**9) -> Callable[[str], int]:
    """Return the `type` of an option that takes a whole number from `low` to `high`."""

    def parse(text: str) -> int:
        # Longer texts are refused before `int`, which raises a ValueError of its own for thousands of digits.
        if not text.isdecimal() or len(text) > 20 or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{shown(text)} is not a whole number from {low} to {high}")
        return int(text)

    return parse


def finite_number(low: float, high: float) -> Callable[[str], float]:
    """Return the `type` of an option that takes a number from `low` to `high`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:  # also refuses NaN
            raise argparse.ArgumentTypeError(f"{shown(text)} is not a number from {low:g} to {high:g}")
        return value

    return parse


def exit_code_of(command: Callable[[], int], debug: bool, last_line: LastLine | None = None, prefix: str = "") -> int:
    """Run a command and return its exit code. An exception is printed to standard error as one message.

    Args:
        debug: print the traceback as well.
        last_line: writes the last line of --json from an event ("invalid" or "error"), the message and its problems.
        prefix: printed before the message, such as the rank of a distributed process.
    """
    try:
        with _short_warnings():
            return command()
    except (Exception, KeyboardInterrupt) as error:
        misused = _is_misuse(error)
        sentence = _sentence(error, debug)
        if debug and not isinstance(error, (KeyboardInterrupt, UsageError)):
            traceback.print_exc()
        say(prefix + sentence)
        if last_line is not None:
            problems = error.problems if isinstance(error, UniWorldError) else [sentence]
            last_line("invalid" if misused else "error", sentence, problems)
        return MISUSED if misused else FAILED


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Within it, this package's warnings are printed without the place in its code, which means nothing to users."""
    before = warnings.formatwarning

    def formatted(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if category is UserWarning and any(Path(filename).is_relative_to(folder) for folder in _OWN):
            return f"Warning: {message}\n"
        return before(message, category, filename, lineno, line)

    warnings.formatwarning = formatted
    try:
        yield
    finally:
        warnings.formatwarning = before


def _is_misuse(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in _INVALID_PATH_ERRORS
    if type(error) is RuntimeError and str(error).startswith("Symlink loop"):  # pathlib's ELOOP before Python 3.13
        return True
    return isinstance(error, UniWorldError) and not isinstance(error, RunFailed)


def _sentence(error: BaseException, debug: bool) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "Interrupted."
    if isinstance(error, UniWorldError):
        return str(error)
    if _is_misuse(error):
        what = f"'{error.filename}' cannot be used: {error.strerror}" if isinstance(error, OSError) else str(error)
        return f"{what}. Check the path."
    return unexpected_error(error, debug)


def unexpected_error(error: BaseException, debug: bool) -> str:
    """Return the message for an exception that is not the user's fault: a failure of the machine, or a bug."""
    if is_bug(error):
        note = bug_note("above") if debug else bug_note(first="run again with --debug and ")
        return f"uniworld failed: {describe_error(error)}. {note}"
    return describe_error(error) + ("" if debug else " (run again with --debug for details)")


def is_bug(error: BaseException) -> bool:
    """Whether an exception is a bug of this package, rather than a user error or a failure of memory, disk or installation."""
    if isinstance(error, (UniWorldError, OSError, MemoryError, ImportError, KeyboardInterrupt)):
        return False
    return _ENVIRONMENT_ERRORS.isdisjoint(kind.__name__ for kind in type(error).__mro__)


def bug_note(where: str = "", first: str = "") -> str:
    """Return a sentence that asks the user to report a bug. It names no issue tracker, since none is published yet.

    Args:
        where: where the traceback is, such as "above".
        first: what to do before reporting, such as "run again with --debug and ".
    """
    return f"This is a bug of uniworld: {first}report it to its developers with the traceback {where}".rstrip() + "."


def describe_error(error: BaseException) -> str:
    """Return the type and message of an exception on one line, without a full stop, truncated to `_MAX_LENGTH`."""
    message = " ".join(str(error).split()).rstrip(".")
    line = f"{type(error).__name__}: {message}" if message else type(error).__name__
    return line if len(line) <= _MAX_LENGTH else line[: _MAX_LENGTH - 3] + "..."


def checked_exit_code(code: int, output_is_result: bool) -> int:
    """Return a command's exit code, or FAILED if its result could not be printed.

    Args:
        output_is_result: printing was the command's purpose, so that lost output is a failure.
    """
    error = write_error(sys.stdout)
    if error is None:
        return code
    say(f"Standard output could not be written: {error.strerror}. The output is incomplete.")
    return FAILED if code == DONE and output_is_result else code


def print_last_line(event: str, sentence: str, problems: list[str]) -> None:
    """Print the last line of --json, for a command that has printed nothing else."""
    print(json.dumps({"event": event, "message": sentence, "problems": problems}), flush=True)
