"""Overhead of the server: prompts per second, its own time per cached prompt, and the ratio to the bare executor.

A graph of three small nodes runs a few hundred times: the same one, completely cached, and variants of which
two nodes run again. The server is a separate process; a client posts prompts over HTTP and waits on the socket.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PACK = HERE.parent / "nodes" / "headless" / "toys.py"
LAUNCH = f"""
import sys
sys.path.insert(0, {str(HERE)!r})
from checkout import import_checkout
import_checkout()
from uniworld.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def graph(number: int) -> dict[str, Any]:
    """A graph that shows 4 + `number`. Each number is a different graph to the cache, but the first node is the same."""
    return {
        "1": {"class_type": "Number", "inputs": {"value": 4}},
        "2": {"class_type": "Add", "inputs": {"a": ["1", 0], "b": number}},
        "3": {"class_type": "Show", "inputs": {"value": ["2", 0]}},
    }


def executor_seconds(pack: Path, numbers: list[int]) -> list[float]:
    """Return the seconds that validating and running each graph take without a server."""
    from uniworld.nodes import host
    from uniworld.nodes.headless.check.validate import validate_prompt
    from uniworld.nodes.headless.registry.registry import load_registry
    from uniworld.nodes.headless.run.executor import Executor

    plain = host.PlainHost()
    host.install(plain)
    registry = load_registry([pack])
    executor, taken = Executor(registry, plain), []
    for number in numbers:
        start = time.perf_counter()
        checked = validate_prompt(graph(number), registry)
        assert executor.run(checked.prompt, checked.outputs, prompt_id=str(number)).status == "success"
        taken.append(time.perf_counter() - start)
    return taken


class Client:
    """Posts prompts and receives the messages of their ends, with one connection and one socket, like a browser."""

    def __init__(self, session: Any, socket: Any, url: str) -> None:
        self._session, self._socket, self._url = session, socket, url

    async def post(self, number: int) -> str:
        async with self._session.post(f"{self._url}/prompt", json={"prompt": graph(number), "client_id": "b"}) as reply:
            assert reply.status == 200, await reply.text()
            return str((await reply.json())["prompt_id"])

    async def next_finished(self) -> str:
        """Return the id of the next prompt that finishes."""
        while True:
            message = json.loads(await self._socket.receive_str(timeout=30))
            if message["type"] == "executing" and message["data"]["node"] is None:
                return str(message["data"]["prompt_id"])


async def one_by_one(client: Client, numbers: list[int]) -> list[float]:
    """Return the seconds from each post to the message of its end."""
    taken = []
    for number in numbers:
        start = time.perf_counter()
        prompt_id = await client.post(number)
        assert await client.next_finished() == prompt_id
        taken.append(time.perf_counter() - start)
    return taken


async def all_at_once(client: Client, numbers: list[int]) -> float:
    """Return the seconds until all prompts have run, if they are posted without waiting."""
    start = time.perf_counter()

    async def posting() -> list[str]:
        return [await client.post(number) for number in numbers]

    posted = asyncio.ensure_future(posting())
    ended = [await client.next_finished() for _ in numbers]
    assert sorted(ended) == sorted(await posted)
    return time.perf_counter() - start


async def measure(url: str, work: Callable[[Client], Any]) -> Any:
    import aiohttp

    async with aiohttp.ClientSession() as session, session.ws_connect(f"{url}/ws?clientId=b") as socket:
        return await work(Client(session, socket, url))


def line(name: str, taken: list[float]) -> str:
    p95 = statistics.quantiles(taken, n=20)[-1]
    return f"{name:36} median {statistics.median(taken) * 1000:6.2f} ms   p95 {p95 * 1000:6.2f} ms"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=300, help="prompts of each kind, at most 1000 (300)")
    options = parser.parse_args(arguments)
    count = options.prompts
    cached, fresh, more = [0] * count, list(range(1, count + 1)), list(range(count + 1, 2 * count + 1))

    with tempfile.TemporaryDirectory() as folder:
        pack, editor = Path(folder) / "toys", Path(folder) / "editor"
        for path, name, text in ((pack, "__init__.py", PACK.read_text()), (editor, "index.html", "")):
            path.mkdir()
            (path / name).write_text(text)
        command = [sys.executable, "-c", LAUNCH, "serve", "--port", "0", "--pack", str(pack), "--frontend", str(editor)]
        with (Path(folder) / "log").open("w") as log:
            server = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert server.stdout is not None
            said = server.stdout.readline()
            if "http://" not in said:
                raise SystemExit((Path(folder) / "log").read_text())
            url = said.split()[3].rstrip("/")

            async def work(client: Client) -> tuple[list[float], list[float], float]:
                await one_by_one(client, [0] * 20)  # warm
                return (
                    await one_by_one(client, cached),
                    await one_by_one(client, fresh),
                    await all_at_once(client, more),
                )

            served_cached, served_fresh, burst = asyncio.run(measure(url, work))
        finally:
            server.terminate()
            server.communicate(timeout=30)
        executor_seconds(pack, [0] * 20)
        bare_cached, bare_fresh = executor_seconds(pack, cached)[1:], executor_seconds(pack, fresh)

    bare = statistics.median(bare_cached)
    added = statistics.median(served_fresh) - statistics.median(bare_fresh)
    print(f"{count} prompts of three small nodes of each kind")
    print(f"{'prompts per second, queued at once':36} {count / burst:8.0f}")
    print(f"{'prompts per second, one by one':36} {count / sum(served_fresh):8.0f}")
    print(line("cached prompt, from post to its end", served_cached))
    print(line("of that the server's own time", [taken - bare for taken in served_cached]) + "   (aim: under 5 ms)")
    print(line("cached prompt in the bare executor", bare_cached))
    print(line("two nodes rerun, from post to its end", served_fresh))
    print(line("two nodes rerun in the bare executor", bare_fresh))
    print(
        f"{'server over bare executor':36} {1 + added / statistics.median(bare_fresh):8.1f} times, {added * 1000:.2f} ms more"
    )
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    from checkout import import_checkout

    import_checkout()
    sys.exit(main())
