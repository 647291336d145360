"""`uniworld check` finds what a run would stumble over, and tells what is passed over in silence elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from uniworld.__main__ import main
from uniworld.nodes.headless.validate import validate_prompt
from uniworld.nodes.headless.workflow_file import read_workflow, shipped_workflows

SCALE = {"image": ["1", 0], "upscale_method": "area", "width": 8, "height": 8, "crop": "disabled"}


def api(**scale: Any) -> dict[str, Any]:
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": "p.png"}},
        "2": {"class_type": "ImageScale", "inputs": SCALE | scale},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "p"}},
    }


def editor(saved: Any) -> dict[str, Any]:
    return {
        "nodes": [
            {"id": 1, "type": "LoadImage", "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [1]}], "widgets_values": ["p.png", "image"]},
            {"id": 2, "type": "ImageScale", "inputs": [{"name": "image", "type": "IMAGE", "link": 1}],
             "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [2]}], "widgets_values": saved},
            {"id": 3, "type": "SaveImage", "inputs": [{"name": "images", "type": "IMAGE", "link": 2}], "widgets_values": ["p"]},
        ],
        "links": [[1, 1, 0, 2, 0, "IMAGE"], [2, 2, 0, 3, 0, "IMAGE"]],
    }  # fmt: skip


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run `uniworld VERB` on a workflow in the test's folder, where input/p.png is a picture."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (4, 4)).save(tmp_path / "input" / "p.png")

    def call(verb: str, workflow: Any, *arguments: str) -> tuple[int, str, str]:
        Path("w.json").write_text(json.dumps(workflow))
        code = main([verb, "w.json", *arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return call


def test_a_misspelt_input_is_noted_with_the_nearest_real_one(call):
    note = "note: Node 2 (ImageScale): it has no input 'widht', so that is ignored. Did you mean 'width'?"
    code, out, _ = call("check", api(widht=16))
    assert (code, out.splitlines()[0]) == (0, note)
    code, out, err = call("run", api(widht=16))
    assert code == 0
    assert note in err.splitlines()
    assert note not in out


def test_an_input_like_no_other_is_noted_with_all_there_are(call):
    assert "'zzz', so that is ignored. Its inputs are: image, upscale_method, width" in call("check", api(zzz=1))[1]


def test_a_required_input_under_a_wrong_name_is_an_error_with_the_note(call):
    workflow = api(widht=16)
    del workflow["2"]["inputs"]["width"]
    code, out, _ = call("check", workflow)
    assert code == 2
    assert "Did you mean 'width'?" in out
    assert "required input 'width' has neither link nor value" in out


def test_notes_are_lines_of_their_own_in_json(call):
    events = [json.loads(line) for line in call("check", api(widht=16), "--json")[1].splitlines()]
    assert [event["event"] for event in events] == ["note", "valid"]
    assert "widht" in events[0]["message"]


def test_what_old_editors_export_beside_the_inputs_is_not_noted(registry, call):
    workflow = api()
    workflow["1"]["inputs"]["upload"] = "image"
    assert validate_prompt(workflow, registry).notes == []


@pytest.mark.parametrize("saved", ["area", 5, True])
@pytest.mark.parametrize("verb", ["check", "run"])
def test_values_of_an_editor_file_that_are_no_list_are_refused(call, verb, saved):
    code, _, err = call(verb, editor(saved))
    assert code == 2
    assert err.startswith(f'Node 2 (ImageScale): "widgets_values" is {saved!r}; it must be a list of values.')


@pytest.mark.parametrize(("saved", "note"), [
    (["area", 8, 8, "disabled"], ""),
    ({"upscale_method": "area", "width": 8}, ""),
    (["area", 8], "only 2 values saved, so height, crop take their defaults."),
    (["area", 8, 8, "disabled", 1, 2], "6 values saved, 2 more than it has inputs; the last are ignored."),
])  # fmt: skip
def test_too_few_or_too_many_values_are_noted(call, saved, note):
    code, out, _ = call("check", editor(saved))
    assert code == 0
    assert out.count("note:") == bool(note)
    assert note in out


@pytest.mark.parametrize("nodes", [{}, None, "x", {"1": {}}])
def test_nodes_of_an_editor_file_must_be_a_list(call, nodes):
    code, _, err = call("check", {"nodes": nodes, "links": [], "version": 0.4})
    assert code == 2
    assert '"nodes" must be a list' in err


def test_a_picture_that_does_not_decode_is_found(call, tmp_path):
    (tmp_path / "input" / "p.png").write_bytes((tmp_path / "input" / "p.png").read_bytes()[:-10])
    code, out, _ = call("check", api())
    assert code == 2
    assert "The picture 'p.png' is damaged or cut short" in out


def test_a_bad_prefix_is_found(call):
    workflow = api()
    workflow["3"]["inputs"]["filename_prefix"] = "../p"
    assert "leads out of its folder" in call("check", workflow)[1]


def test_it_takes_the_values_and_folders_of_a_run(call, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (4, 4)).save(other / "q.png")
    assert call("check", api(), "--set", "2.width=-1")[0] == 2
    assert call("check", api(), "--set", "2.size=1")[0] == 2
    assert call("check", api(), "--image", "1=other/q.png")[0] == 0
    assert call("check", api(), "--image", "1=none.png")[0] == 2
    assert call("check", api(), "--input", "other")[0] == 2
    assert call("check", api(), "--input", "other", "--set", "1.image=q.png")[0] == 0
    assert call("check", api(), "--output", "w.json")[0] == 2
    assert call("check", api(), "--output", "new")[0] == 0
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", shipped_workflows())
@pytest.mark.parametrize("folder", ["", "api/"])
def test_the_shipped_workflows_get_no_note(registry, name, folder):
    from uniworld.nodes.headless.workflow_file import find_workflow

    workflow = read_workflow(find_workflow(folder + name), registry)
    assert workflow.notes == []
    assert validate_prompt(workflow.prompt, registry).notes == []
