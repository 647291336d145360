"""Headless Firefox, driven by WebDriver BiDi. Firefox implements the protocol itself, so no driver is needed."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("firefox", "firefox-esr")
PATIENCE = 60.0  # seconds
# No requests to other hosts; downloads are saved without a dialog.
SETTINGS = {
    "app.update.enabled": False,
    "browser.download.alwaysOpenPanel": False,
    "browser.download.folderList": 2,
    "browser.shell.checkDefaultBrowser": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "network.proxy.http": "127.0.0.1",
    "network.proxy.http_port": 9,
    "network.proxy.ssl": "127.0.0.1",
    "network.proxy.ssl_port": 9,
    "network.proxy.type": 1,
}


def path() -> str | None:
    """Return the path in `UNIWORLD_FIREFOX`, or an installed Firefox."""
    return os.environ.get("UNIWORLD_FIREFOX") or next(filter(None, map(shutil.which, NAMES)), None)


class Firefox:
    """A browser with a profile in `folder`; use it as `async with Firefox(program, folder) as firefox`."""

    def __init__(self, program: str, folder: Path) -> None:
        self.program, self.folder, self.sent, self.tab = program, folder, 0, ""

    async def __aenter__(self) -> Firefox:
        profile = self.folder / "profile"
        profile.mkdir()
        settings = SETTINGS | {"browser.download.dir": str(self.folder / "downloads")}
        lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in settings.items()]
        (profile / "user.js").write_text("".join(lines), encoding="utf-8")
        options = ("--headless", "--no-remote", "--remote-debugging-port", "0", "--profile", str(profile))
        self.process = await asyncio.create_subprocess_exec(
            self.program,
            *options,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "HOME": str(self.folder)},
        )
        self.session = aiohttp.ClientSession()
        try:
            address = await asyncio.wait_for(self._address(), PATIENCE)
            self.reading = asyncio.create_task(self._read_on())  # otherwise a full pipe would block it
            self.socket = await self.session.ws_connect(f"{address}/session", max_msg_size=0)
            await self.do("session.new", capabilities={})
            await self.new_tab()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()
        if self.process.returncode is None:
            self.process.terminate()
        await self.process.wait()

    async def _address(self) -> str:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            if found := re.search(rb"ws://127\.0\.0\.1:\d+", line):
                return found[0].decode()
        raise AssertionError("Firefox exited before it listened.")

    async def _read_on(self) -> None:
        assert self.process.stderr is not None
        async for _ in self.process.stderr:
            pass

    async def do(self, method: str, **params: Any) -> Any:
        """Send a command of the protocol and return its result. Raises RuntimeError for an error."""
        self.sent += 1
        number = self.sent
        await self.socket.send_json({"id": number, "method": method, "params": params})
        while (answer := await self.socket.receive_json(timeout=PATIENCE)).get("id") != number:
            pass
        if answer["type"] == "error":
            raise RuntimeError(f"{answer['error']}: {answer['message']}")
        return answer["result"]

    async def new_tab(self) -> None:
        self.tab = (await self.do("browsingContext.create", type="tab"))["context"]

    async def open(self, url: str, wait: str = "complete") -> bool:
        """Open a URL in the tab. Returns False if it is a download."""
        try:
            await self.do("browsingContext.navigate", context=self.tab, url=url, wait=wait)
        except RuntimeError:
            return False
        return True

    async def evaluate(self, script: str) -> Any:
        """Evaluate a JavaScript expression in the page; promises are awaited."""
        made = await self.do("script.evaluate", expression=script, target={"context": self.tab}, awaitPromise=True)
        assert made["type"] == "success", made
        return made["result"].get("value")
