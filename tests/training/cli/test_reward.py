"""`uniworld reward serve`: mistakes end before a model is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from uniworld.training.cli import main as cli

pytest.importorskip("aiohttp")


@pytest.mark.parametrize(
    ("arguments", "token", "message"),
    [
        ("nano --port 70000", None, "'70000' is not a whole number from 0 to 65535"),
        ("nano --listen 0.0.0.0", None, "Set UNIWORLD_REWARD_TOKEN to a secret"),
        ("nano", "short", "UNIWORLD_REWARD_TOKEN is too short"),
        ("none", None, "The judge's folder 'none' does not exist"),
        ("nano --answers yes", None, "two or more different words"),
        ("nano --template none.txt", None, "none.txt does not exist"),
        ("nano --device cuda:99", None, "cuda:99"),
    ],
)
def test_mistakes_end_with_2(
    arguments: str,
    token: str | None,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    if token is None:
        monkeypatch.delenv("UNIWORLD_REWARD_TOKEN", raising=False)
    else:
        monkeypatch.setenv("UNIWORLD_REWARD_TOKEN", token)
    assert cli.main(["reward", "serve", *arguments.split()]) == 2
    assert message in capsys.readouterr().err
