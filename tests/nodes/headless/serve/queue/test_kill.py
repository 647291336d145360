"""SIGKILL at random moments under load: finished prompts are kept, running ones marked, waiting ones run once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import threading
import urllib.error
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest

EACH = 12  # prompts between two kills
ENDS = ("execution_success", "execution_error", "execution_interrupted")


@dataclass
class Listener:
    """A client's socket in a thread, until the server dies. Records which prompts it saw start and end."""

    url: str
    name: str
    began: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._open = threading.Event()
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()
        assert self._open.wait(20)

    def _listen(self) -> None:
        with contextlib.suppress(aiohttp.ClientError, TypeError):  # it ends with the server
            asyncio.run(self._read())

    async def _read(self) -> None:
        async with aiohttp.ClientSession() as session, session.ws_connect(f"{self.url}/ws?clientId={self.name}") as ws:
            self._open.set()
            async for frame in ws:
                message = json.loads(frame.data)
                if message["type"] == "executing" and message["data"]["node"] is not None:
                    self.began.add(message["data"]["prompt_id"])
                elif message["type"] in ENDS:
                    self.ended.add(message["data"]["prompt_id"])

    def join(self) -> None:
        self._thread.join(20)
        assert not self._thread.is_alive()


def order(server: Any, wanted: list[str], chance: random.Random) -> None:
    """Queue prompts with chosen ids until the server dies."""
    for text in wanted:
        inputs = {"text": text, "milliseconds": chance.choice([0, 5, 30, 60])}
        prompt = {"1": {"class_type": "Record", "inputs": inputs}}
        # The id may already exist: the request arrived before the server died, but the response did not.
        with contextlib.suppress(urllib.error.HTTPError):
            server.ask("/prompt", {"prompt": prompt, "prompt_id": text, "client_id": "kill"})


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("kills", [5, pytest.param(20, marks=pytest.mark.acceptance)])
def test_kills_under_load(launch, tmp_path, kills):
    chance = random.Random(kills)
    wanted: list[str] = []  # the texts of the prompts, which are their ids too
    known: dict[str, Any] = {}  # the history so far
    began: set[str] = set()
    ended: set[str] = set()
    for kill in range(kills + 1):
        server = launch()
        history = server.ask("/history")
        assert {name: history.get(name) for name in known} == known
        assert ended <= set(history)
        # A prompt that ended on the socket stays ended; at most one prompt was running at each kill.
        unfinished = {name for name, entry in history.items() if not entry["status"]["completed"]}
        assert not ended & unfinished
        assert len(unfinished) <= kill
        assert began <= set(history)
        known = history
        if kill == kills:
            break

        listener = Listener(server.url, "kill")
        missing = [text for text in wanted if text not in history]
        wanted += [f"p{kill}-{n}" for n in range(EACH)]
        timer = threading.Timer(chance.uniform(0.02, 0.4), server.process.send_signal, [signal.SIGKILL])
        timer.start()
        with contextlib.suppress(OSError):  # until it dies under the requests
            order(server, missing + wanted[-EACH:], chance)
            known = server.ask("/history") or known
            timer.join()
        timer.join()
        server.end(signal.SIGKILL)
        listener.join()
        began, ended = began | listener.began, ended | listener.ended

    order(server, [text for text in wanted if text not in known], chance)
    history = server.wait(wanted)
    assert set(history) == set(wanted)
    lines = Counter((tmp_path / "output" / "record.txt").read_text().splitlines())
    assert max(lines.values()) == 1
    marked = 0
    for text, entry in history.items():
        if entry["status"]["completed"]:
            assert entry["outputs"] == {"1": {"text": [text]}}
            assert lines[text] == 1
        else:
            name, data = entry["status"]["messages"][-1]
            assert (name, data["message"][:18]) == ("execution_interrupted", "The server stopped")
            marked += 1
    assert set(lines) <= set(wanted)
    assert kills // 4 <= marked <= kills  # most kills hit a running prompt
