"""SIGKILL at twenty random moments under load: what finished is kept, what ran is marked, what waited runs; nothing twice."""

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

KILLS, EACH = 20, 12
ENDS = ("execution_success", "execution_error", "execution_interrupted")


@dataclass
class Listener:
    """A client's socket in a thread, until the server dies; what it saw end and begin outlives both."""

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
    """Queue prompts under ids of their own until the server is gone."""
    for text in wanted:
        inputs = {"text": text, "milliseconds": chance.choice([0, 5, 30, 60])}
        prompt = {"1": {"class_type": "Record", "inputs": inputs}}
        # An id may be taken: it came in before the server died, only the answer did not come out.
        with contextlib.suppress(urllib.error.HTTPError):
            server.ask("/prompt", {"prompt": prompt, "prompt_id": text, "client_id": "kill"})


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_twenty_kills_under_load(launch, tmp_path):
    chance = random.Random(20)
    wanted: list[str] = []  # the texts of the prompts, which are their ids too
    known: dict[str, Any] = {}  # the history as it was seen
    began: set[str] = set()
    ended: set[str] = set()
    for kill in range(KILLS + 1):
        server = launch()
        history = server.ask("/history")
        assert {name: history.get(name) for name in known} == known
        assert ended <= set(history)
        # Seen at the socket as ended is seen for good; at most one prompt of each life was running when it ended.
        unfinished = {name for name, entry in history.items() if not entry["status"]["completed"]}
        assert not ended & unfinished
        assert len(unfinished) <= kill
        assert began <= set(history)
        known = history
        if kill == KILLS:
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
            assert (name, data["message"][:15]) == ("execution_interrupted", "The server died")
            marked += 1
    assert set(lines) <= set(wanted)
    assert KILLS // 4 <= marked <= KILLS  # most kills hit a prompt that ran
