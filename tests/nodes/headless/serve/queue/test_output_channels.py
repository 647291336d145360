"""The queue continues whatever happens to the terminal and to its listeners."""

from __future__ import annotations

import io
import sys

import pytest


class Broken(io.StringIO):
    """A terminal whose every write fails."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")

    def isatty(self) -> bool:
        return True


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [Broken(), closed(), None], ids=["full", "closed", "none"])
def test_prompts_run_without_a_terminal(live, graphs, monkeypatch, stream):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        ids = [live.queue(graphs[name]) for name in ("sum", "picture", "sum")]
        ended = [live.wait(one)["status"]["status_str"] for one in ids]
    assert ended == ["success"] * 3


@pytest.mark.parametrize("part", ["metrics.count_run", "clients.send"])
def test_an_error_in_a_listener_does_not_stop_the_queue(live, graphs, monkeypatch, capsys, part):
    owner, _, name = part.partition(".")

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a mistake of ours")

    with monkeypatch.context() as patch:
        patch.setattr(getattr(live.server, owner), name, fail)
        done = live.run(graphs["sum"], client_id="me")
    assert done["status"]["status_str"] == "success"
    assert live.run(graphs["picture"])["status"]["status_str"] == "success"
    assert "a mistake of ours" in capsys.readouterr().err


def test_invalid_ui_data_and_previews_do_not_fail_a_prompt(live, graphs):
    socket = live.connect("me")
    done = live.run({"1": {"class_type": "Unruly", "inputs": {}}}, client_id="me")
    assert done["status"]["status_str"] == "success"
    assert done["outputs"]["1"]["text"][2] == "NaN"
    socket.until_done()
    assert live.run(graphs["sum"])["status"]["status_str"] == "success"
