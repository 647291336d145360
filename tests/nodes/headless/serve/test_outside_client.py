"""Clients written for ComfyUI work with this server unchanged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest

WORKFLOWS = Path(__file__).resolve().parents[4] / "workflows"


@pytest.fixture
def comfy(live, tmp_path):
    """comfy-cli with the server's address, its own home folder, and no access to other hosts."""
    pytest.importorskip("comfy_cli", reason="the client is a test extra")
    command = [
        sys.executable,
        "-m",
        "comfy_cli",
        "--skip-prompt",
        "--no-enable-telemetry",
        "run",
        "--wait",
        "--verbose",
    ]
    address = ["--host", "127.0.0.1", "--port", str(live.port), "--timeout", "60"]
    # Requests to other hosts fail: they go to a proxy that does not exist.
    nobody = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    home = {
        "HOME": str(tmp_path),
        "USERPROFILE": str(tmp_path),
        "DO_NOT_TRACK": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }

    def comfy(workflow: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, "--workflow", str(workflow), *address],
            env={**os.environ, **nobody, **home},
            capture_output=True, text=True, timeout=90, encoding="utf-8",
        )  # fmt: skip

    return comfy


def test_comfy_cli_runs_a_workflow(comfy, live, graphs, tmp_path):
    (tmp_path / "workflow.json").write_text(json.dumps(graphs["picture"]))
    done = comfy(tmp_path / "workflow.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "p_00001_.png" in done.stdout
    assert (live.config.output / "p_00001_.png").is_file()


def test_comfy_cli_reports_an_error(comfy, tmp_path):
    (tmp_path / "workflow.json").write_text(json.dumps({"1": {"class_type": "Exits", "inputs": {}}}))
    done = comfy(tmp_path / "workflow.json")
    assert done.returncode != 0
    assert "a node must not end the server" in done.stdout + done.stderr


@pytest.mark.slow
def test_comfy_cli_runs_a_shipped_workflow_as_the_editor_saves_it(comfy, live, tmp_path):
    """The client converts the editor's form itself, with the server's /object_info."""
    done = comfy(WORKFLOWS / "5 Ask about a picture.json")
    assert done.returncode == 0, done.stdout + done.stderr
    (entry,) = live.get("/history").json.values()
    assert entry["status"]["completed"] is True
    assert any("text" in shown for shown in entry["outputs"].values())


def test_the_four_steps_of_every_example_client(live, graphs):
    """Open the socket, post the prompt, wait for the end, read the history, fetch the pictures."""
    websocket = pytest.importorskip("websocket", reason="it comes with the client, a test extra")
    address = f"127.0.0.1:{live.port}"

    def fetch(path: str, data: Any = None) -> bytes:
        body = None if data is None else json.dumps(data).encode()
        with urllib.request.urlopen(urllib.request.Request(f"http://{address}{path}", body), timeout=20) as reply:
            return bytes(reply.read())

    socket = websocket.WebSocket()
    socket.connect(f"ws://{address}/ws?clientId=example", timeout=20)
    prompt_id = json.loads(fetch("/prompt", {"prompt": graphs["picture"], "client_id": "example"}))["prompt_id"]
    while True:
        frame = socket.recv()
        if isinstance(frame, str):
            message = json.loads(frame)
            about = message["data"]
            if message["type"] == "executing" and about["node"] is None and about["prompt_id"] == prompt_id:
                break
    socket.close()
    outputs = json.loads(fetch(f"/history/{prompt_id}"))[prompt_id]["outputs"]
    (image,) = outputs["2"]["images"]
    assert fetch("/view?" + urllib.parse.urlencode(image)).startswith(b"\x89PNG")
