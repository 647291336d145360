"""What a command of the training package is: its words, its arguments, what it does, and how it shows that it goes on."""

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
        text: what it does, for the help.
        add_arguments: adds its arguments to a parser.
        run: does it, and gives the exit code. A UniWorldError is bad usage, configuration or data.
        prints_result: whether what it prints, with these arguments, is all that it does.
    """

    text: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    prints_result: Callable[[argparse.Namespace], bool] = lambda _: False


class Bars:
    """Progress bars on a terminal's standard error, one for each thing that is done in turn."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._name = ""

    def __call__(self, name: str, done: int, total: int | None, known: Mapping[str, Any] | None = None) -> None:
        """Show that `done` of `total` (None: not known) are done of what is called `name`, and what is known of it."""
        if self._bar is None or name != self._name:
            self.close()
            # disable=None shows it on terminals alone.
            self._bar, self._name = progress_bar(total=total, desc=name, disable=None, dynamic_ncols=True), name
        if known:
            self._bar.set_postfix(known, refresh=False)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """End the bar that is shown."""
        if self._bar is not None:
            self._bar.close()
        self._bar = None

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def is_main() -> bool:
    """Whether this is the process that speaks, of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def add_config(parser: argparse.ArgumentParser) -> None:
    """The arguments that name a configuration."""
    parser.add_argument("config", metavar="CONFIG", help="a TOML file, or the name of a preset such as stage1")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.key=value", help="give a setting another value"
    )
