"""Clients written for ComfyUI, which know nothing of this server, work on it unchanged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.parse
import urllib.request
from typing import Any

import pytest


def test_comfy_cli_runs_a_workflow(live, graphs, tmp_path):
    pytest.importorskip("comfy_cli", reason="the client is a test extra")
    workflow = tmp_path / "workflow.json"
    workflow.write_text(json.dumps(graphs["picture"]))
    command = [sys.executable, "-m", "comfy_cli", "--skip-prompt", "--no-enable-telemetry", "run", "--wait"]
    done = subprocess.run(
        [*command, "--workflow", str(workflow), "--host", "127.0.0.1", "--port", str(live.port), "--timeout", "30"],
        env={**os.environ, "HOME": str(tmp_path), "DO_NOT_TRACK": "1"},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "p_00001_.png" in done.stdout
    assert (live.config.output / "p_00001_.png").is_file()


def test_the_four_steps_of_every_example_client(live, graphs):
    """Open the socket, post the prompt, wait for the end, read the history, fetch the pictures."""
    base = f"http://127.0.0.1:{live.port}"
    socket = live.connect("example")

    def fetch(path: str, data: Any = None) -> bytes:
        body = None if data is None else json.dumps(data).encode()
        with urllib.request.urlopen(urllib.request.Request(base + path, body)) as reply:
            return bytes(reply.read())

    prompt_id = json.loads(fetch("/prompt", {"prompt": graphs["picture"], "client_id": "example"}))["prompt_id"]
    socket.until(lambda kind, data: kind == "executing" and data["node"] is None and data["prompt_id"] == prompt_id)
    outputs = json.loads(fetch(f"/history/{prompt_id}"))[prompt_id]["outputs"]
    (image,) = outputs["2"]["images"]
    assert fetch("/view?" + urllib.parse.urlencode(image)).startswith(b"\x89PNG")
