"""`uniworld check` finds errors before a run, and notes likely mistakes that ComfyUI ignores silently."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from uniworld.__main__ import main
from uniworld.nodes.headless.check.validate import validate_prompt
from uniworld.nodes.headless.workflow.file import read_workflow, shipped_workflows

SCALE = {"image": ["1", 0], "upscale_method": "area", "width": 8, "height": 8, "crop": "disabled"}

CONFTEST = Path(__file__).resolve().parents[3] / "conftest.py"


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
    note = "note: Node 2 (ImageScale): it has no input 'widht'; the value is ignored. Did you mean 'width'?"
    code, out, _ = call("check", api(widht=16))
    assert (code, out.splitlines()[0]) == (0, note)
    code, out, err = call("run", api(widht=16))
    assert code == 0
    assert note in err.splitlines()
    assert note not in out


def test_an_unknown_input_is_noted_with_all_valid_ones(call):
    assert "'zzz'; the value is ignored. Its inputs are: image, upscale_method, width" in call("check", api(zzz=1))[1]


def test_a_required_input_under_a_wrong_name_is_an_error_with_the_note(call):
    workflow = api(widht=16)
    del workflow["2"]["inputs"]["width"]
    code, out, _ = call("check", workflow)
    assert code == 2
    assert "Did you mean 'width'?" in out
    assert "required input 'width' has neither a link nor a value" in out


def test_notes_are_separate_lines_in_json(call):
    events = [json.loads(line) for line in call("check", api(widht=16), "--json")[1].splitlines()]
    assert [event["event"] for event in events] == ["note", "valid"]
    assert "widht" in events[0]["message"]


def test_helper_values_exported_by_old_editors_are_not_noted(registry, call):
    workflow = api()
    workflow["1"]["inputs"]["upload"] = "image"
    assert validate_prompt(workflow, registry).notes == []


@pytest.mark.parametrize("saved", ["area", 5, True])
@pytest.mark.parametrize("verb", ["check", "run"])
def test_widget_values_of_an_editor_file_must_be_a_list(call, verb, saved):
    code, _, err = call(verb, editor(saved))
    assert code == 2
    assert err.startswith(f'Node 2 (ImageScale): "widgets_values" is {saved!r}; it must be a list of values.')


@pytest.mark.parametrize("saved", [["area", 8, 8, "disabled"], {"upscale_method": "area", "width": 8}, [], None])
def test_matching_widget_values_of_an_editor_file_get_no_note(call, saved):
    code, out, _ = call("check", editor(saved))
    assert (code, out.count("note:")) == (0, 0)


@pytest.mark.parametrize(
    ("saved", "counted"), [(["area"], "1 value is"), (["area", 8, 8, "disabled", 1, 2], "6 values are")]
)
@pytest.mark.parametrize("verb", ["check", "run"])
def test_widget_values_that_match_no_layout_are_an_error(call, verb, saved, counted):
    code, _, err = call(verb, editor(saved))
    assert code == 2
    sentence = f"Node 2 (ImageScale): {counted} saved, but the node has 4 widgets (upscale_method, width, height, crop)"
    assert err.startswith(sentence)
    assert "Open the workflow in the editor" in err


def test_the_api_form_goes_to_a_file_or_to_standard_output(call, tmp_path):
    code, out, _ = call("check", editor(["area", 8, 8, "disabled"]), "--api", "api.json", "--set", "2.width=16")
    assert (code, out) == (0, "The workflow is valid: 3 nodes; output node: 3 (Save Image).\n")
    written = json.loads((tmp_path / "api.json").read_text())
    assert written["2"]["inputs"] == SCALE | {"width": 16}
    code, out, err = call("check", editor(["area", 8, 8, "disabled"]), "--api", "-", "--set", "2.width=16")
    assert (code, json.loads(out)) == (0, written)
    assert err == "The workflow is valid: 3 nodes; output node: 3 (Save Image).\n"
    assert call("check", written, "--api", "-")[1] == out


def test_the_api_form_does_not_replace_the_workflow_in_editor_form(call, tmp_path):
    (tmp_path / "link.json").symlink_to("w.json")
    graph = editor(["area", 8, 8, "disabled"])
    for target in ("w.json", "link.json", str(tmp_path / "input" / ".." / "w.json")):
        code, _, err = call("check", graph, "--api", target)
        assert code == 2
        assert "would replace the workflow itself" in err
        assert json.loads((tmp_path / "w.json").read_text()) == graph
    assert call("check", api(), "--api", "w.json", "--set", "2.width=16")[0] == 0  # nothing is lost
    assert json.loads((tmp_path / "w.json").read_text())["2"]["inputs"]["width"] == 16


def test_the_api_form_is_written_even_if_the_workflow_has_problems(call):
    code, out, err = call("check", editor(["none", 8, 8, "disabled"]), "--api", "-")
    assert code == 2
    assert json.loads(out)["2"]["inputs"]["upscale_method"] == "none"
    assert "upscale_method" in err


def test_an_api_form_that_cannot_be_written_is_an_error_and_leaves_no_files(call, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    code, _, err = call("check", api(), "--api", "none/api.json")
    assert code == 2
    assert "cannot be written to 'none/api.json': No such file or directory" in err
    assert sorted(set(tmp_path.rglob("*")) - {tmp_path / "w.json"}) == before
    assert "Pass --api a file name" in call("check", api(), "--api", "-", "--json")[2]


def test_the_api_form_is_written_through_symbolic_links(call, tmp_path):
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "link.json").symlink_to("../real.json")
    (tmp_path / "new.json").symlink_to("sub/link.json")
    (tmp_path / "dangling.json").symlink_to("sub/made.json")
    for link, file in (("new.json", "real.json"), ("dangling.json", "sub/made.json")):
        assert call("check", api(), "--api", link)[0] == 0
        assert (tmp_path / link).is_symlink()
        assert json.loads((tmp_path / file).read_text())["2"]["inputs"] == SCALE
    (tmp_path / "round.json").symlink_to("round.json")
    assert "Too many levels" in call("check", api(), "--api", "round.json")[2]
    assert not list(tmp_path.rglob("*.part"))


def test_the_api_form_is_written_to_pipes_and_devices(call, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        for target in ("pipe", f"/dev/fd/{os.dup(reader)}", "/dev/null"):
            assert call("check", api(), "--api", target)[0] == 0
            if target != "/dev/null":
                assert json.loads(os.read(reader, 65536))["2"]["inputs"] == SCALE
        assert (tmp_path / "pipe").is_fifo()
        assert "Is a directory" in call("check", api(), "--api", "input")[2]
    finally:
        os.close(reader)
    with tempfile.TemporaryFile() as file:  # it has no name, so it cannot be replaced atomically
        assert call("check", api(), "--api", f"/dev/fd/{file.fileno()}")[0] == 0
        assert json.loads(file.read())["2"]["inputs"] == SCALE
    assert {path.name for path in tmp_path.iterdir()} <= {"pipe", "input", "output", "temp", "w.json"}


@pytest.mark.parametrize("piped", [True, False])
def test_standard_output_by_its_path_gets_only_the_api_form(call, tmp_path, piped):
    Path("w.json").write_text(json.dumps(api()))
    # The conftest makes the package importable without installing it.
    code = (
        f"import runpy, sys; runpy.run_path({str(CONFTEST)!r}); from uniworld.__main__ import main\n"
        "sys.exit(main(['check', 'w.json', '--api', '/dev/stdout']))"
    )
    with Path("out.json").open("w") as file:
        out = subprocess.PIPE if piped else file
        done = subprocess.run([sys.executable, "-c", code], stdout=out, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "The workflow is valid: 3 nodes; output node: 3 (Save Image).\n")
    assert json.loads(done.stdout if piped else Path("out.json").read_text())["2"]["inputs"] == SCALE


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [float("-inf")]}])
def test_an_api_form_with_a_non_finite_input_is_not_written(call, tmp_path, value):
    (tmp_path / "api.json").write_text("old")
    code, out, _ = call("check", api(width=value), "--api", "api.json")
    assert code == 2
    assert out.count("Node 2 (ImageScale): input 'width' ") == 1
    assert "The API form was not written." in out
    assert (tmp_path / "api.json").read_text() == "old"
    assert call("check", api(width=value), "--api", "-")[1] == ""
    loose = api() | {"8": {"class_type": "PrimitiveFloat", "inputs": {"value": value}}}  # no output needs node 8
    assert call("check", loose)[0] == 0
    assert call("check", loose, "--api", "-")[:2] == (2, "")
    assert "JSON cannot represent. Set it to a finite number." in call("check", loose, "--api", "api.json")[1]


def test_non_finite_numbers_outside_the_inputs_are_written_as_strings(call):
    workflow = api() | {"8": {"class_type": "MaskToImage", "inputs": {}, "is_changed": [float("nan"), 1e999]}}
    _, out, _ = call("check", workflow, "--api", "-")
    assert json.loads(out, parse_constant=pytest.fail)["8"]["is_changed"] == ["NaN", "Infinity"]
    del workflow["8"]["inputs"]
    workflow["1"]["is_changed"] = [float("nan")]
    assert call("run", workflow)[0] == 0
    with Image.open(next(Path("output").glob("*.png"))) as picture:
        assert json.loads(picture.text["prompt"], parse_constant=pytest.fail)["1"]["is_changed"] == ["NaN"]


@pytest.mark.parametrize("verb", ["check", "run"])
def test_a_number_with_too_many_digits_is_an_error_that_names_the_file(tmp_path, capsys, verb):
    huge = tmp_path / "huge.json"
    huge.write_text('{"1": {"class_type": "SaveImage", "inputs": {"images": ' + "1" * 5000 + "}}}")
    assert main([verb, str(huge)]) == 2
    assert f"'{huge}' contains a number with 5000 digits" in capsys.readouterr().err


@pytest.mark.parametrize("nodes", [{}, None, "x", {"1": {}}])
def test_nodes_of_an_editor_file_must_be_a_list(call, nodes):
    code, _, err = call("check", {"nodes": nodes, "links": [], "version": 0.4})
    assert code == 2
    assert '"nodes" must be a list' in err


def test_a_picture_that_does_not_decode_is_found(call, tmp_path):
    (tmp_path / "input" / "p.png").write_bytes((tmp_path / "input" / "p.png").read_bytes()[:40])
    code, out, _ = call("check", api())
    assert code == 2
    assert "The picture 'p.png' is truncated or damaged" in out


def test_a_bad_prefix_is_found(call):
    workflow = api()
    workflow["3"]["inputs"]["filename_prefix"] = "../p"
    assert "leads out of its folder" in call("check", workflow)[1]


def test_it_accepts_the_values_and_folders_of_a_run(call, tmp_path):
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
    from uniworld.nodes.headless.workflow.file import find_workflow

    workflow = read_workflow(find_workflow(folder + name), registry)
    assert validate_prompt(workflow.prompt, registry).notes == []
