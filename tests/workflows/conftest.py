"""Runs each shared workflow once from the command line."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Ran:
    """Files and messages of a run.

    Attributes:
        output: the folder of the results.
        images: what was saved.
        texts: what nodes show in words, by the node's title.
        previews: pictures that nodes show, by the node's title.
        warnings: what nodes warned of.
    """

    code: int
    status: str
    message: str
    output: Path
    images: list[Path]
    texts: dict[str, str]
    previews: dict[str, Path]
    warnings: list[str]


@pytest.fixture(scope="session")
def run_shared(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Ran]:
    """`run_shared("edit", "Prompt.value=Hello.")` returns the result of `uniworld run edit --set ...` in an empty folder."""

    @cache
    def run(name: str, *changes: str) -> Ran:
        from uniworld.__main__ import main

        folder = tmp_path_factory.mktemp(name)
        printed = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
            patch.chdir(folder)
            patch.setattr("tempfile.tempdir", str(folder))  # where previews go
            code = main(["run", name, "--json", *(f"--set={change}" for change in changes)])
        return read(code, [json.loads(line) for line in printed.getvalue().splitlines()], folder, titles(name))

    return run


def titles(name: str) -> dict[str, str]:
    """Return {node id: title} of a shared workflow."""
    file = Path(__file__).resolve().parents[2] / "workflows" / "api" / f"{name}.json"
    return {key: node["_meta"]["title"] for key, node in json.loads(file.read_text(encoding="utf-8")).items()}


def read(code: int, events: list[dict[str, Any]], folder: Path, titles: dict[str, str]) -> Ran:
    last = events[-1]
    outputs = {titles[key]: shown for key, shown in last.get("outputs", {}).items()}
    previews = [
        title for title, shown in outputs.items() if any(one["type"] == "temp" for one in shown.get("images", ()))
    ]
    return Ran(
        code,
        last.get("status", last["event"]),
        last.get("message", ""),
        folder / "output",
        [folder / path for path in last.get("images", ())],
        {title: shown["text"][0] for title, shown in outputs.items() if shown.get("text")},
        dict(zip(previews, map(Path, last.get("previews", ())))),
        last.get("warnings", []),
    )
