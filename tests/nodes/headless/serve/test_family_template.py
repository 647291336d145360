"""A template of another family runs on the server, and its model is in the loader's list."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from uniworld.nodes.headless.registry.registry import Registry
from uniworld.nodes.headless.workflow.file import find_workflow, read_workflow

PICTURES = Path(__file__).resolve().parents[4] / "workflows" / "input"


@pytest.mark.parametrize(("name", "model"), [("kontext_edit", "kontext_folder"), ("qwen_edit", "qwen_edit")])
def test_a_family(
    start: Callable[..., Any], registry: Registry, request: Any, tmp_path: Path, name: str, model: str
) -> None:
    folder: Path = request.getfixturevalue(model)
    live = start(models=folder.parents[1])
    loader = live.get("/object_info/UniWorldLoader").json["UniWorldLoader"]["input"]["required"]
    assert loader["checkpoint"][0][0] == folder.name
    shutil.copy(PICTURES / "cat.jpg", tmp_path / "input")
    prompt = read_workflow(find_workflow(name), registry).prompt
    by_class = {one["class_type"]: one["inputs"] for one in prompt.values()}
    by_class["UniWorldSampler"]["steps"] = 1
    by_class["UniWorldLoader"]["dtype"] = "float32"
    entry = live.run(prompt)
    assert entry["status"]["status_str"] == "success", entry["status"]
    assert len(list((tmp_path / "output").rglob("*.png"))) == 1


def test_unipic(start: Callable[..., Any], registry: Registry, unipic: Path, tmp_path: Path) -> None:
    (tmp_path / "models" / "unipic").mkdir(parents=True)
    (tmp_path / "models" / "unipic" / "Skywork-UniPic-1.5B").symlink_to(unipic, target_is_directory=True)
    live = start(models=tmp_path / "models")
    shutil.copy(PICTURES / "cat.jpg", tmp_path / "input")
    for name in ("unipic_text_to_image", "unipic_edit", "unipic_understand"):
        prompt = read_workflow(find_workflow(name), registry).prompt
        by_class = {one["class_type"]: one["inputs"] for one in prompt.values()}
        by_class["UniWorldLoader"]["dtype"] = "float32"
        if name == "unipic_understand":
            by_class["UniWorldUnderstand"]["max_new_tokens"] = 2
        else:
            by_class["UniWorldUniPicSampler"]["iterations"] = 1
        entry = live.run(prompt)
        assert entry["status"]["status_str"] == "success", (name, entry["status"])
    (answer,) = entry["outputs"].values()
    assert answer["text"]
    assert len(list((tmp_path / "output").rglob("*.png"))) == 2
