"""The example client queues a workflow on the server and downloads the picture."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from PIL import Image

from .conftest import Live

EXAMPLE = Path(__file__).resolve().parents[4] / "docs" / "examples" / "queue_prompt.py"


@pytest.mark.slow
def test_the_example_downloads_a_picture(live: Live, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = tmp_path / "result.png"
    runpy.run_path(str(EXAMPLE))["main"](
        "Make the green triangle yellow.", str(result), f"http://127.0.0.1:{live.port}"
    )
    assert Image.open(result).size == (128, 128)
    assert capsys.readouterr().out.endswith(f"Saved {result}\n")
