"""The shared workflows: both forms agree, all nodes and inputs exist, and every workflow runs."""

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
NAMES = sorted(path.stem for path in (ROOT / "workflows" / "api").glob("*.json"))


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def editor(name: str) -> dict[str, Any]:
    return read(file(name))


def file(name: str) -> Path:
    from workflows.catalog import CATALOG

    return ROOT / "workflows" / f"{CATALOG[name].file}.json"


def api(name: str) -> dict[str, Any]:
    return read(ROOT / "workflows" / "api" / f"{name}.json")


def classes() -> dict[str, type]:
    from uniworld import NODE_CLASS_MAPPINGS
    from uniworld.nodes.headless.builtin import nodes as builtin_nodes

    return NODE_CLASS_MAPPINGS | builtin_nodes.NODE_CLASS_MAPPINGS


def test_every_promised_workflow_is_there() -> None:
    from uniworld.uniworld_core.perception.tasks import TASKS

    promised = {"text_to_image", "edit", "multi_reference", "understand", "chat", "auto_route", "edit_with_mask"}
    assert set(NAMES) == promised | {f"perception_{task}" for task in TASKS}
    native = {"native_edit", "native_multi_reference", "native_lora"}
    there = {path.name for path in (ROOT / "workflows").glob("*.json")}
    families = {"kontext_edit", "qwen_edit", "qwen_multi_reference"}
    families |= {"unipic_text_to_image", "unipic_edit", "unipic_understand"}
    assert there == {file(name).name for name in [*NAMES, *native, *families]}


@pytest.mark.parametrize("name", NAMES)
def test_a_short_name_and_the_name_of_the_file_find_one_workflow(name: str) -> None:
    from uniworld.nodes.headless.workflow.file import find_workflow

    for said in (name, f"{name}.json", f"workflows/{name}.json", file(name).stem, file(name).name):
        assert find_workflow(said) == file(name)
    assert find_workflow(f"api/{name}") == ROOT / "workflows" / "api" / f"{name}.json"


def test_cards_are_in_the_order_in_which_people_try_them_and_say_what_they_do() -> None:
    from uniworld.nodes.headless.workflow.shipped import shipped

    cards = [card for card in shipped().values() if not card.needs_comfyui and not card.needs_model]
    assert [card.name for card in cards[:3]] == ["edit", "text_to_image", "multi_reference"]
    assert all(card.name.startswith("perception") for card in cards[-9:])
    for card in cards:
        assert card.file.stem.endswith(f" {card.title}")
        assert card.description.endswith(".")
        assert len(card.description) <= 90, "two lines of a card"


@pytest.mark.parametrize("name", NAMES)
def test_the_editor_misses_no_model(name: str) -> None:
    """The editor looks for a workflow's models as single files. The real weights are folders, so it would report them."""
    assert "models" not in editor(name)
    assert not any("models" in node["properties"] for node in editor(name)["nodes"])


@pytest.mark.parametrize("name", NAMES)
def test_both_forms_are_one_workflow(name: str) -> None:
    from uniworld.nodes.headless.registry.registry import load_registry
    from uniworld.nodes.headless.workflow.file import read_workflow

    made = read_workflow(file(name), load_registry()).prompt
    assert {key: (node["class_type"], node["inputs"]) for key, node in made.items()} == {
        key: (node["class_type"], node["inputs"]) for key, node in api(name).items()
    }


def test_a_workflow_saved_before_optional_widgets_were_appended_opens(tmp_path: Path) -> None:
    from uniworld.nodes.headless.registry.registry import load_registry
    from uniworld.nodes.headless.workflow.file import read_workflow
    from workflows.editor_form import is_widget

    saved, added = editor("edit"), 0
    for node in saved["nodes"]:
        if node["type"] not in ("UniWorldLoader", "UniWorldSampler"):
            continue
        optional = classes()[node["type"]].INPUT_TYPES()["optional"]
        later = {name for name, spec in optional.items() if is_widget(spec)}
        added += len(later)
        node["inputs"] = [entry for entry in node["inputs"] if entry["name"] not in later]
        node["widgets_values"] = node["widgets_values"][: len(node["widgets_values"]) - len(later)]
    assert added == 6, "storage, offload, compile and attention; cache and solver"
    older = tmp_path / "older.json"
    older.write_text(json.dumps(saved), encoding="utf-8")
    registry = load_registry()
    assert read_workflow(older, registry).prompt == read_workflow(file("edit"), registry).prompt


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
    picture = file(name).with_suffix(".jpg")
    with Image.open(picture) as thumbnail:
        assert thumbnail.size == (400, 400), "cards are squares"
    assert picture.stat().st_size < 30_000


@pytest.mark.parametrize("name", NAMES)
def test_nodes_do_not_overlap_and_lie_in_their_groups(name: str) -> None:
    from workflows.layout import Box, around

    workflow = editor(name)
    boxes = [around(node) for node in workflow["nodes"]]
    assert not [(one, other) for i, one in enumerate(boxes) for other in boxes[i + 1 :] if one.meets(other, 16)]
    frames = [Box(x, y, x + w, y + h) for x, y, w, h in (group["bounding"] for group in workflow["groups"])]
    assert not [(one, other) for i, one in enumerate(frames) for other in frames[i + 1 :] if one.meets(other)]
    for box in boxes:
        corners = ((box.left, box.top), (box.right, box.bottom))
        assert any(all(frame.holds(corner) for corner in corners) for frame in frames), box


@pytest.mark.parametrize("path", sorted((ROOT / "workflows").glob("*.json")), ids=lambda path: path.stem)
def test_no_node_grows_when_it_shows_a_picture(path: Path) -> None:
    """The other tests of the layout then hold after a run too."""
    from workflows.editor_form import SHOWN
    from workflows.layout import PREVIEW, node_size

    for node in read(path)["nodes"]:
        if node["type"] in SHOWN.keys() - {"PreviewAny"}:
            sockets = [entry for entry in node["inputs"] if "widget" not in entry]
            least = node_size(max(len(sockets), len(node["outputs"])), len(node["widgets_values"]), 0) + PREVIEW
            assert node["size"][1] >= least, node.get("title", node["type"])


@pytest.mark.parametrize("name", NAMES)
def test_no_wire_runs_behind_a_node(name: str) -> None:
    from workflows.layout import crossings

    assert crossings(editor(name)) == []


@pytest.mark.parametrize("name", NAMES)
def test_no_wire_runs_through_the_title_of_a_group(name: str) -> None:
    from workflows.layout import covered_titles

    workflow = editor(name)
    assert covered_titles(workflow) == []
    lower = {**workflow["groups"][1]}
    x, y, width, height = lower["bounding"]
    lower["bounding"] = [x, y + 120, width, height - 120]
    if name == "edit":  # the check detects a title that is below those of the other groups
        assert covered_titles({**workflow, "groups": [lower]}) != []


@pytest.mark.parametrize("name", NAMES)
def test_no_label_value_or_title_is_cut_off(name: str) -> None:
    """According to the table of character widths; a browser test measures in the editor itself."""
    from workflows import build

    graph = next(graph for graph in build.all_graphs() if graph.name == name)
    widths = {node["id"]: node["size"][0] for node in graph.editor()["nodes"]}
    for node in graph.nodes:
        if not node.collapsed:
            assert widths[node.id] >= graph.least_width(node), node.title


@pytest.mark.parametrize("name", NAMES)
def test_it_is_readable_in_a_window_of_1400_by_900(name: str) -> None:
    """Below 0.571 the editor draws no text."""
    from workflows.layout import around, opened_scale

    workflow = editor(name)
    boxes = [around(node) for node in workflow["nodes"]]
    least = {"edit": 0.69, "text_to_image": 0.73, "understand": 0.69, "edit_with_mask": 0.572}.get(name, 0.6)
    assert opened_scale(boxes) >= least
    assert workflow["extra"]["ds"]["scale"] >= least
    scale, (left, top) = workflow["extra"]["ds"]["scale"], workflow["extra"]["ds"]["offset"]
    for box in boxes:  # older editors use the stored scale and offset; their canvas starts at (40, 40)
        assert (box.left + left) * scale >= 0
        assert (box.top + top) * scale >= 36
        assert (box.right + left) * scale <= 1360
        assert (box.bottom + top) * scale <= 800


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
        # Other versions of Pillow may round the edge of a shape differently.
        assert np.abs(committed - np.asarray(drawn, np.float32)).mean() < 0.2, name


def test_every_workflow_loads_its_samples_pictures() -> None:
    from workflows.samples import SAMPLES

    assert set(SAMPLES) == set(NAMES)
    for name, sample in SAMPLES.items():
        loaded = [node["inputs"]["image"] for node in api(name).values() if node["class_type"] == "LoadImage"]
        assert loaded == list(sample.pictures)


def test_every_prompt_is_in_words_that_nano_was_trained_on() -> None:
    from uniworld.training.shapes.tasks.prompts import WORDINGS
    from workflows.samples import SAMPLES

    for name, sample in SAMPLES.items():
        task = sample.task
        if task.kind == "question":
            continue  # their wordings are in the functions that ask
        wordings = [re.escape(words).replace(r"\{", "{").replace(r"\}", "}") for words in WORDINGS[task.kind]]
        patterns = [re.sub(r"\{\w+\}", ".+", words) for words in wordings]
        assert any(re.fullmatch(pattern, task.prompt, re.IGNORECASE) for pattern in patterns), (name, task.prompt)
