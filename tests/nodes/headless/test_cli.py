"""The command line: exit codes, output channels, and that a user error never shows a traceback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from uniworld.__main__ import main
from uniworld.nodes.headless.run.report import LAST_EVENTS
from uniworld.nodes.headless.workflow import file as workflow_file
from uniworld.uniworld_core.json_text import loads

TESTS = Path(__file__).resolve().parents[2]
LAUNCH = f"""
import runpy, sys
runpy.run_path({str(TESTS / "conftest.py")!r})
from uniworld.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def node(class_type: str, title: str = "", **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs, **({"_meta": {"title": title}} if title else {})}


@pytest.fixture
def command(tmp_path, toy_pack, monkeypatch, capsys):
    """Run `uniworld ...` in the test's folder. Returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> tuple[int, str, str]:
        extra = [] if arguments[0].startswith("-") else ["--pack", str(toy_pack)]
        try:
            code = main([*arguments, *extra])
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return command


@pytest.fixture
def write(tmp_path):
    def write(content: Any, name: str = "w.json") -> str:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return str(path)

    return write


SUM = {
    "1": node("Number", "First", value=4),
    "2": node("Add", "Sum", a=["1", 0], b=5),
    "3": node("Show", value=["2", 0]),
}
PICTURE = {"1": node("NoiseImage", width=8, height=6), "2": node("SaveImage", images=["1", 0], filename_prefix="p")}


def test_a_run_prints_texts_and_shows_a_bar_per_node(command, write):
    code, out, err = command("run", write(SUM))
    assert (code, out) == (0, "Show: 9\n")
    assert all(bar in err for bar in ("First (1): 100%", "Sum (2): 100%", "Show (3): 100%"))


def test_a_run_prints_where_the_pictures_are(command, write, tmp_path):
    code, out, _ = command("run", write(PICTURE), "--output", str(tmp_path / "results"))
    assert code == 0
    assert out.strip() == str(tmp_path / "results" / "p_00001_.png")
    with Image.open(out.strip()) as picture:
        assert json.loads(picture.text["prompt"]) == PICTURE
        assert "workflow" not in picture.text


@pytest.mark.parametrize("name", ["1", "First", "Number"])
def test_set_finds_a_node_by_id_title_or_class(command, write, name):
    assert command("run", write(SUM), "--set", f"{name}.value=6")[1] == "Show: 11\n"


def test_set_may_replace_a_link_and_hold_an_equals_sign(command, write):
    assert command("run", write(SUM), "--set", "Sum.a=1")[1] == "Show: 6\n"
    prompt = {"1": node("PrimitiveString", value="x"), "2": node("Show", value=["1", 0])}
    assert command("run", write(prompt), "--set", "1.value=a=b.c=d")[1] == "Show: a=b.c=d\n"


@pytest.mark.parametrize(("setting", "word"), [
    ("value=6", "NODE.input=value"), ("Nobody.value=6", "There is no node 'Nobody'. The nodes are: 1 (First)"),
    ("1.size=6", "has no input 'size'. Its inputs are: value."), ("1.value=many", "takes a whole number"),
    ("1.value=600", "above its maximum of 100"), ("1", "NODE.input=value"),
    ("1.value=" + "9" * 5000, "of at most 4300 digits, not of 5000"), ("1.value=" + "9" * 4000, "above its maximum of 100"),
    ("9" * 5000 + ".value=1", "There is no node '999"), ("1." + "9" * 5000 + "=1", "has no input '999"), ("9" * 5000, "--set '999"),
])  # fmt: skip
def test_a_bad_setting_is_exit_code_2(command, write, setting, word):
    code, out, err = command("run", write(SUM), "--set", setting)
    assert (code, out) == (2, "")
    assert word in err
    assert len(err) < 500


def test_a_value_is_set_despite_invalid_slots(command, write):
    for slots in ([None], {"a": 1}, None, 5):
        graph = {"nodes": [{"id": 1, "type": "Show", "inputs": slots, "widgets_values": None}], "links": []}
        graph["nodes"].append({"id": 2, "type": "Number", "inputs": slots, "widgets_values": [1]})
        assert (
            command("check", write(graph), "--set", "2.value=3", "--api", "api.json")[0] == 2
        )  # the input of Show is not connected
        assert json.loads(Path("api.json").read_text())["2"]["inputs"] == {"value": 3}
    for posted in ([None], [{"id": 1, "type": ["x"]}], [{"id": 1, "type": "Number", "widgets_values": [1, 2, 3]}]):
        body = {"prompt": SUM, "extra_data": {"extra_pnginfo": {"workflow": {"nodes": posted}}}}
        assert command("run", write(body), "--set", "1.value=6")[1] == "Show: 11\n"


def test_an_ambiguous_name_is_reported_with_the_ids(command, write):
    prompt = {**SUM, "4": node("Number", value=1)}
    assert "matches the nodes 1, 4" in command("run", write(prompt), "--set", "Number.value=6")[2]


def test_image_loads_a_picture_from_anywhere(command, write, tmp_path):
    away = tmp_path / "away"
    away.mkdir()
    Image.new("RGB", (7, 5)).save(away / "photo.jpg")
    prompt = {
        "1": node("LoadImage", image="missing.png"), "2": node("GetImageSize", image=["1", 0]), "3": node("Show", value=["2", 0]),
    }  # fmt: skip
    assert command("run", write(prompt), "--image", f"LoadImage={away / 'photo.jpg'}")[:2] == (0, "Show: 7\n")
    code, _, err = command("run", write(prompt), "--image", f"LoadImage={away / 'none.jpg'}")
    assert code == 2
    assert "no picture file" in err
    code, _, err = command("run", write(prompt), "--image", "LoadImage=")
    assert code == 2
    assert "--image 'LoadImage=' has an empty path" in err


@pytest.mark.parametrize("content", [b"a picture", b"\x89PNG\r\n"])
def test_a_file_that_is_not_json_is_not_a_workflow(command, tmp_path, content):
    (tmp_path / "note.png").write_bytes(content)
    code, _, err = command("run", "note.png")
    assert code == 2
    assert "A workflow is a JSON file in editor or API form" in err


@pytest.mark.parametrize(
    ("option", "hint"), [("--bogus", "Run `uniworld run --help`"), ("--sed=3", "Did you mean --seed?")]
)
def test_an_unknown_option_is_reported_with_the_usage_of_its_command(command, write, option, hint):
    code, _, err = command("run", write(SUM), option)
    assert code == 2
    assert err.startswith("usage: uniworld run ")
    assert f"unrecognized arguments: {option}. {hint}" in err


def test_all_shipped_workflows_are_listed_in_the_same_way(command):
    lists = [command("run", *name)[2].partition("hipped workflows: ")[2] for name in ([], ["edti"])]
    assert lists[0] == lists[1]
    assert lists[0].startswith("edit, ")
    assert "; in ComfyUI or with --server: native_" in lists[0]


GRAPH = {
    "version": 0.4,
    "nodes": [
        {"id": 1, "type": "NoiseImage", "mode": 0, "inputs": [], "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [1]}],
         "widgets_values": [8, 6]},
        {"id": 2, "type": "SaveImage", "mode": 0, "inputs": [{"name": "images", "type": "IMAGE", "link": 1}], "outputs": [],
         "widgets_values": ["p"]},
    ],
    "links": [[1, 1, 0, 2, 0, "IMAGE"]],
}  # fmt: skip


def test_the_picture_of_an_editor_workflow_contains_the_graph(command, write):
    with Image.open(command("run", write(GRAPH))[1].strip()) as picture:
        assert json.loads(picture.text["workflow"]) == GRAPH


def test_a_value_set_on_the_command_line_is_in_the_graph_of_the_picture(command, write):
    with Image.open(command("run", write(GRAPH), "--set", "1.width=9")[1].strip()) as picture:
        assert picture.size == (9, 6)
        assert json.loads(picture.text["workflow"])["nodes"][0]["widgets_values"] == [9, 6]
        assert json.loads(picture.text["prompt"])["1"]["inputs"]["width"] == 9


def test_a_posted_prompt_is_a_workflow_too(command, write):
    assert command("run", write({"prompt": SUM, "client_id": "x"}))[1] == "Show: 9\n"


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_json_gives_one_line_per_event_and_nothing_else(command, write):
    prompt = {"1": node("Slow", steps=2), "2": node("Show", value=["1", 0])}
    code, out, _ = command("run", write(prompt), "--json")
    events = lines(out)
    assert code == 0
    assert [event["event"] for event in events] == [
        "execution_start", "execution_cached", "executing", "progress", "progress", "executing", "executed",
        "execution_success", "result",
    ]  # fmt: skip
    assert events[-1]["texts"] == ["2"]
    assert events[-1]["status"] == "success"


def test_json_of_a_bad_workflow(command, write):
    code, out, _ = command("run", write({"1": node("Number", value=-1), "2": node("Show", value=["1", 0])}), "--json")
    [event] = lines(out)
    assert code == 2
    assert event["event"] == "invalid"
    assert event["node_errors"]["1"]["errors"][0]["type"] == "value_smaller_than_min"
    assert "below its minimum" in event["problems"][0]


@pytest.mark.parametrize(("arguments", "event", "code"), [
    (["run", "w.json"], "result", 0),
    (["run", "w.json", "--set", "1.value=600"], "invalid", 2),
    (["run", "none.json"], "invalid", 2),
    (["run"], "invalid", 2),
    (["run", "w.json", "--no-such"], "invalid", 2),
    (["run", "w.json", "--pack", "nowhere"], "invalid", 2),
    (["check", "w.json"], "valid", 0),
    (["check", "w.json", "--set", "1.value=600"], "invalid", 2),
    (["check"], "invalid", 2),
])  # fmt: skip
def test_json_always_ends_with_a_last_line(command, write, arguments, event, code):
    write(SUM)
    found, out, _ = command(*arguments, "--json")
    assert found == code
    assert [line["event"] for line in lines(out) if line["event"] in LAST_EVENTS] == [event]
    assert lines(out)[-1]["event"] == event


@pytest.mark.parametrize(("error", "message"), [
    (KeyboardInterrupt(), "Interrupted."), (MemoryError("no more"), "MemoryError: no more (run again with --debug for details)"),
])  # fmt: skip
@pytest.mark.parametrize("where", ["load_registry", "validate_prompt", "Executor"])
def test_json_ends_with_an_error_whatever_happens(command, write, monkeypatch, where, error, message):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(f"uniworld.nodes.headless.commands.place.{where}", fail)
    code, out, err = command("run", write(SUM), "--json")
    assert code == 1
    assert (lines(out)[-1]["event"], lines(out)[-1]["message"]) == ("error", message)
    assert err.strip().endswith(message)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
def test_ctrl_c_during_startup_ends_with_an_error_line(tmp_path, write):
    (tmp_path / "__init__.py").write_text(
        "import sys, time\nprint('loading', file=sys.stderr, flush=True)\ntime.sleep(60)"
    )
    arguments = ["run", write(SUM), "--pack", str(tmp_path), "--json"]
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCH, *arguments], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    while b"loading" not in os.read(process.stderr.fileno(), 4096):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert [line["event"] for line in lines(out.decode())] == ["error"]
    assert b"Traceback" not in out + err


def test_json_ends_with_an_error_if_the_package_cannot_be_imported(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "uniworld.nodes.headless.cli", None)
    assert main(["run", "edit", "--json"]) == 1
    out, err = capsys.readouterr()
    assert [line["event"] for line in lines(out)] == ["error"]
    assert "uniworld cannot start" in err


@pytest.mark.parametrize("error", [ValueError("cannot reshape array"), ZeroDivisionError("by zero")])
def test_an_error_in_a_built_in_node_is_reported_as_a_bug(command, write, monkeypatch, error):
    def broken(*_, **__):
        raise error

    monkeypatch.setattr("uniworld.nodes.headless.builtin.primitives.PreviewAny.execute", broken)
    path = write({"1": node("PreviewAny", source="x")})
    said = (
        f"{type(error).__name__}: {error}. This is a bug of uniworld: report it to its developers with the traceback that "
        "`uniworld run --debug` prints."
    )
    code, _, err = command("run", path)
    assert code == 1
    assert f"Node 1 (PreviewAny) failed: {said}" in err
    code, out, _ = command("run", path, "--json")
    failed, result = lines(out)[-2:]
    assert (code, failed["event"], failed["exception_message"]) == (1, "execution_error", said)
    assert result["message"] == f"Node 1 (PreviewAny) failed: {said}"


@pytest.mark.parametrize(("error", "said"), [
    (OSError(28, "No space left"), "OSError: [Errno 28] No space left"), (MemoryError(), "MemoryError"),
])  # fmt: skip
def test_a_full_disk_or_memory_in_a_built_in_node_is_not_a_bug(command, write, monkeypatch, error, said):
    def refused(*_, **__):
        raise error

    monkeypatch.setattr("uniworld.nodes.headless.builtin.primitives.PreviewAny.execute", refused)
    code, _, err = command("run", write({"1": node("PreviewAny", source="x")}))
    assert code == 1
    assert err.strip().endswith(f"failed: {said}")


LONG = "x" * 400


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other invalid paths")
@pytest.mark.parametrize("arguments", [
    ["run", LONG], ["run", "~nobody-here/w.json"], ["run", "digits.json"], ["run", "edit", "--models", LONG],
    ["run", "edit", "--pack", LONG], ["run", "edit", "--output", LONG], ["run", "edit", "--image", "Picture=loop"],
    ["run", "edit", "--image", "Picture=~nobody-here/a.png"], ["run", "edit", "--image", f"Picture={LONG}.png"],
    ["check", "edit", "--api", "~nobody-here/a.json"], ["check", "edit", "--api", "loop"],
    ["batch", "edit", "--rows", "rows.jsonl"], ["batch", "edit", "--rows", "rows.jsonl", "--retries", "1" * 5000],
    ["serve", "--frontend", LONG], ["serve", "--memory", f"1{'0' * 400}GB"],
    ["serve", "--token", "secret-secret", "--listen", "a" * 70],
], ids=lambda arguments: " ".join(arguments)[:60])  # fmt: skip
def test_an_impossible_path_or_number_is_a_user_error(command, tmp_path, arguments):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "digits.json").write_text(f"[{'1' * 5000}]")
    (tmp_path / "rows.jsonl").write_text(
        '{"image": {"Picture": "a\\u0000b.png"}}\n{"image": {"Picture": "loop"}}\n{"set": {"Picture.image": "\\ud800"}}'
    )
    code, _, err = command(*arguments)
    assert code == 2
    assert "Error" not in err, err
    if "rows.jsonl" in arguments[-1]:
        assert all(f"Line {number}:" in err for number in (1, 2, 3))


def test_a_failed_run_is_exit_code_1(command, write):
    prompt = {"1": node("Failing", value=4), "2": node("Show", value=["1", 0])}
    code, out, err = command("run", write(prompt))
    assert (code, out) == (1, "")
    assert "Node 1 (Failing) failed: The oven is cold. Light it." in err
    code, out, _ = command("run", write(prompt), "--json")
    assert code == 1
    assert lines(out)[-1]["status"] == "error"
    assert lines(out)[-2]["traceback"] == []


def test_debug_shows_the_traceback(write, toy_pack, capsys):
    prompt = {"1": node("Failing", value=4), "2": node("Show", value=["1", 0])}
    assert main(["run", write(prompt), "--pack", str(toy_pack), "--debug"]) == 1
    err = capsys.readouterr().err
    assert "in run" in err
    assert "Inputs of the node: value=[4]." in err


@pytest.mark.parametrize("content", [
    "", "{", "no json", '{"1": {"class_type": "Show"', "[]", "5", "null", '"x"', "{}", "[" * 100_000, "\x00", "{\"1\": NaN}",
])  # fmt: skip
@pytest.mark.parametrize("verb", ["run", "check"])
def test_a_file_that_is_not_a_workflow_is_exit_code_2(command, write, verb, content):
    code, out, err = command(verb, write(content))
    assert code == 2
    assert len((out + err).strip()) > 20


def test_a_binary_file(command, tmp_path):
    (tmp_path / "w.json").write_bytes(b"\xff\xfe\x80\x81" * 10)
    assert "not UTF-8 text" in command("run", "w.json")[2]


def test_a_huge_file_is_rejected_before_reading(command, tmp_path):
    with (tmp_path / "w.json").open("wb") as file:
        file.truncate(workflow_file.MAX_BYTES + 1)
    assert "is larger than 64 MiB" in command("run", "w.json")[2]


def test_a_missing_file_is_reported_with_the_shipped_ones(command, tmp_path, monkeypatch):
    monkeypatch.setattr(workflow_file, "SHIPPED", tmp_path / "shipped")
    (tmp_path / "shipped" / "api").mkdir(parents=True)
    (tmp_path / "shipped" / "sum.json").write_text(json.dumps(SUM))
    (tmp_path / "shipped" / "api" / "sum.json").write_text(json.dumps(SUM))
    for name in ("sum", "sum.json", "workflows/sum.json", "api/sum", "workflows/api/sum.json"):
        assert command("run", name)[:2] == (0, "Show: 9\n")
    assert "shipped workflows: sum" in command("run", "no.json")[2]
    code, _, err = command("run")
    assert code == 2
    assert "sum" in err


def test_check_reports_all_problems_and_runs_nothing(command, write, tmp_path):
    code, out, _ = command(
        "check", write({"1": node("Number", value=-1), "2": node("Show", value=["1", 0]), "3": node("Show")})
    )
    assert code == 2
    assert len(out.splitlines()) == 2
    assert command("check", write(PICTURE))[0] == 0
    assert not (tmp_path / "output").exists()


def test_nodes_lists_and_describes(command):
    code, out, _ = command("nodes")
    assert code == 0
    assert "SaveImage  (Save Image, image)" in out
    code, out, _ = command("nodes", "ImageScale")
    assert "width: INT 0..16384 = 512" in out
    assert "→ IMAGE" in out
    code, out, _ = command("nodes", "--json")
    assert "LoadImage" in json.loads(out)
    code, _, err = command("nodes", "loadimage")
    assert code == 2
    assert "Did you mean LoadImage, LoadImageMask or SaveImage?" in err


def test_the_json_of_nodes_is_json_whatever_a_pack_declares(command, tmp_path):
    (tmp_path / "bounds").mkdir()
    (tmp_path / "bounds" / "__init__.py").write_text(
        "class Bounds:\n"
        "    RETURN_TYPES, FUNCTION = ('FLOAT',), 'run'\n"
        "    INPUT_TYPES = lambda: {'required': {'x': ('FLOAT', {'default': float('nan'), 'max': float('inf')})}}\n"
        "NODE_CLASS_MAPPINGS = {'Bounds': Bounds}\n"
    )
    code, out, _ = command("nodes", "Bounds", "--json", "--pack", str(tmp_path / "bounds"))
    assert code == 0
    declared = loads(out)["Bounds"]["input"]["required"]["x"]  # unlike Python's own parser, it rejects NaN
    assert declared == ["FLOAT", {"default": "NaN", "max": "Infinity"}]


def test_nodes_with_a_name_describes_inputs_and_outputs(command):
    out = command("nodes", "SaveImage")[1]
    assert "  filename_prefix: STRING = 'ComfyUI'\n      Start of the file names." in out
    assert "      MASK: 1 where the image is transparent." in command("nodes", "LoadImage")[1]
    assert "Start of the file names" not in command("nodes")[1]


@pytest.mark.parametrize("verb", ["run", "check", "nodes"])
def test_a_missing_models_folder_is_reported(command, write, verb, tmp_path):
    (tmp_path / "models").touch()
    arguments = [verb] if verb == "nodes" else [verb, write(SUM)]
    for models in ("nowhere", "models"):
        code, out, err = command(*arguments, "--models", models)
        assert (code, out) == (2, "")
        assert f"--models '{models}' is not a folder" in err
    assert command(*arguments)[0] == 0


def test_texts_carry_the_title_of_their_node(command, write):
    prompt = {"1": node("PrimitiveString", value="a cat"), "2": node("Show", "Answer", value=["1", 0])}
    assert command("run", write(prompt))[1] == "Answer: a cat\n"


def test_previews_are_marked_and_separate_from_the_results(command, write, tmp_path):
    prompt = {**PICTURE, "3": node("PreviewImage", "Look", images=["1", 0])}
    out = command("run", write(prompt))[1].splitlines()
    [preview] = [Path(line.removeprefix("Look (preview): ")) for line in out if line.startswith("Look (preview): ")]
    assert preview.is_file()
    assert [path.name for path in tmp_path.rglob("*.png")] == ["p_00001_.png"]
    result = lines(command("run", write(prompt), "--json")[1])[-1]
    assert (len(result["images"]), len(result["previews"])) == (1, 1)
    assert Path(result["previews"][0]).is_file()


@pytest.mark.parametrize("as_json", [False, True])
def test_an_output_folder_that_cannot_be_written_is_reported_before_the_run(command, write, tmp_path, as_json):
    (tmp_path / "file").touch()
    for verb in ("run", "check"):
        code, out, err = command(verb, write(PICTURE), "--output", "file/x", *(["--json"] if as_json else []))
        assert code == 2
        assert "Pictures cannot be written to 'file/x': " in out + err
        assert "free space or choose another --output." in out + err
        assert "100%" not in err
        assert not as_json or [event["event"] for event in lines(out)] == ["invalid"]


def test_an_empty_output_folder_is_removed(command, write, tmp_path):
    assert command("run", write(SUM), "--output", "a/b")[0] == 0
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(("arguments", "code"), [
    (["--help"], 0), (["--version"], 0), (["run", "--help"], 0), (["run", "--no-such"], 2), (["check"], 2),
])  # fmt: skip
def test_usage(command, arguments, code):
    assert command(*arguments)[0] == code


def test_an_unknown_command_lists_the_commands(capsys):
    assert main(["paint"]) == 2
    assert (
        "Unknown command 'paint'. The commands are: run, nodes, check, batch, bench, chat, serve, train, convert, data, eval, "
        "lora, reward." in capsys.readouterr().err
    )
    assert main([]) == 2


@pytest.mark.parametrize(("content", "word"), [
    (None, "has no __init__.py"), ("raise OSError('broken')", "failed to import: OSError: broken"), ("x = 1", "no NODE_CLASS_MAPPINGS"),
])  # fmt: skip
def test_a_pack_that_cannot_be_loaded(tmp_path, capsys, content, word):
    if content is not None:
        (tmp_path / "__init__.py").write_text(content)
    assert main(["nodes", "--pack", str(tmp_path)]) == 2
    assert word in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
@pytest.mark.parametrize("as_json", [False, True])
def test_ctrl_c_stops_within_a_step_and_leaves_no_file(tmp_path, toy_pack, write, as_json):
    prompt = {
        "1": node("Slow", steps=10_000), "2": node("NoiseImage", width=["1", 0], height=6),
        "3": node("SaveImage", images=["2", 0], filename_prefix="p"),
    }  # fmt: skip
    arguments = ["run", write(prompt), "--pack", str(toy_pack), *(["--json"] if as_json else [])]
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCH, *arguments], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    stream = process.stdout if as_json else process.stderr
    while True:  # until the node has started
        block = os.read(stream.fileno(), 4096)
        if b"progress" in block or b"Slow" in block:
            break
        assert block, "the process exited before the node started"
    time.sleep(0.3)
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - sent < 5
    assert process.returncode == 1
    assert b"interrupted" in err
    assert b"Traceback" not in out + err
    assert not (tmp_path / "output").exists()
    if as_json:
        assert json.loads(out.splitlines()[-1])["status"] == "interrupted"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
IDS = st.sampled_from(["1", "2", "3", "x"])
LINK = st.lists(IDS | st.integers(-1, 3) | JSON, max_size=3)
CLASSES = st.sampled_from(
    ["LoadImage", "SaveImage", "PreviewAny", "ImageScale", "PrimitiveInt", "GetImageSize", "Nobody"]
)
NAMES = st.sampled_from(
    ["image", "images", "value", "source", "width", "filename_prefix", "upscale_method", "crop", "height"]
)
API = st.dictionaries(
    IDS,
    st.fixed_dictionaries({"class_type": CLASSES | JSON, "inputs": st.dictionaries(NAMES, LINK | JSON) | JSON}) | JSON,
)
SLOTS = st.lists(
    st.fixed_dictionaries({"name": NAMES, "type": st.sampled_from(["IMAGE", "*"]), "link": JSON}) | JSON, max_size=2
)
PROXIES = st.lists(st.lists(IDS | st.just("-1") | NAMES, min_size=1, max_size=3) | JSON, max_size=3)
EDITOR_NODE = st.fixed_dictionaries({
    "id": st.integers(1, 4) | JSON, "type": CLASSES | st.sampled_from(["Reroute", "PrimitiveNode", "Note", "sub"]) | JSON,
    "mode": st.sampled_from([0, 2, 4]) | JSON, "inputs": SLOTS | JSON, "outputs": SLOTS | JSON, "widgets_values": JSON,
    "title": JSON, "widgets_values_named": st.dictionaries(NAMES, JSON, max_size=2) | JSON,
    "properties": JSON | st.fixed_dictionaries({"proxyWidgets": JSON | PROXIES | PROXIES.map(json.dumps)}),
})  # fmt: skip
LINKS = st.lists(st.lists(st.integers(-20, 4), min_size=5, max_size=6) | JSON, max_size=4)
EDITOR = st.fixed_dictionaries({
    "nodes": st.lists(EDITOR_NODE | JSON, max_size=4), "links": LINKS | JSON,
    "definitions": JSON | st.fixed_dictionaries({"subgraphs": st.lists(st.fixed_dictionaries({
        "id": st.just("sub"), "nodes": st.lists(EDITOR_NODE, max_size=2), "links": LINKS, "inputs": SLOTS, "outputs": SLOTS,
    }) | JSON, max_size=1)}),
})  # fmt: skip


POSTED = st.fixed_dictionaries({
    "prompt": API | JSON, "extra_data": JSON | st.fixed_dictionaries({"extra_pnginfo": st.fixed_dictionaries({"workflow": EDITOR | JSON})}),
})  # fmt: skip


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    workflow=API | EDITOR | POSTED | JSON,
    setting=st.none() | st.sampled_from(["1.value=5", "PreviewAny.source=x", "2.image=../a"]),
)
def test_random_json_never_causes_a_traceback(command, write, workflow, setting):
    path = write(workflow)
    given = ["--set", setting] if setting else []
    code, _, err = command("check", path, *given)
    assert code in (0, 2), err
    code, _, err = command("run", path, "--json", *given)
    assert code in (0, 1, 2)
    assert "run again with --debug" not in err


def test_models_have_a_memory_budget_by_default(monkeypatch, command, write):
    from uniworld.nodes import host
    from uniworld.nodes.headless.commands import place

    monkeypatch.setattr(place, "default_budget", lambda: 12345)
    command("run", write({"1": node("NoSuchNode")}))
    plain = host.current()
    assert isinstance(plain, host.PlainHost)
    assert plain.memory.budget == 12345
