"""A small ComfyUI in a thread of the test, which can fail in every way that a server can, and `uniworld serve` in a process."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from uniworld.__main__ import main

if importlib.util.find_spec("aiohttp") is None:  # --server is an extra
    collect_ignore_glob = ["test_*.py"]
else:
    from aiohttp import web

HERE = Path(__file__).parent
LAUNCH = f"""
import runpy, sys
runpy.run_path({str(HERE.parents[2] / "conftest.py")!r})
from uniworld.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def info(required: dict[str, Any] | None = None, output: tuple[str, ...] = (), shows: bool = False, **more: Any) -> Any:
    inputs = {"required": required or {}, **more.pop("inputs", {})}
    return {
        "input": inputs, "input_order": {part: list(entries) for part, entries in inputs.items()},
        "output": list(output), "output_is_list": [False] * len(output), "output_name": list(output),
        "display_name": "", "description": "", "category": "x", "python_module": "nodes", "output_node": shows, **more,
    }  # fmt: skip


NODES = {
    "Say": info({"text": ["STRING", {"multiline": True, "dynamicPrompts": True}]}, shows=True),
    "Picture": info({"seed": ["INT", {"default": 0, "min": 0, "max": 100}]}, ("IMAGE",)),
    "SaveImage": info({"images": ["IMAGE"], "filename_prefix": ["STRING", {"default": "ComfyUI"}]}, shows=True),
    "PreviewImage": info({"images": ["IMAGE"]}, shows=True),
    "SaveAudio": info({"filename_prefix": ["STRING", {"default": "audio/x"}]}, shows=True),
    "LoadImage": info({"image": [["there.png"], {"image_upload": True}]}, ("IMAGE", "MASK")),
    "LoadLatent": info({"latent": [["old.latent"]]}, ("IMAGE",)),
    "Sampler": info({"name": [["euler", "heun"]]}, ("IMAGE",)),
    "PackSampler": info({"name": ["COMBO", {"options": ["a"]}]}, ("IMAGE",), python_module="custom_nodes.pack"),
    "Join": info({"images": ["COMFY_AUTOGROW_V3", {}]}, ("COMFY_MATCHTYPE_V3",)),
    "Wait": info({"steps": ["INT", {"default": 1}]}, shows=True),
    "Blocked": info(shows=True),
    "Fail": info({"kind": ["STRING", {}], "text": ["STRING", {}]}, shows=True),
}


def png(color: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (6, 4), color).save(file, "PNG")
    return file.getvalue()


class FakeComfyUI:
    """ComfyUI's API as far as a client needs it.

    Attributes:
        posted: the bodies of prompts that were queued.
        headers: of every request, by path.
        ran: ids of the prompts that ran to their end.
        interrupted: the bodies of interrupts.
        fail: by path, a function that may answer a request in place of the server.
        names: by node, the file names that it claims to have saved.
        sockets_open: how many messages a socket sends before it breaks; None for no end.
    """

    def __init__(self) -> None:
        self.nodes: dict[str, Any] = dict(NODES)
        self.posted: list[dict[str, Any]] = []
        self.headers: list[tuple[str, dict[str, str]]] = []
        self.ran: list[str] = []
        self.interrupted: list[Any] = []
        self.deleted: list[str] = []
        self.fail: dict[str, Callable[[Any], Any]] = {}
        self.names: dict[str, list[dict[str, str]]] = {}
        self.files: dict[tuple[str, str, str], bytes] = {("input", "", "there.png"): png()}
        self.messages_per_socket: int | None = None
        self.takes_ids = True
        self.keeps_history = True
        self.step = 0.02
        self.history: dict[str, Any] = {}
        self.waiting: list[list[Any]] = []
        self.running: list[Any] | None = None
        self.hold = threading.Event()
        self.hold.set()
        self._stop = False
        self._sockets: dict[str, Any] = {}
        self._left: dict[str, Any] = {}
        self._counters: dict[str, int] = {}
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    def start(self) -> None:
        self.call(self._start())

    async def _start(self) -> None:
        @web.middleware
        async def watch(request: Any, handler: Any) -> Any:
            self.headers.append((request.path, dict(request.headers)))
            fail = self.fail.get(request.path)
            answer = fail(request) if fail is not None else None
            if asyncio.iscoroutine(answer):
                answer = await answer
            return await handler(request) if answer is None else answer

        app = web.Application(middlewares=[watch], client_max_size=2**26)
        for method, path, handler in (
            ("GET", "/ws", self._socket), ("GET", "/object_info", self._object_info), ("POST", "/prompt", self._prompt),
            ("GET", "/queue", self._queue), ("POST", "/queue", self._delete), ("POST", "/interrupt", self._interrupt),
            ("GET", "/history/{id}", self._history), ("GET", "/view", self._view), ("POST", "/upload/image", self._upload),
        ):  # fmt: skip
            app.router.add_route(method, path, handler)
        self._runner = web.AppRunner(app, shutdown_timeout=0.05)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        self._worker = asyncio.create_task(self._work())

    def die(self) -> None:
        """End like a killed process: queue and history are gone, and connections break."""
        self.call(self._die())

    async def _die(self) -> None:
        self._worker.cancel()
        for socket in list(self._sockets.values()):
            with contextlib.suppress(Exception):
                await socket.close()
        await self._runner.cleanup()
        self.waiting, self.running, self.history, self._sockets = [], None, {}, {}

    def close(self) -> None:
        self.die()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    # --- routes -----------------------------------------------------------------------------------------------------

    async def _socket(self, request: Any) -> Any:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        sid = request.query["clientId"]
        self._left[sid] = self.messages_per_socket
        self._sockets[sid] = socket
        await socket.send_json(
            {"type": "status", "data": {"status": {"exec_info": {"queue_remaining": 0}}, "sid": sid}}
        )
        async for _ in socket:
            pass
        return socket

    async def _object_info(self, _: Any) -> Any:
        return web.json_response(self.nodes)

    async def _prompt(self, request: Any) -> Any:
        body = await request.json()
        prompt_id = body["prompt_id"] if self.takes_ids else f"own-{len(self.posted)}"
        self.posted.append(body)
        self.waiting.append([len(self.posted), prompt_id, body["prompt"], body.get("client_id"), []])
        return web.json_response({"prompt_id": prompt_id, "number": 1, "node_errors": {}})

    async def _queue(self, _: Any) -> Any:
        running = [] if self.running is None else [self.running]
        return web.json_response({"queue_running": running, "queue_pending": self.waiting})

    async def _delete(self, request: Any) -> Any:
        ids = (await request.json())["delete"]
        self.deleted += ids
        self.waiting = [item for item in self.waiting if item[1] not in ids]
        return web.Response()

    async def _interrupt(self, request: Any) -> Any:
        body = await request.json()
        self.interrupted.append(body)
        if self.running is not None and self.running[1] == body.get("prompt_id"):
            self._stop = True
        return web.Response()

    async def _history(self, request: Any) -> Any:
        prompt_id = request.match_info["id"]
        return web.json_response({prompt_id: self.history[prompt_id]} if prompt_id in self.history else {})

    async def _view(self, request: Any) -> Any:
        query = request.query
        content = self.files.get((query.get("type", "output"), query.get("subfolder", ""), query["filename"]))
        return web.Response(status=404) if content is None else web.Response(body=content)

    async def _upload(self, request: Any) -> Any:
        form = await request.post()
        file = form["image"]
        self.files[form["type"], form["subfolder"], file.filename] = file.file.read()
        return web.json_response({"name": file.filename, "subfolder": form["subfolder"], "type": form["type"]})

    # --- running ----------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        while True:
            if not self.waiting or not self.hold.is_set():
                await asyncio.sleep(0.005)
                continue
            self.running = self.waiting.pop(0)
            self._stop = False
            messages: list[Any] = []
            outputs: dict[str, Any] = {}
            state = await self._run(self.running, messages, outputs)
            _, prompt_id, _, client, _ = self.running
            status = {"status_str": state, "completed": state == "success", "messages": messages}
            if self.keeps_history:
                self.history[prompt_id] = {"prompt": self.running, "outputs": outputs, "status": status, "meta": {}}
            self.running = None
            if state == "success":
                self.ran.append(prompt_id)
            await self._send(client, "executing", {"node": None, "prompt_id": prompt_id})

    async def _run(self, item: list[Any], messages: list[Any], outputs: dict[str, Any]) -> str:
        _, prompt_id, prompt, client, _ = item
        about = {"prompt_id": prompt_id, "timestamp": 1}

        async def keep(kind: str, **data: Any) -> None:
            messages.append([kind, {**data, **about}])
            await self._send(client, kind, {**data, **about})

        await keep("execution_start")
        await keep("execution_cached", nodes=[])
        for node_id, node in prompt.items():
            place = {"node": node_id, "display_node": node_id, "prompt_id": prompt_id}
            await self._send(client, "executing", place)
            for step in range(int(node["inputs"].get("steps", 1))):
                if self._stop:
                    await keep("execution_interrupted", node_id=node_id, node_type=node["class_type"], executed=[])
                    return "error"
                await asyncio.sleep(self.step)
                await self._send(client, "progress", {"value": step + 1, "max": 9, **place})
            if node["class_type"] == "Blocked":
                error = {"node_id": node_id, "exception_type": "ExecutionBlocked", "exception_message": "Blocked."}
                await self._send(client, "execution_error", {**about, **error})
            if node["class_type"] == "Fail":
                kind, text = node["inputs"]["kind"], node["inputs"]["text"]
                more = {"executed": [], "traceback": ["a line\n"], "current_inputs": {}, "current_outputs": []}
                await keep(
                    "execution_error",
                    node_id=node_id,
                    node_type="Fail",
                    exception_message=text,
                    exception_type=kind,
                    **more,
                )
                return "error"
            ui = self._shown(node)
            if ui:
                outputs[node_id] = ui
                await self._send(client, "executed", {"output": ui, **place})
        await keep("execution_success")
        return "success"

    def _shown(self, node: dict[str, Any]) -> dict[str, Any]:
        kind, inputs = node["class_type"], node["inputs"]
        if kind == "Say":
            return {"text": [inputs["text"]]}
        if kind not in ("SaveImage", "PreviewImage", "SaveAudio"):
            return {}
        folder, _, stem = inputs.get("filename_prefix", "ComfyUI_temp_abc").rpartition("/")
        number = self._counters[stem] = self._counters.get(stem, 40) + 1
        ending = "flac" if kind == "SaveAudio" else "png"
        entry = {
            "filename": f"{stem}_{number:05}_.{ending}", "subfolder": folder,
            "type": "temp" if kind == "PreviewImage" else "output",
        }  # fmt: skip
        self.files[entry["type"], folder, entry["filename"]] = b"sound" if kind == "SaveAudio" else png("blue")
        entries = self.names.get(kind, [entry])
        return {"audio" if kind == "SaveAudio" else "images": entries}

    async def _send(self, client: str, kind: str, data: dict[str, Any]) -> None:
        socket = self._sockets.get(client)
        if socket is None or socket.closed:
            return
        if self._left[client] == 0:
            await socket.close()
            return
        if self._left[client] is not None:
            self._left[client] -= 1
        with contextlib.suppress(ConnectionError):
            await socket.send_json({"type": kind, "data": data})


@pytest.fixture
def make_fake() -> Iterator[Callable[[], FakeComfyUI]]:
    made: list[FakeComfyUI] = []

    def make() -> FakeComfyUI:
        made.append(FakeComfyUI())
        return made[-1]

    yield make
    for fake in made:
        fake.hold.set()
        fake.close()


@pytest.fixture
def fake(make_fake: Callable[[], FakeComfyUI]) -> FakeComfyUI:
    return make_fake()


@pytest.fixture
def uniworld(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run `uniworld ...` in the test's own folder; gives exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UNIWORLD_TOKEN", raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(list(arguments))
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return run


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def write(content: Any, name: str = "w.json") -> str:
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return name

    return write


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


@pytest.fixture
def graphs() -> dict[str, Any]:
    return {
        "say": {"1": node("Say", text="hello")},
        "picture": {"1": node("Picture", seed=3), "2": node("SaveImage", images=["1", 0], filename_prefix="deep/p")},
        "load": {"1": node("LoadImage", image="cat.png"), "2": node("SaveImage", images=["1", 0], filename_prefix="p")},
        "wait": {"1": node("Wait", steps=500)},
    }


def wait_for(found: Callable[[], Any], seconds: float = 20.0) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(0.01)
    raise AssertionError("it did not happen in time")


@pytest.fixture
def eventually() -> Callable[..., Any]:
    return wait_for


@pytest.fixture
def when() -> Iterator[Callable[..., None]]:
    """Do something in another thread as soon as something else is so."""
    threads: list[threading.Thread] = []

    def when(condition: Callable[[], Any], action: Callable[[], Any]) -> None:
        def work() -> None:
            wait_for(condition)
            action()

        threads.append(threading.Thread(target=work))
        threads[-1].start()

    yield when
    for thread in threads:
        thread.join()


class ServeProcess:
    """`uniworld serve` in a folder of its own, with the toy nodes of the headless tests."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "editor").mkdir(exist_ok=True)
        (folder / "editor" / "index.html").write_text("<title>editor</title>")
        packs = []
        for name, source in (("toys", HERE.parent / "toys.py"), ("more", HERE.parent / "serve" / "toys.py")):
            (folder / name).mkdir(exist_ok=True)
            (folder / name / "__init__.py").write_text(source.read_text())
            packs += ["--pack", name]
        command = [sys.executable, "-c", LAUNCH, "serve", "--port", "0", "--frontend", "editor", *packs]
        self.log = folder / "serve.log"
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        self.folder = folder
        self._read_address()

    def _read_address(self) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert "http://127.0.0.1:" in line, self.log.read_text()
        self.url = line.split()[3].rstrip("/")

    def lines(self) -> list[str]:
        """What the node Record has written."""
        file = self.folder / "output" / "record.txt"
        return file.read_text().split() if file.exists() else []

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate(timeout=30)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., ServeProcess]]:
    started: list[ServeProcess] = []

    def serve(name: str) -> ServeProcess:
        started.append(ServeProcess(tmp_path / name))
        return started[-1]

    yield serve
    for one in started:
        if one.process.poll() is None:
            one.kill()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    """One `uniworld serve` for the tests of a file."""
    made = ServeProcess(tmp_path_factory.mktemp("served") / "server")
    yield made
    made.kill()
