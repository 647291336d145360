"""The README's words hold: its Python runs, its commands and files are there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_example_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    code, opened = re.subn(
        r"from_pretrained\(\n.*?\n\)", 'from_pretrained("tiny", dtype=torch.float32)', code, flags=re.DOTALL
    )
    assert opened == 1
    code = code.replace("height=1024, width=1024", "height=128, width=160")
    monkeypatch.chdir(ROOT / "workflows" / "input")
    names: dict[str, Any] = {}
    exec(code.replace("photo.jpg", "cat.jpg"), names)
    assert tuple(names["image"].shape) == (1, 128, 160, 3)
    assert "tensor([" in capsys.readouterr().out


def test_every_command_it_names_exists() -> None:
    from uniworld.__main__ import CHECKOUT_COMMANDS, COMMANDS

    named = set(re.findall(r"(?:`|    )(?:uniworld|python3 \.) ([a-z]+)", TEXT))
    assert {"run", "check", "nodes", "test"} <= named
    assert named <= {*COMMANDS, *CHECKOUT_COMMANDS}


def test_every_file_it_links_is_there() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (ROOT / link).is_file(), link


def test_every_workflow_it_names_ships() -> None:
    from uniworld.uniworld_core.perception import TASKS

    shipped = {path.stem for path in (ROOT / "workflows").glob("*.json")}
    assert {name for name in shipped if f"`{name}`" not in TEXT} <= {f"perception_{task}" for task in TASKS}
    for task in TASKS:
        assert f"_{task}`" in TEXT
