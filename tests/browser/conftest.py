"""ComfyUI's editor in a real browser: a server of this checkout, and pages whose requests are recorded."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

from ..forked import Forked

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Request, Response, WebSocket

LAUNCH = "import sys; from uniworld.__main__ import main; sys.exit(main(sys.argv[1:]))"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# Only this machine can be reached, whatever the page requests.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
SIZE = {"width": 1600, "height": 900}
STORED = "cookies,local_storage,indexeddb,service_workers,cache_storage"
PATIENCE = 30.0  # seconds; a wait ends as soon as its condition holds


class Host:
    """`uniworld serve` in its own folder. A restart uses the same port."""

    def __init__(self, folder: Path, frontend: Path | None = None, packs: Sequence[Path] = ()) -> None:
        self.folder, self.frontend, self.packs, self.port = folder, frontend, packs, 0
        self.process: Forked | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        options = ["--port", str(self.port), *(["--frontend", str(self.frontend)] if self.frontend else [])]
        options += [option for pack in self.packs for option in ("--pack", str(pack))]
        process = self.process = Forked(self.folder, f"serve-{time.monotonic_ns()}", LAUNCH, ["serve", *options])
        end = time.monotonic() + PATIENCE
        while (address := re.search(r"http://127\.0\.0\.1:(\d+)", process.out.read_text(encoding="utf-8"))) is None:
            assert process.poll() is None, f"The server exited:\n{process.err.read_text(encoding='utf-8')}"
            assert time.monotonic() < end, "The server did not start."
            time.sleep(0.05)
        self.port = int(address[1])

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(PATIENCE)
            finally:
                self.process.kill()
            self.process = None

    def ask(self, path: str, body: Any = None) -> Any:
        """Return the server's response to a GET, or to a POST with this body."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            text = answer.read()
        return json.loads(text) if text else None


class Editor:
    """A page with the editor, in an empty profile.

    Attributes:
        outside: URLs on other hosts that the page requested. The server's content policy should block all of them.
        broken: responses with status 500 and above.
    """

    def __init__(self, page: Page, host: Host) -> None:
        self.page, self.host = page, host
        self.outside: list[str] = []
        self.broken: list[str] = []
        page.set_default_timeout(PATIENCE * 1000)
        self._listeners: dict[Any, Callable[[Any], None]] = {
            "requestfinished": self._asked,
            "requestfailed": self._failed,
            "websocket": self._connected,
            "response": self._answered,
        }
        for event, listener in self._listeners.items():
            page.on(event, listener)

    def leave(self) -> None:
        """Leave the editor and clear its profile, so that the page can be opened as if for the first time.

        The page and the browser's cache stay. They save more than half of the processor time of opening the editor.
        """
        self.page.goto(self.host.url + "/api/features")  # another page of the same origin, which stores nothing
        self.page.evaluate("() => (localStorage.clear(), sessionStorage.clear())")
        session = self.page.context.new_cdp_session(self.page)
        session.send("Storage.clearDataForOrigin", {"origin": self.host.url, "storageTypes": STORED})
        session.detach()
        for event, listener in self._listeners.items():
            self.page.remove_listener(event, listener)

    def _failed(self, request: Request) -> None:
        if request.failure != "csp":
            self._check(request.url)

    def _connected(self, socket: WebSocket) -> None:
        self._check(socket.url)

    def _answered(self, answer: Response) -> None:
        if answer.status >= 500:
            self.broken.append(answer.url)

    def _asked(self, request: Request) -> None:
        self._check(request.url)

    def _check(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("data", "blob") and parts.netloc != urlsplit(self.host.url).netloc:
            self.outside.append(url)

    # --- the graph ---------------------------------------------------------------------------------------------------

    def open(self, template: str | None = None) -> None:
        """Open the editor with a template, or as on a first visit."""
        named = template and self.host.frontend is None  # older editors ignore the query string
        self.page.goto(self.host.url + (f"/?template={template}" if named else "/"))
        self.wait_until_ready()
        if template:
            if not named:
                self.page.get_by_test_id(f"template-workflow-{template}").click()
            self.wait_for_node("UniWorldSampler")

    def wait_until_ready(self) -> None:
        self.page.wait_for_function("() => window.app?.graph && app.canvas && app.api.clientId")

    def wait_for_node(self, kind: str) -> None:
        self.page.wait_for_function("(kind) => app.graph._nodes.some((node) => node.type == kind)", arg=kind)

    def node(self, kind: str, what: str = "true", arg: Any = None) -> Any:
        """Evaluate a JavaScript expression of `node`, the first node of this kind, and `arg`."""
        script = f"([kind, arg]) => {{ const node = app.graph._nodes.find((one) => one.type == kind); return {what} }}"
        return self.page.evaluate(script, [kind, arg])

    def set(self, kind: str, **values: Any) -> None:
        for name, value in values.items():
            self.node(kind, "void (node.widgets.find((one) => one.name == arg[0]).value = arg[1])", [name, value])

    def get(self, kind: str, name: str) -> Any:
        return self.node(kind, "node.widgets.find((one) => one.name == arg).value", name)

    def make_quick(self, prefix: str, steps: int = 2) -> None:
        """Make the graph paint noise in a few steps, and save it with this prefix.

        The editor does not enlarge pictures: nano's would be tiny in its node, so the tiny model paints larger ones.
        """
        self.set("UniWorldLoader", checkpoint="tiny", flux="tiny", siglip="tiny")
        self.set("UniWorldEmptyLatent", area_side=128)
        self.set("UniWorldSampler", steps=steps)
        self.set("SaveImage", filename_prefix=prefix)

    def choose_picture(self, name: str) -> None:
        """Choose a picture in Load Image's list, and wait until the node shows it."""
        self.until(
            lambda: self.pictures("LoadImage"), "the sample picture"
        )  # otherwise it might load after the chosen one
        chosen = "node.widgets.find((one) => one.name == 'image')"
        self.node("LoadImage", f"(({chosen}.value = arg), void {chosen}.callback?.(arg))", name)
        self.until(lambda: any(name in one for one in self.pictures("LoadImage")), f"{name} in Load Image")

    def select(self, kind: str) -> None:
        self.node(kind, "void (app.canvas.deselectAll(), app.canvas.select(node))")

    # --- runs --------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        self.page.get_by_role("button", name="Run", exact=True).click()

    def until(self, holds: Callable[[], Any], what: str) -> Any:
        """Wait until a condition of the page or the server holds, and return its value."""
        end = time.monotonic() + PATIENCE
        while not (value := holds()):
            assert time.monotonic() < end, f"It never came: {what}."
            self.page.wait_for_timeout(50)  # process the page's events
        return value

    def jobs(self) -> list[dict[str, Any]]:
        """Return the server's jobs, oldest first."""
        return sorted(self.host.ask("/api/jobs")["jobs"], key=lambda job: (job["create_time"], job["priority"]))

    def wait_for_jobs(self, count: int, state: str = "completed") -> list[dict[str, Any]]:
        """Wait until this many jobs have finished since the start of the test, the last in this state, and return them."""

        def ended() -> list[dict[str, Any]] | None:
            jobs = self.jobs()[self.before :]
            running = any(job["status"] in ("pending", "in_progress") for job in jobs)
            return jobs if len(jobs) == count and not running else None

        jobs = self.until(ended, f"{count} finished jobs")
        assert jobs[-1]["status"] == state
        return jobs

    def count_jobs(self) -> None:
        self.before = len(self.jobs())

    def pictures(self, kind: str) -> list[str]:
        """Return the URLs of the loaded pictures in a node."""
        loaded = "(node.imgs ?? []).filter((one) => one.complete && one.naturalWidth).map((one) => one.src)"
        return self.node(kind, loaded)

    # --- the screen --------------------------------------------------------------------------------------------------

    def seen(self, kind: str, around: int = 0) -> Image.Image:
        """Return a screenshot of a node, including its title."""
        box = self.node(
            kind,
            """(() => {
                const room = app.canvas.canvas.getBoundingClientRect(), scale = app.canvas.ds.scale
                const [x, y] = app.canvas.ds.convertOffsetToCanvas([node.pos[0], node.pos[1] - 30])
                return [x + room.left, y + room.top, node.size[0] * scale, (node.size[1] + 30) * scale]
            })()""",
        )
        x, y, width, height = box
        clip = {"x": x - around, "y": y - around, "width": width + 2 * around, "height": height + 2 * around}
        return Image.open(io.BytesIO(self.page.screenshot(clip=clip))).convert("RGB")

    def written(self) -> list[str]:
        """Return the texts that the canvas draws."""
        return self.page.evaluate(
            """() => {
                const texts = [], context = app.canvas.ctx, write = context.fillText
                context.fillText = function (text, ...at) { texts.push(text); return write.call(this, text, ...at) }
                try { app.canvas.draw(true, true) } finally { delete context.fillText }
                return texts
            }"""
        )

    def shows_colors(self, kind: str) -> bool:
        """Whether the node shows a picture, since the node itself is gray."""
        image = self.seen(kind).resize((80, 80))
        return sum(max(pixel) - min(pixel) > 50 for pixel in _pixels(image)) > 200

    def framed_in_red(self, kind: str) -> bool:
        image = self.seen(kind, around=8)
        return sum(red > 150 and max(green, blue) < 50 for red, green, blue in _pixels(image)) > 300


def _pixels(image: Image.Image) -> Iterator[tuple[int, ...]]:
    data = image.tobytes()
    return zip(data[0::3], data[1::3], data[2::3])


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless browser, closed after each module: Playwright's sync API blocks event loops of other tests."""
    for name in ("playwright", "aiohttp", "comfyui_frontend_package"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed (tests/browser/README.md)")
    from playwright.sync_api import sync_playwright

    path = os.environ.get("UNIWORLD_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no Chromium found; set UNIWORLD_CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def host_class() -> type[Host]:
    return Host


@pytest.fixture(scope="module")
def hosts(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Host]]:
    """The running server with the "current" editor, or with the "old" one of UNIWORLD_OLD_FRONTEND."""
    started: dict[str, Host] = {}

    def get(which: str) -> Host:
        if which not in started:
            old = os.environ.get("UNIWORLD_OLD_FRONTEND")
            if which == "old" and not old:
                pytest.skip("UNIWORLD_OLD_FRONTEND is not set (tests/browser/README.md)")
            host = Host(tmp_path_factory.mktemp(which), Path(old).resolve() if which == "old" and old else None)
            host.start()
            started[which] = host
        return started[which]

    yield get
    for host in started.values():
        host.stop()


@pytest.fixture
def own_host(browser: Browser, tmp_path: Path) -> Iterator[Host]:
    """A server that a test may stop and start."""
    host = Host(tmp_path)
    host.start()
    yield host
    host.stop()


@pytest.fixture(scope="module")
def first_page(browser: Browser) -> Page:
    """The page that the tests of a module share, one after another."""
    return browser.new_context(viewport=SIZE, locale="en-US").new_page()


@pytest.fixture
def new_editor(
    browser: Browser, first_page: Page, request: pytest.FixtureRequest
) -> Iterator[Callable[[Host], Editor]]:
    """Open pages in separate profiles, all of them empty; after the test, all of their requests are checked."""
    opened: list[Editor] = []

    def new(host: Host) -> Editor:
        first_page.set_viewport_size(SIZE)
        page = browser.new_context(viewport=SIZE, locale="en-US").new_page() if opened else first_page
        opened.append(Editor(page, host))
        opened[-1].count_jobs()
        return opened[-1]

    yield new
    pictures = os.environ.get("UNIWORLD_SCREENSHOTS")
    for number, one in enumerate(opened):
        if pictures:
            name = re.sub(r"\W+", "_", request.node.name).strip("_")
            one.page.screenshot(path=Path(pictures) / f"{name}_{number}.png")
        if one.page is first_page:
            one.leave()
        else:
            one.page.context.close()
    assert [url for one in opened for url in one.outside] == [], "The page requested another host."
    assert [url for one in opened for url in one.broken] == [], "The server failed."


@pytest.fixture
def editor(
    hosts: Callable[[str], Host], new_editor: Callable[[Host], Editor], request: pytest.FixtureRequest
) -> Editor:
    """A page on the module's server; `each_editor` runs a test with both versions of the editor."""
    return new_editor(hosts(getattr(request, "param", "current")))
