"""`--server` with real servers: `uniworld serve`, and a ComfyUI whose folder `UNIWORLD_COMFY` names."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[4]
COMFY = os.environ.get("UNIWORLD_COMFY")


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


PICTURE = {
    "1": node("NoiseImage", width=8, height=6), "2": node("SaveImage", images=["1", 0], filename_prefix="deep/p"),
    "3": node("PreviewImage", images=["1", 0]), "4": node("Number", value=4), "5": node("Show", value=["4", 0]),
}  # fmt: skip
BAD = [
    {"1": node("Number", value=101), "2": node("Show", value=["1", 0])},
    {"1": node("Checked", value=13)}, {"1": node("Nothing")}, {"1": node("Number", value=1)},
    {"1": node("Show", value=["2", 0])}, {"1": node("Show")},
]  # fmt: skip


def last_line(out: str) -> dict[str, Any]:
    return json.loads(out.splitlines()[-1])


@pytest.fixture
def both(uniworld, served, toy_pack):
    """The same command here and on a server."""

    def both(*arguments: str) -> list[tuple[int, str, str]]:
        here = uniworld(*arguments, "--pack", str(toy_pack), "--output", "here")
        return [here, uniworld(*arguments, "--server", served.url, "--output", "there")]

    return both


def test_a_run_on_a_server_prints_what_a_local_run_prints(both, write, tmp_path):
    (code, out, _), there = both("run", write(PICTURE))
    assert (code, there[0]) == (0, 0)
    lines, lines_there = out.splitlines(), there[1].splitlines()
    assert [line for line in lines_there if "preview" not in line] == [
        line.replace("here", "there", 1) for line in lines if "preview" not in line
    ]
    assert len(lines) == len(lines_there) == 3
    with Image.open(tmp_path / "there" / "deep" / "p_00001_.png") as picture:
        assert json.loads(picture.text["prompt"]) == PICTURE


def test_events_have_the_same_keys(both, write):
    prompt = {**PICTURE, "1": node("NoiseImage", width=9, height=6), "4": node("Number", value=5)}  # nothing is cached
    (_, out, _), (_, out_there, _) = both("run", write(prompt), "--json")
    shapes = [{(one["event"], *sorted(one)) for one in map(json.loads, text.splitlines())} for text in (out, out_there)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("number", range(len(BAD)))
@pytest.mark.parametrize("command", ["run", "check"])
def test_problems_are_the_same_sentences(both, write, command, number):
    here, there = both(command, write(BAD[number]), "--json")
    if command == "check" and BAD[number]["1"]["class_type"] == "Checked":
        return  # its own check is the server's, and nothing is sent there
    assert here[0] == there[0] == 2
    wanted = last_line(here[1])["problems"]
    assert last_line(there[1])["problems"] == wanted


def test_an_error_is_the_same_sentence(both, write):
    here, there = both("run", write({"1": node("Failing", value=1), "2": node("Show", value=["1", 0])}))
    assert here[0] == there[0] == 1
    assert there[2].splitlines()[-1] == here[2].splitlines()[-1]


def test_a_server_killed_in_the_middle_of_a_batch(uniworld, write, serve, when, tmp_path):
    first, second = serve("first"), serve("second")
    write(
        {
            "1": node("Record", text="x", milliseconds=300),
            "2": PICTURE["1"],
            "3": node("SaveImage", images=["2", 0], filename_prefix="p"),
        }
    )
    ids = [f"r{number}" for number in range(12)]
    write("\n".join(json.dumps({"id": name, "set": {"Record.text": name}}) for name in ids), "r.jsonl")
    when(lambda: len(first.lines()) == 2, first.kill)
    servers = ["--server", first.url, "--server", second.url]
    code, out, err = uniworld("batch", "w.json", "--rows", "r.jsonl", "--json", *servers)
    assert code == 0, err
    found = [json.loads(line) for line in out.splitlines()]
    assert sorted(one["id"] for one in found if one.get("status") == "done") == sorted(ids)
    assert all((tmp_path / "output" / "r" / name / "p_00001_.png").is_file() for name in ids)
    # Only what ran when the server died has run twice.
    ran = Counter(first.lines() + second.lines())
    assert sum(ran.values()) == len(ids) + 1
    assert ran[first.lines()[-1]] == 2


# --- ComfyUI ----------------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="module")
def comfy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a ComfyUI with this pack."""
    if not COMFY:
        pytest.skip("set UNIWORLD_COMFY to the folder of a ComfyUI")
    base = tmp_path_factory.mktemp("comfy")
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes" / "uniworld").symlink_to(ROOT)
    port = free_port()
    pythons = (Path(COMFY) / ".venv" / "bin" / "python", Path(COMFY).parent / "venv" / "bin" / "python")
    python = next((one for one in pythons if one.is_file()), Path(sys.executable))
    options = ["--cpu", "--listen", "127.0.0.1", "--port", str(port), "--disable-auto-launch", "--disable-api-nodes"]
    options += ["--base-directory", str(base), "--database-url", "sqlite:///:memory:"]
    with (base / "log").open("w") as log:
        process = subprocess.Popen([python, "main.py", *options], cwd=COMFY, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{url}/queue", timeout=5).read()
                break
            except OSError:
                assert time.monotonic() < end and process.poll() is None, (base / "log").read_text()[-3000:]  # noqa: PT018
                time.sleep(0.5)
        yield url
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_the_shipped_edit_runs_on_comfyui(uniworld, comfy, tmp_path):
    assert uniworld("check", "edit", "--server", comfy)[0] == 0
    code, out, err = uniworld("run", "edit", "--server", comfy, "--set", "UniWorld Sampler.steps=2", "--json")
    assert code == 0, err
    names = [json.loads(line)["event"] for line in out.splitlines()]
    assert names[0] == "execution_start"
    assert names[-2:] == ["execution_success", "result"]
    assert names.count("progress") >= 2
    picture = Path(last_line(out)["images"][0])
    assert picture == Path("output", "uniworld", "edit_00001_.png")
    with Image.open(picture) as opened:
        assert "shapes-" in opened.text["prompt"]


@pytest.mark.slow
def test_problems_and_errors_on_comfyui(uniworld, write, comfy):
    prompt = {
        "1": node("RegexReplace", string="a", regex_pattern="[", replace="b"),
        "2": node("PreviewAny", source=["1", 0]),
    }
    code, out, err = uniworld("run", write(prompt), "--server", comfy)
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith("Node 1 (RegexReplace) failed: ")
    assert "unterminated character set" in err
    prompt["1"]["inputs"]["regex_pattern"] = "a"
    assert uniworld("run", write(prompt), "--server", comfy)[:2] == (0, "PreviewAny: b\n")
    moving = {
        "1": node("EmptyImage", width=16, height=16, batch_size=3, color=255),
        "2": node(
            "SaveAnimatedWEBP",
            images=["1", 0],
            filename_prefix="a",
            fps=6.0,
            lossless=True,
            quality=80,
            method="default",
        ),
    }
    assert uniworld("run", write(moving), "--server", comfy)[1] == f"{Path('output', 'a_00001_.webp')}\n"
    del prompt["1"]["inputs"]["string"]
    for command in ("check", "run"):
        code, out, err = uniworld(command, write(prompt), "--server", comfy)
        assert code == 2
        assert "the required input 'string'" in out + err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_ctrl_c_on_comfyui(uniworld, comfy, when):
    def queue() -> Any:
        return json.loads(urllib.request.urlopen(f"{comfy}/queue", timeout=5).read())

    when(lambda: queue()["queue_running"], lambda: os.kill(os.getpid(), signal.SIGINT))
    code, _, err = uniworld("run", "edit", "--server", comfy, "--set", "UniWorld Sampler.steps=1000")
    assert (code, err.splitlines()[-1]) == (1, "The run was interrupted.")
    assert queue() == {"queue_running": [], "queue_pending": []}


@pytest.mark.slow
def test_a_batch_on_comfyui_and_serve(uniworld, write, comfy, serve, tmp_path):
    other = serve("other")
    Image.new("RGB", (9, 7), "green").save(tmp_path / "photo.png")
    write({"1": node("LoadImage", image="x.png"), "2": node("SaveImage", images=["1", 0], filename_prefix="p")})
    write("\n".join([json.dumps({"image": {"LoadImage": "photo.png"}})] * 6), "r.jsonl")
    code, out, err = uniworld(
        "batch", "w.json", "--rows", "r.jsonl", "--json", "--server", comfy, "--server", other.url
    )
    assert code == 0, err
    assert {one["server"] for one in map(json.loads, out.splitlines()) if one["event"] == "started"} == {
        comfy,
        other.url,
    }
    for picture in (tmp_path / "output" / "r").rglob("p_00001_.png"):
        with Image.open(picture) as opened:
            assert opened.getpixel((0, 0)) == (0, 128, 0)
    assert len(list((tmp_path / "output" / "r").rglob("p_00001_.png"))) == 6
