"""The shared workflows: both forms say the same, every node and input exists, and all of them run."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
NAMES = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def editor(name: str) -> dict[str, Any]:
    return read(ROOT / "workflows" / f"{name}.json")


def api(name: str) -> dict[str, Any]:
    return read(ROOT / "workflows" / "api" / f"{name}.json")


def classes() -> dict[str, type]:
    from uniworld import NODE_CLASS_MAPPINGS
    from uniworld.nodes.headless import builtin_nodes

    return NODE_CLASS_MAPPINGS | builtin_nodes.NODE_CLASS_MAPPINGS


def test_every_promised_workflow_is_there() -> None:
    from uniworld.uniworld_core.perception import TASKS

    promised = {"text_to_image", "edit", "multi_reference", "understand", "auto_route", "edit_with_mask"}
    assert set(NAMES) == promised | {f"perception_{task}" for task in TASKS}


@pytest.mark.parametrize("name", NAMES)
def test_both_forms_are_one_workflow(name: str) -> None:
    from uniworld.nodes.headless.registry import load_registry
    from uniworld.nodes.headless.workflow_file import read_workflow

    made = read_workflow(ROOT / "workflows" / f"{name}.json", load_registry()).prompt
    assert {key: (node["class_type"], node["inputs"]) for key, node in made.items()} == {
        key: (node["class_type"], node["inputs"]) for key, node in api(name).items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_every_node_and_input_is_real(name: str) -> None:
    from workflows.editor_form import declared, is_widget

    known = classes()
    for node in api(name).values():
        inputs = dict(declared(known[node["class_type"]]))
        assert set(node["inputs"]) <= set(inputs)
        required = known[node["class_type"]].INPUT_TYPES().get("required", {})
        assert set(required) <= set(node["inputs"])
        for key, value in node["inputs"].items():
            spec = inputs[key]
            if isinstance(spec[0], list) and is_widget(spec) and node["class_type"] != "LoadImage":
                assert value in spec[0]


@pytest.mark.parametrize("name", NAMES)
def test_the_builder_makes_what_is_committed(name: str) -> None:
    from workflows import build

    graph = next(graph for graph in build.all_graphs() if graph.name == name)
    assert graph.editor() == editor(name)
    assert graph.api() == api(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_thumbnail_lies_beside(name: str) -> None:
    with Image.open(ROOT / "workflows" / f"{name}.jpg") as thumbnail:
        assert max(thumbnail.size) <= 800
        assert min(thumbnail.size) >= 200


@pytest.mark.parametrize("name", NAMES)
def test_nodes_do_not_overlap_and_lie_in_their_groups(name: str) -> None:
    workflow = editor(name)
    boxes = [(*node["pos"], *node["size"]) for node in workflow["nodes"] if node["type"] != "MarkdownNote"]
    for i, (x, y, w, h) in enumerate(boxes):
        inside = [
            g["bounding"]
            for g in workflow["groups"]
            if g["bounding"][0] <= x and x + w <= g["bounding"][0] + g["bounding"][2]
        ]
        assert any(gy <= y - 30 and y + h <= gy + gh for _, gy, _, gh in inside)
        for other_x, other_y, other_w, other_h in boxes[i + 1 :]:
            apart = x + w <= other_x or other_x + other_w <= x or y + h <= other_y - 30 or other_y + other_h <= y - 30
            assert apart


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_from_the_command_line(name: str, run_shared: Callable[[str], Any]) -> None:
    ran = run_shared(name)
    assert ran.code == 0, ran.message
    assert ran.status == "success"
    wanted = [node["inputs"]["filename_prefix"] for node in api(name).values() if node["class_type"] == "SaveImage"]
    assert [path.relative_to(ran.output).as_posix() for path in ran.images] == [f"{one}_00001_.png" for one in wanted]


def test_the_builder_draws_the_pictures_that_are_committed() -> None:
    from workflows import build

    for name, drawn in build.sample_pictures().items():
        with Image.open(build.INPUT / name) as picture:
            committed = np.asarray(picture.convert("RGB"), np.float32)
        # Another Pillow may round the rim of a shape otherwise.
        assert np.abs(committed - np.asarray(drawn, np.float32)).mean() < 0.2, name


def test_every_workflow_loads_its_samples_pictures() -> None:
    from workflows.samples import SAMPLES

    assert set(SAMPLES) == set(NAMES)
    for name, sample in SAMPLES.items():
        loaded = [node["inputs"]["image"] for node in api(name).values() if node["class_type"] == "LoadImage"]
        assert loaded == list(sample.pictures)


def test_every_prompt_is_in_words_that_nano_was_trained_on() -> None:
    from uniworld.training.shapes.prompts import WORDINGS
    from workflows.samples import SAMPLES

    for name, sample in SAMPLES.items():
        task = sample.task
        if task.kind == "question":
            continue  # their wordings are in the functions that ask
        wordings = [re.escape(words).replace(r"\{", "{").replace(r"\}", "}") for words in WORDINGS[task.kind]]
        patterns = [re.sub(r"\{\w+\}", ".+", words) for words in wordings]
        assert any(re.fullmatch(pattern, task.prompt, re.IGNORECASE) for pattern in patterns), (name, task.prompt)
