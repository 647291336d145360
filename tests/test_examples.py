"""Every example in docs/examples runs, with the shipped nano."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from uniworld.__main__ import main
from uniworld.nodes import host
from uniworld.nodes.headless.storage import folders

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "docs" / "examples"
SHAPES = ROOT / "workflows" / "input" / "shapes.png"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run the test in an empty folder, and restore the host and folders that commands install."""
    before = folders.current()
    monkeypatch.chdir(tmp_path)
    yield
    folders.install(before)
    host.install(None)


def color_at(picture: Path, x: int, y: int) -> tuple[int, ...]:
    return Image.open(picture).convert("RGB").getpixel((x, y))  # type: ignore[return-value]


def test_every_example_is_tested_and_listed() -> None:
    files = {file.relative_to(ROOT).as_posix() for file in EXAMPLES.rglob("*") if file.suffix in (".py", ".jsonl")}
    listed = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert len(files) == 4
    assert {file for file in files if f"| `{file}` |" not in listed} == set()


@pytest.mark.slow
def test_a_picture_is_edited(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = runpy.run_path(str(EXAMPLES / "edit_picture.py"))
    result = tmp_path / "result.png"
    example["main"](str(SHAPES), "Make the green triangle yellow.", str(result))
    red, green, blue = color_at(result, 32, 100)
    assert min(red, green) > blue + 60, "the triangle is yellow"
    assert capsys.readouterr().out.splitlines() == [f"Saved {result}", "3"]


@pytest.mark.slow
def test_the_rows_of_the_batch_example_run(tmp_path: Path) -> None:
    rows = ["--rows", str(EXAMPLES / "rows.jsonl"), "--results", str(tmp_path / "rows.results.jsonl")]
    assert main(["batch", "edit", *rows]) == 0
    made = sorted(file.relative_to(tmp_path / "output" / "rows").parts[0] for file in tmp_path.rglob("*.png"))
    assert made == ["white", "yellow"]


def test_the_example_pack_has_its_node(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nodes", "ExampleBrighten", "--pack", str(EXAMPLES / "brighten_pack")]) == 0
    assert "amount" in capsys.readouterr().out
