"""Number options of all commands: NaN, infinity and absurd sizes are refused before anything is loaded."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from uniworld.__main__ import main
from uniworld.command_line import UsageError, finite_number, whole_number
from uniworld.nodes.headless.cli import build_parser
from uniworld.training.cli import main as cli


def typed_options() -> list[tuple[argparse.ArgumentParser, argparse.Action]]:
    """Return the options of all commands whose values are parsed, except for paths, with their parsers."""
    parsers: list[Any] = [build_parser(), *(cli._parser(words, found) for words, found in cli.COMMANDS.items())]
    for parser in parsers:  # grows: subcommands have subcommands of their own
        choices = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        parsers += [one for named in choices for one in named.values()]
    return [(parser, one) for parser in parsers for one in parser._actions if one.type not in (None, Path)]


def test_every_command_refuses_absurd_numbers() -> None:
    options = typed_options()
    names = {one.option_strings[0] for _, one in options}
    assert names >= {"--steps", "--guidance", "--history", "--memory", "--alpha", "--timeout", "--seed"}
    for parser, one in options:
        for text in ("9" * 400, "9" * 5000, "nan", "inf", "-inf", "1e999", ""):
            with pytest.raises(UsageError) as caught:
                parser.parse_args([f"{one.option_strings[0]}={text}"])
            sentence = str(caught.value).splitlines()[-1]
            assert f"argument {one.option_strings[0]}: {text[:70]!r}"[:60] in sentence, (parser.prog, sentence)
            assert len(sentence) < 220


@pytest.mark.parametrize(
    ("parse", "good", "bad"),
    [
        (whole_number(1, 1000), {"1": 1, "1000": 1000, "028": 28}, ("0", "1001", "-1", "2.0", "1e3", " 5", "x")),
        (finite_number(0, 100), {"0": 0.0, "100": 100.0, "3.5": 3.5, "1e-3": 1e-3}, ("-0.1", "100.1", "x")),
    ],
)
def test_bounds_are_included(parse: Callable[[str], float], good: dict[str, float], bad: tuple[str, ...]) -> None:
    assert {text: parse(text) for text in good} == good
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match="number from"):
            parse(text)


@pytest.mark.parametrize(
    "command",
    [
        ["chat", "--guidance", "inf"],
        ["eval", "shapes", "--steps", "9" * 400],
        ["serve", "--memory", "9" * 300],
        ["eval", "claims", "--seeds", "0," + "9" * 400],
        ["train", "merge", "a", "b", "c", "--shares", "x" * 1000],
    ],
)
def test_exit_code_and_length(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()[-1]) < 250
