"""A server with OpenAI's API that replies by a script, on its own thread."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from PIL import Image

KEY = "sk-secret-of-the-test"


@dataclass
class Request:
    """One request: the text of the user's message, its pictures, and everything else that was sent."""

    text: str
    pictures: list[Image.Image]
    mimes: list[str]
    body: dict[str, Any]
    key: str

    @property
    def hash(self) -> str:
        return hashlib.sha256(json.dumps(self.body["messages"]).encode()).hexdigest()


@dataclass
class Answer:
    """What the server does: a status with a JSON body, or a reply of the model."""

    text: str | None = None
    status: int = 200
    error: dict[str, Any] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    message: dict[str, Any] = field(default_factory=dict)
    finish: str = "stop"
    cut: bool = False
    raw: str | None = None
    wait: float = 0.0
    drip: float = 0.0


@dataclass
class FakeJudge:
    """The server. `script` returns the answer to a request; `requests` has all requests, `replies` those that cost money."""

    script: Callable[[Request], Answer]
    url: str = ""
    requests: list[Request] = field(default_factory=list)
    replies: list[str] = field(default_factory=list)

    async def handle(self, http: web.Request) -> web.StreamResponse:
        assert http.headers["Authorization"] == f"Bearer {KEY}"
        body = await http.json()
        content = body["messages"][-1]["content"]
        urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
        mimes = [url.partition(";")[0].removeprefix("data:") for url in urls]
        pictures = [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls]
        text = "".join(part["text"] for part in content if part["type"] == "text")
        request = Request(text, pictures, mimes, body, http.headers["Idempotency-Key"])
        self.requests.append(request)
        answer = self.script(request)
        if answer.wait:
            await asyncio.sleep(answer.wait)
        if answer.cut:
            response = web.StreamResponse(headers={"Content-Length": "1000", "Content-Type": "application/json"})
            await response.prepare(http)
            await response.write(b'{"id": "x", "choi')
            assert http.transport is not None
            http.transport.close()
            return response
        if answer.drip:
            return await _dripping(http, answer.drip)
        if answer.raw is not None:
            return web.Response(text=answer.raw, content_type="application/json", headers=answer.headers)
        if answer.status != 200:
            return web.json_response({"error": answer.error or {}}, status=answer.status, headers=answer.headers)
        self.replies.append(request.key)
        message = {"role": "assistant", "content": answer.text, **answer.message}
        return web.json_response(
            {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "created": 1,
                "model": f"{body['model']}-2025-04-14",
                "system_fingerprint": "fp_1",
                "choices": [{"index": 0, "message": message, "finish_reason": answer.finish}],
                "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100},
            }
        )


async def _dripping(http: web.Request, wait: float) -> web.StreamResponse:
    """Send a space now and then, without end."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(http)
    while True:
        try:
            await response.write(b" ")
        except OSError:  # the client has closed the connection
            return response
        await asyncio.sleep(wait)


@contextmanager
def serving(script: Callable[[Request], Answer]) -> Iterator[FakeJudge]:
    """Run the server until the block ends."""
    fake = FakeJudge(script)
    loop = asyncio.new_event_loop()
    ready = threading.Event()

    async def start() -> web.AppRunner:
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/v1/chat/completions", fake.handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        ready.set()
        return runner

    def work() -> None:
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(start())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield fake
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
