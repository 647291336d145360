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
