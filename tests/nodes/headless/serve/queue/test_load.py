"""Fifty clients at once: no prompt is lost or run twice, each client sees its own, and memory stays flat."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

CLIENTS, EACH = 50, 10
SPARE_BYTES = 16 * 2**20  # that the allocator and the database's pages may use between two rounds


@dataclass
class Customer:
    """A client with its own socket and session, which queues prompts and waits for the messages of their ends."""

    url: str
    name: str
    sent: list[str] = field(default_factory=list)
    received: list[tuple[str, str]] = field(default_factory=list)  # message, prompt id

    async def order(self, count: int) -> None:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=50)) as session,
            session.ws_connect(f"{self.url}/ws?clientId={self.name}") as socket,
        ):
            for _ in range(count):
                async with session.post(f"{self.url}/prompt", json=self._body()) as reply:
                    assert reply.status == 200, await reply.text()
                    self.sent.append((await reply.json())["prompt_id"])
            waiting = set(self.sent) - self._ended()
            while waiting:
                message = json.loads(await socket.receive_str(timeout=50))
                about = message["data"]
                if "prompt_id" in about:
                    self.received.append((message["type"], about["prompt_id"]))
                if message["type"] == "executing" and about["node"] is None:
                    waiting.discard(about["prompt_id"])

    def _body(self) -> dict[str, Any]:
        # The first node is the same in all prompts: it runs once and is cached afterwards.
        prompt = {
            "1": {"class_type": "Tick", "inputs": {"text": "shared"}},
            "2": {"class_type": "Record", "inputs": {"text": f"{self.name}/{len(self.sent)}", "after": ["1", 0]}},
        }
        return {"prompt": prompt, "client_id": self.name}

    def _ended(self) -> set[str]:
        return {prompt_id for kind, prompt_id in self.received if kind == "execution_success"}


def resident(pid: int) -> int:
    """Return the resident memory of a process in bytes; 0 if it cannot be read."""
    try:
        line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS:"))
    except FileNotFoundError:
        return 0
    return int(line.split()[1]) * 1024


@pytest.mark.slow
def test_fifty_clients_and_five_hundred_prompts(launch, tmp_path):
    server = launch()
    customers = [Customer(server.url, f"client{n}") for n in range(CLIENTS)]
    memory = []

    async def order(count: int) -> None:
        await asyncio.gather(*(customer.order(count) for customer in customers))
        memory.append(resident(server.process.pid))

    for count in (2, 4, 4):  # 100 prompts, then 400 more
        asyncio.run(order(count))
    ids = [one for customer in customers for one in customer.sent]
    assert len(set(ids)) == CLIENTS * EACH

    history = server.ask("/history")
    assert set(history) == set(ids)
    assert server.ask("/queue") == {"queue_running": [], "queue_pending": []}
    for customer in customers:
        for number, prompt_id in enumerate(customer.sent):
            assert history[prompt_id]["status"]["completed"] is True
            assert history[prompt_id]["outputs"] == {"2": {"text": [f"{customer.name}/{number}"]}}
        ends = Counter(prompt_id for kind, prompt_id in customer.received if kind == "execution_success")
        assert ends == Counter(customer.sent), customer.name  # each notified once, and no other client
        assert {prompt_id for _, prompt_id in customer.received} == set(customer.sent)

    lines = (tmp_path / "output" / "record.txt").read_text().splitlines()
    wanted = [f"{customer.name}/{number}" for customer in customers for number in range(EACH)]
    assert sorted(lines) == sorted(["shared", *wanted])
    assert memory[-1] - memory[0] < SPARE_BYTES, memory
