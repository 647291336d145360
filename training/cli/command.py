"""A command of the training package, its shared arguments and its progress bars."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ...streams import progress_bar


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        text: one-line description for the help.
        add_arguments: adds its arguments to a parser.
        run: runs it and returns the exit code. A UniWorldError means bad usage, configuration or data.
        prints_result: whether, with these arguments, its only result is what it prints.
    """

    text: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    prints_result: Callable[[argparse.Namespace], bool] = lambda _: False


class Bars:
    """Progress bars on standard error, one for each phase of a command; shown on terminals only."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._name = ""

    def __call__(self, name: str, done: int, total: int | None, known: Mapping[str, Any] | None = None) -> None:
        """Show the progress of a phase.

        Args:
            name: name of the phase; a new name starts a new bar.
            done, total: finished items and their number, None if unknown.
            known: values to show next to the bar, such as the loss.
        """
        if self._bar is None or name != self._name:
            self.close()
            # disable=None shows the bar on terminals only.
            self._bar, self._name = progress_bar(total=total, desc=name, disable=None, dynamic_ncols=True), name
        if known:
            self._bar.set_postfix(known, refresh=False)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Close the current bar."""
        if self._bar is not None:
            self._bar.close()
        self._bar = None

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def is_rank0() -> bool:
    """Return whether this process is rank 0 under torchrun; only that one prints."""
    return os.environ.get("RANK", "0") == "0"


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that select a configuration."""
    parser.add_argument("config", metavar="CONFIG", help="a TOML file, or the name of a preset such as stage1")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.key=value", help="override a setting; may be repeated"
    )
