"""The README's words hold: its Python runs, its commands and files are there."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def side() -> int:
    """Of nano's pictures, in pixels."""
    sys.path.insert(0, str(ROOT / "tests"))
    from workflows.samples import SIDE

    return SIDE


def test_the_python_example_runs_with_nano(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    code, opened = re.subn(
        r"from_pretrained\(\n.*?\n\)", 'from_pretrained("nano", dtype=torch.float32)', code, flags=re.DOTALL
    )
    assert opened == 1
    # What the example says of nano: no T5, and its own size.
    code = code.replace("1024", str(side())).replace('winter.", refs=refs)', 'winter.", refs=refs, use_t5=False)', 1)
    assert code.count("use_t5=False)") == 1
    monkeypatch.chdir(ROOT / "workflows" / "input")
    names: dict[str, Any] = {}
    exec(code.replace("photo.jpg", "shapes.png"), names)
    assert tuple(names["image"].shape) == (1, side(), side(), 3)
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
    from uniworld.nodes.headless.workflow_file import shipped_workflows
    from uniworld.uniworld_core.perception.tasks import TASKS

    shipped = shipped_workflows()
    assert {name for name in shipped if f"`{name}`" not in TEXT} <= {f"perception_{task}" for task in TASKS}
    for task in TASKS:
        assert f"_{task}`" in TEXT


def test_what_it_tells_of_nano_holds() -> None:
    """That the edits are right is tested with the workflows."""
    sys.path.insert(0, str(ROOT / "tests"))
    from uniworld.training.shapes.prompts import with_article
    from workflows.samples import SAMPLES

    edit = SAMPLES["edit"].task
    assert edit.subject is not None
    assert edit.result is not None
    old, new = (f"{thing.colour} {thing.shape}" for thing in (edit.subject, edit.result))
    told = f"the {old} becomes {with_article(new)}"
    assert f"in `workflows/input/{SAMPLES['edit'].pictures[0]}`, {told}" in TEXT
    assert f'--set "UniWorld Condition.prompt={SAMPLES["edit_with_mask"].task.prompt}"' in TEXT
    files = (ROOT / "uniworld_core" / "shipped" / "nano").rglob("*")
    size = sum(file.stat().st_size for file in files if file.is_file())
    assert f"a UniWorld of {round(size / 1e6)} MB" in TEXT


def test_everybody_tells_the_size_that_nano_paints() -> None:
    told = {
        "README.md": [f"at {side()}x{side()} pixels", f"{side()} as `area_side`", f"{side()} in place of 1024"],
        "nodes/web/docs/UniWorldLoader.md": [f"at {side()}x{side()}"],
        "nodes/web/docs/UniWorldEmptyLatent.md": [f"{side()} for nano"],
    }
    for name, sentences in told.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        assert [sentence for sentence in sentences if sentence not in text] == [], name
