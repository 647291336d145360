"""The folder of a run's pictures has exactly the files that the published scorers walk through.

The published scripts themselves were run on such folders, with the same replies: they make the same requests to the judge
and compute the same numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from uniworld.__main__ import main

from .folders import GENEVAL, WISE_IDS, gedit, geneval, wise


def node(class_type: str, title: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs, "_meta": {"title": title}}


PROMPT = {
    "3": node("PrimitiveStringMultiline", "Text", value="a"),
    "4": node("PreviewAny", "Show", source=["3", 0]),
}
EDIT = {
    "1": node("LoadImage", "Picture", image="shapes.png"),
    "2": node("SaveImage", "Save", images=["1", 0], filename_prefix="x"),
    **PROMPT,
}
PAINT = {
    "1": node("SeededNoise", "Paint", seed=1),
    "2": node("SaveImage", "Save", images=["1", 0], filename_prefix="x"),
    **PROMPT,
}


PACK = """
import torch

class SeededNoise:
    RETURN_TYPES, FUNCTION = ("IMAGE",), "run"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"seed": ("INT", {"default": 0, "max": 2**64 - 1})}}

    def run(self, seed):
        return (torch.rand(1, 8, 8, 3, generator=torch.Generator().manual_seed(seed)),)

NODE_CLASS_MAPPINGS = {"SeededNoise": SeededNoise}
"""


@pytest.fixture
def export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, dict[str, Any]], Path]:
    """Make the pictures of a benchmark and return their folder."""
    monkeypatch.chdir(tmp_path)
    pack = tmp_path / "pack"
    pack.mkdir()
    (pack / "__init__.py").write_text(PACK)

    def make(name: str, workflow: dict[str, Any]) -> Path:
        Path("w.json").write_text(json.dumps(workflow))
        command = ["bench", name, "--data", "data", "--workflow", "w.json", "--out", "run", "--pack", str(pack)]
        assert main([*command, "--bind", "prompt=Text.value"]) == 1  # nothing is judged
        return tmp_path / "run" / "pictures"

    return make


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_gedit_has_the_sources_for_the_judge_beside_the_results(
    export: Callable[[str, dict[str, Any]], Path], tmp_path: Path
) -> None:
    pytest.importorskip("pyarrow")
    names = gedit(tmp_path / "data")
    folder = export("gedit", EDIT)
    assert files(folder) == sorted(f"{name}{ending}.png" for name in names for ending in ("", "_SRCIMG"))
    for name in names:
        with Image.open(folder / f"{name}.png") as result, Image.open(folder / f"{name}_SRCIMG.png") as source:
            # The workflow edits input_image_raw, and the judge sees input_image.
            assert (result.size, source.size) == ((60, 40), (30, 20))
            assert result.getpixel((0, 0)) == source.getpixel((0, 0))


def test_geneval_has_the_metadata_of_each_prompt(export: Callable[[str, dict[str, Any]], Path], tmp_path: Path) -> None:
    names = geneval(tmp_path / "data")
    folder = export("geneval", PAINT)
    numbers = [f"{number:05d}" for number in range(len(GENEVAL))]
    assert files(folder) == sorted([f"{name}.png" for name in names] + [f"{one}/metadata.jsonl" for one in numbers])
    assert [json.loads((folder / one / "metadata.jsonl").read_text()) for one in numbers] == list(GENEVAL)
    assert len({(folder / f"{name}.png").read_bytes() for name in names}) == len(names)  # each with a seed of its own


def test_wise_has_the_ids(export: Callable[[str, dict[str, Any]], Path], tmp_path: Path) -> None:
    wise(tmp_path / "data")
    assert files(export("wise", PAINT)) == sorted(f"{number}.png" for ids in WISE_IDS.values() for number in ids)
