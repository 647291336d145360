"""How a command of `uniworld` is read and how it ends: the parser, the exit codes, a sentence for whatever was raised.

Imports nothing that is installed, so that it can say that something is not.
"""

from __future__ import annotations

import argparse
import errno
import json
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from .streams import lost, say
from .uniworld_core.errors import RunFailed, UniWorldError

# Exit codes: done; failed on the way, interrupted or a bug; bad usage, or a bad workflow, configuration or data.
DONE, FAILED, MISUSED = 0, 1, 2

LastLine = Callable[[str, str, list[str]], None]

_MAX_LENGTH = 1000
# torch's errors that are RuntimeErrors and tell of the device or of the network. By name, as torch need not be there.
_OF_THE_MACHINE = {"OutOfMemoryError", "AcceleratorError", "DistError"}
# What the system says of a path that nothing can have, whatever is first to ask for it.
_NO_NAMES = {errno.ENAMETOOLONG, errno.ELOOP}


class UsageError(UniWorldError):
    """The command line cannot be understood."""


class Parser(argparse.ArgumentParser):
    """A parser that raises `UsageError`, and takes an option by its whole name only: the set-up of a checkout looks for it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.format_usage()}{self.prog}: error: {message}")


def conclude(command: Callable[[], int], debug: bool, last_line: LastLine | None = None, speaker: str = "") -> int:
    """Run a command and return its exit code. What it raises becomes a sentence on standard error.

    Args:
        debug: print the traceback as well.
        last_line: writes the last line of --json from an event ("invalid" or "error"), the sentence and its problems.
        speaker: stands before the sentence: which of several processes it comes from.
    """
    try:
        return command()
    except (Exception, KeyboardInterrupt) as error:
        misused = _is_misuse(error)
        sentence = _sentence(error, debug)
        if debug and not isinstance(error, (KeyboardInterrupt, UsageError)):
            traceback.print_exc()
        say(speaker + sentence)
        if last_line is not None:
            problems = error.problems if isinstance(error, UniWorldError) else [sentence]
            last_line("invalid" if misused else "error", sentence, problems)
        return MISUSED if misused else FAILED


def _is_misuse(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in _NO_NAMES
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
    return unexpected(error, debug)


def unexpected(error: BaseException, debug: bool) -> str:
    """What to say of an exception that is not the user's fault: that of the machine, or a bug."""
    if is_bug(error):
        note = bug_note("above") if debug else bug_note(first="run again with --debug and ")
        return f"uniworld failed: {described(error)}. {note}"
    return described(error) + ("" if debug else " (run again with --debug for details)")


def is_bug(error: BaseException) -> bool:
    """Whether an exception is this package's own fault: not the user's, and not the machine's (memory, disk, installation)."""
    if isinstance(error, (UniWorldError, OSError, MemoryError, ImportError, KeyboardInterrupt)):
        return False
    return _OF_THE_MACHINE.isdisjoint(kind.__name__ for kind in type(error).__mro__)


def bug_note(where: str = "", first: str = "") -> str:
    """What to do about a bug, as a sentence. No tracker of this package is named anywhere, so none is named here.

    Args:
        where: the traceback is found.
        first: what has to be done before.
    """
    return f"This is a bug of uniworld: {first}report it to its developers with the traceback {where}".rstrip() + "."


def described(error: BaseException) -> str:
    """Type and text of an exception on one line, without a full stop; whole dumps are cut off."""
    text = " ".join(str(error).split()).rstrip(".")
    whole = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return whole if len(whole) <= _MAX_LENGTH else whole[: _MAX_LENGTH - 3] + "..."


def code_with_output(code: int, output_is_result: bool) -> int:
    """The exit code of a command when it is taken into account whether its output has arrived.

    Args:
        output_is_result: what it printed is all that it was to do.
    """
    error = lost(sys.stdout)
    if error is None:
        return code
    say(f"Standard output could not be written: {error.strerror}. What was printed is incomplete.")
    return FAILED if code == DONE and output_is_result else code


def print_last_line(event: str, sentence: str, problems: list[str]) -> None:
    """The last line of --json, where nothing else has been printed."""
    print(json.dumps({"event": event, "message": sentence, "problems": problems}), flush=True)
