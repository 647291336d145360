"""What a command of the training package is: its words, its arguments, and what it does."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

# Exit codes, as those of the other commands.
DONE, FAILED, MISUSED = 0, 1, 2


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        text: what it does, for the help.
        add_arguments: adds its arguments to a parser.
        run: does it, and gives the exit code. A ValueError is bad usage, configuration or data.
    """

    text: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def add_config(parser: argparse.ArgumentParser) -> None:
    """The arguments that name a configuration."""
    parser.add_argument("config", metavar="CONFIG", help="a TOML file, or the name of a preset: stage1, stage2")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.key=value", help="give a setting another value"
    )
