"""The queue goes on whatever happens to the terminal and to what it is told."""

from __future__ import annotations

import io
import sys

import pytest


class Broken(io.StringIO):
    """A terminal that is there and fails at everything."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")

    def isatty(self) -> bool:
        return True


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [Broken(), closed(), None], ids=["full", "closed", "none"])
def test_prompts_are_done_without_a_terminal(live, graphs, monkeypatch, stream):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        ids = [live.queue(graphs[name]) for name in ("sum", "picture", "sum")]
        ended = [live.wait(one)["status"]["status_str"] for one in ids]
    assert ended == ["success"] * 3


@pytest.mark.parametrize("part", ["metrics.ran", "clients.send"])
def test_a_mistake_in_what_is_told_does_not_end_the_queue(live, graphs, monkeypatch, capsys, part):
    owner, _, name = part.partition(".")

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a mistake of ours")

    with monkeypatch.context() as patch:
        patch.setattr(getattr(live.server, owner), name, fail)
        done = live.run(graphs["sum"], client_id="me")
    assert done["status"]["status_str"] == "success"
    assert live.run(graphs["picture"])["status"]["status_str"] == "success"
    assert "a mistake of ours" in capsys.readouterr().err


def test_what_no_json_has_and_previews_that_are_none_fail_no_prompt(live, graphs):
    socket = live.connect("me")
    done = live.run({"1": {"class_type": "Unruly", "inputs": {}}}, client_id="me")
    assert done["status"]["status_str"] == "success"
    assert done["outputs"]["1"]["text"][2] == "NaN"
    socket.until_done()
    assert live.run(graphs["sum"])["status"]["status_str"] == "success"
