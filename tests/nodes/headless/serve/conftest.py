"""A server in a thread of the test process, used through HTTP and WebSocket like any client."""

from __future__ import annotations

import asyncio
import http.client
import importlib.util
import json
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from uniworld.nodes import host
from uniworld.nodes.headless.registry.registry import Registry, load_registry
from uniworld.nodes.headless.serve.config import ServerConfig
from uniworld.nodes.headless.storage import folders

from ....forked import Forked

try:
    import aiohttp
    from uniworld.nodes.headless.serve.app import make_app, open_server
    from uniworld.nodes.headless.serve.http.connections import ConnectionTimeouts, Site
except ImportError:  # the server is an extra
    collect_ignore_glob = ["*test_*.py"]  # in subfolders too

HERE = Path(__file__).parent
TOYS = {"toys": HERE.parent / "toys.py", "serve_toys": HERE / "toys.py"}
LAUNCH = "import sys; from uniworld.__main__ import main; sys.exit(main(sys.argv[1:]))"


def load_toys(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, TOYS[name])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def place() -> None:
    """Override: the server installs the folders of its own configuration."""


@pytest.fixture(scope="session")
def registry() -> Registry:
    registry = load_registry()
    for name in TOYS:
        toys = load_toys(name)
        registry.add(toys.NODE_CLASS_MAPPINGS, toys.NODE_DISPLAY_NAME_MAPPINGS, "toys")
    return registry


@pytest.fixture(scope="session")
def frontend(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fake editor with three files."""
    root = tmp_path_factory.mktemp("frontend")
    (root / "assets").mkdir()
    (root / "index.html").write_text("<title>editor</title>")
    (root / "assets" / "index-1.js").write_text("export {}")
    return root


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return str(self.json["error"]["type"])


class Socket:
    """A client's socket; messages are (type, data), binary frames (number, bytes)."""

    def __init__(self, live: Live, url: str) -> None:
        self._live, self._url = live, url
        live.call(self._open())

    async def _open(self) -> None:
        self._session = aiohttp.ClientSession()
        self._socket = await self._session.ws_connect(self._url)

    def send(self, data: Any) -> None:
        self._live.call(self._socket.send_str(data if isinstance(data, str) else json.dumps(data)))

    def receive(self) -> tuple[Any, Any]:
        message = self._live.call(self._socket.receive(timeout=20))
        if message.type == aiohttp.WSMsgType.BINARY:
            return int.from_bytes(message.data[:4], "big"), message.data[4:]
        assert message.type == aiohttp.WSMsgType.TEXT, message
        data = json.loads(message.data)
        return data["type"], data["data"]

    def until(self, wanted: Callable[[Any, Any], bool]) -> list[tuple[Any, Any]]:
        """Return all messages up to the first one that satisfies `wanted`."""
        messages = []
        while not messages or not wanted(*messages[-1]):
            messages.append(self.receive())
        return messages

    def until_done(self) -> list[tuple[Any, Any]]:
        return self.until(lambda kind, data: kind == "executing" and data["node"] is None)

    def close(self) -> None:
        async def close() -> None:
            await self._socket.close()
            await self._session.close()

        self._live.call(close())


class Live:
    """A running server."""

    def __init__(
        self,
        config: ServerConfig,
        registry: Registry,
        limit: int | None = None,
        timeouts: type[ConnectionTimeouts] | None = None,
    ) -> None:
        self.config, self._limit, self._timeouts = config, limit, timeouts or ConnectionTimeouts
        self.server = open_server(config, registry)
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self.sockets: list[Socket] = []
        self.port: int = self.call(self._start())

    async def _start(self) -> int:
        self.site = Site(make_app(self.server), self.server, self._limit, self._timeouts, shutdown_timeout=0.2)
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        await self.site.start(listener)
        return int(listener.getsockname()[1])

    def call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def stop(self) -> None:
        for one in self.sockets:
            one.close()
        self.call(self.site.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def ask(
        self,
        method: str,
        path: str,
        data: Any = None,
        *,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Reply:
        """Send one request. The path is sent unchanged, without normalization."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        sent = dict(headers or {})
        if data is not None:
            body = json.dumps(data).encode()
            sent.setdefault("Content-Type", "application/json")
        try:
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Reply:
        return self.ask("GET", path, headers=headers)

    def post(self, path: str, data: Any = None, **options: Any) -> Reply:
        return self.ask("POST", path, data, **options)

    def queue(self, prompt: dict[str, Any], **more: Any) -> str:
        reply = self.post("/prompt", {"prompt": prompt, **more})
        assert reply.status == 200, reply.body
        return str(reply.json["prompt_id"])

    def wait(self, prompt_id: str) -> Any:
        """Wait until a prompt has finished, and return its history entry."""
        return wait_for(lambda: self.get(f"/history/{prompt_id}").json.get(prompt_id))

    def run(self, prompt: dict[str, Any], **more: Any) -> Any:
        return self.wait(self.queue(prompt, **more))

    def connect(self, sid: str = "", features: dict[str, Any] | None = None) -> Socket:
        made = Socket(self, f"http://127.0.0.1:{self.port}/ws" + (f"?clientId={sid}" if sid else ""))
        self.sockets.append(made)
        if features is not None:
            made.send({"type": "feature_flags", "data": features})
        return made

    def upload(self, name: str, content: bytes, path: str = "/upload/image", **fields: str) -> Reply:
        lines = [
            b'--x\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (k.encode(), v.encode())
            for k, v in fields.items()
        ]
        head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="%s"\r\n' % name.encode()
        lines.append(head + b"Content-Type: image/png\r\n\r\n" + content + b"\r\n--x--\r\n")
        return self.post(path, body=b"".join(lines), headers={"Content-Type": "multipart/form-data; boundary=x"})


def wait_for(found: Callable[[], Any], seconds: float = 20.0) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = found()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError("it did not happen in time")


@pytest.fixture
def config(tmp_path: Path, frontend: Path) -> ServerConfig:
    for name in ("input", "output", "temp"):
        (tmp_path / name).mkdir()
    return ServerConfig(
        port=0,
        models=tmp_path / "models",
        input=tmp_path / "input",
        output=tmp_path / "output",
        temp=tmp_path / "temp",
        user=tmp_path / "user",
        frontend=frontend,
    )


@pytest.fixture
def start(config: ServerConfig, registry: Registry) -> Iterator[Callable[..., Live]]:
    """Start servers with changed options. Running ones are stopped after the test."""
    before, running = folders.current(), []

    def start(limit: int | None = None, timeouts: type[ConnectionTimeouts] | None = None, **changes: Any) -> Live:
        live = Live(replace(config, **changes), registry, limit, timeouts)
        running.append(live)
        return live

    yield start
    for live in running:
        if live.loop.is_running():
            live.stop()
    folders.install(before)
    host.install(None)


@pytest.fixture
def live(start: Callable[..., Live]) -> Live:
    return start()


# --- a server in its own process -------------------------------------------------------------------------------------


class Process:
    """`uniworld serve` as its own process."""

    def __init__(self, folder: Path, frontend: Path, *options: str) -> None:
        pack = folder / "toy-pack"
        pack.mkdir(exist_ok=True)
        (pack / "__init__.py").write_text(TOYS["serve_toys"].read_text())
        command = ["serve", "--port", "0", "--frontend", str(frontend), "--pack", "toy-pack", *options]
        self.process = Forked(folder, f"serve-{time.monotonic_ns()}", LAUNCH, command)
        wait_for(lambda: "\n" in self.process.out.read_text() or self.process.poll() is not None, 60)
        line = self.process.out.read_text()
        assert "http://127.0.0.1:" in line, self.process.err.read_text()
        self.url = line.split()[3].rstrip("/")

    def ask(self, path: str, data: Any = None) -> Any:
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=20) as reply:
            return json.loads(reply.read() or b"null")

    def queue(self, prompt: dict[str, Any]) -> str:
        return str(self.ask("/prompt", {"prompt": prompt})["prompt_id"])

    def wait(self, ids: list[str]) -> dict[str, Any]:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            history = self.ask("/history")
            if set(ids) <= set(history):
                return history
            time.sleep(0.02)
        raise AssertionError("not all prompts finished")

    def end(self, how: int) -> tuple[int, str]:
        """Send a signal, and return the exit code and standard error."""
        self.process.send_signal(how)
        _, errors = self.process.communicate(timeout=30)
        return self.process.wait(), errors


@pytest.fixture
def launch(tmp_path: Path, frontend: Path) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def launch(*options: str) -> Process:
        process = Process(tmp_path, frontend, *options)
        started.append(process)
        return process

    yield launch
    for one in started:
        if one.process.poll() is None:
            one.end(signal.SIGKILL)


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


SUM = {"1": node("Number", value=4), "2": node("Add", a=["1", 0], b=5), "3": node("Show", value=["2", 0])}
PICTURE = {"1": node("NoiseImage", width=8, height=6), "2": node("SaveImage", images=["1", 0], filename_prefix="p")}


@pytest.fixture
def graphs() -> dict[str, Any]:
    return {"sum": SUM, "picture": PICTURE, "slow": slow(500)}


def slow(steps: int) -> dict[str, Any]:
    return {"1": node("Paint", steps=steps, seed=steps)}
