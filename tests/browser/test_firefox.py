"""In Firefox, no file of a user or workflow can run a script with the server's origin.

Firefox renders more types as pages than Chromium (RDF, MathML, Atom, any XML with a style sheet). As a control, the same
files do run on a server that guesses types.
"""

from __future__ import annotations

import asyncio
import importlib.util
import io
import json
import mimetypes
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

pytest.importorskip("aiohttp", reason="aiohttp is not installed (tests/browser/README.md)")
from aiohttp import ClientSession, FormData, web
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent))
from firefox import Firefox, path

pytestmark = pytest.mark.slow
ENDINGS = (".html", ".HTML", ".xht", ".svg", ".svgz", ".xml", ".xsl", ".rdf", ".mml", ".atom", ".xul", ".mht",
           ".pdf", ".js", ".css", ".json", ".txt", ".png", ".html.png", ".gif", ".mp4", ".wasm", ".unknown", "")  # fmt: skip
XHTML, MATHML, SVG = (
    "http://www.w3.org/1999/xhtml",
    "http://www.w3.org/1998/Math/MathML",
    "http://www.w3.org/2000/svg",
)
STYLED = (
    '<?xml version="1.0"?><?xml-stylesheet type="text/xsl" href="#s"?><!DOCTYPE r [<!ATTLIST xsl:stylesheet id ID #REQUIRED>]>'
    '<r><xsl:stylesheet id="s" version="1.0" xmlns:xsl="http://www.w3.org/1999/XSL/Transform"><xsl:template match="/">'
    f'<html xmlns="{XHTML}"><script>%s</script></html></xsl:template></xsl:stylesheet></r>'
)
ARCHIVE = (
    'MIME-Version: 1.0\r\nContent-Type: multipart/related; boundary="b"\r\n\r\n'
    "--b\r\nContent-Type: text/html\r\n\r\n<script>%s</script>\r\n--b--\r\n"
)
PAGES = {
    "html": "<!doctype html><script>%s</script>",
    "svg": f'<svg xmlns="{SVG}"><script>%s</script></svg>',
    "xhtml": f'<html xmlns="{XHTML}"><script>%s</script></html>',
    "xml": f'<r xmlns="http://www.example.org/"><script xmlns="{XHTML}">%s</script></r>',
    "mathml": f'<math xmlns="{MATHML}"><script xmlns="{XHTML}">%s</script></math>',
    "styled": STYLED,
    "archive": ARCHIVE,
    "script": "%s",
}
FRAMES = ('<iframe src="%s"></iframe>',)
OBJECTS = tuple(f'<object data="%s" type="{kind}"></object>' for kind in ("text/html", "image/svg+xml"))
# All ways in which a page could run a file: as a script, a module, a worker, a service worker.
RUN = """(async () => {
    for (const url of %s) {
        for (const type of ["", "module"]) {
            const script = Object.assign(document.createElement("script"), { src: url, type })
            const over = new Promise((done) => (script.onload = script.onerror = done))
            document.documentElement.append(script)
            await over
        }
        await new Promise((done) => (new Worker(url).onerror = done, setTimeout(done, 2000)))  // one that runs says nothing
        await navigator.serviceWorker?.register(url).catch(() => {})
    }
})()"""

# The load event never fires on a page that embeds a download.
LOADED = "new Promise((done) => (document.readyState == 'complete' && done(), window.onload = () => done(), setTimeout(done, 3000)))"


class Watch:
    """A server on another port: pages that embed the files, the files with guessed types, and a record of what ran."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files, self.page, self.ran = files, "", set[tuple[str, str]]()

    async def start(self) -> None:
        application = web.Application()
        application.router.add_get("/ran", self._ran)
        application.router.add_get("/page", self._page)
        application.router.add_get("/file/{name}", self._file)
        self.runner = web.AppRunner(application)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self.runner.addresses[0][1]}"

    async def _ran(self, request: web.Request) -> web.Response:
        self.ran.add((request.query["file"], request.query["origin"]))
        return web.Response(status=204)

    async def _page(self, _: web.Request) -> web.Response:
        return _answer(self.page.encode(), "text/html")

    async def _file(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        return _answer(self.files[name], mimetypes.guess_type(name)[0] or "application/octet-stream")

    def taken(self) -> set[tuple[str, str]]:
        taken, self.ran = self.ran, set()
        return taken


def _answer(body: bytes, kind: str) -> web.Response:
    return web.Response(body=body, headers={"Content-Type": kind})


@pytest.fixture
def host(host_class: Any, tmp_path: Path) -> Iterator[Any]:
    if importlib.util.find_spec("comfyui_frontend_package") is None or path() is None:
        pytest.skip("the editor or Firefox is missing; set UNIWORLD_FIREFOX")
    host = host_class(tmp_path)
    host.start()
    yield host
    host.stop()


def test_no_file_of_users_or_workflows_runs_a_script_as_the_server(host: Any, tmp_path: Path) -> None:
    ran = asyncio.run(_attacked(host, tmp_path))
    control = {name for name, origin in ran["control"] if origin == "control"}
    assert {
        "html.html",
        "svg.svg",
        "xhtml.xht",
        "xml.xml",
        "mathml.mml",
        "styled.xml",
        "xml.rdf",
        "script.js",
    } <= control
    assert len(ran) == 6
    assert {way: sorted(found) for way, found in ran.items() if way != "control" and found} == {}


async def _attacked(host: Any, folder: Path) -> dict[str, set[tuple[str, str]]]:
    """Return what ran, by kind of attempt: (file, origin that it ran in)."""
    watch = Watch({})
    await watch.start()
    for kind, text in PAGES.items():
        for ending in ENDINGS:
            name = f"{kind}{ending}"
            watch.files[name] = (text % _script(f"{watch.url}/ran", name)).encode()
    inside = folder / "output" / "sub"
    inside.mkdir(parents=True)
    for name, data in watch.files.items():
        (inside / name).write_bytes(data)
    users = f"{host.url}/userdata/sub%2F"
    kept = await _keep(host.url, users, watch.files)
    view = f"{host.url}/view?type=output&subfolder=sub&filename="
    uploaded = [f"{host.url}/view?type=input&filename={quote(name)}" for name in kept]
    made = [view + quote(name) for name in watch.files]
    user = [users + quote(name) for name in watch.files]
    scripts = [base + quote(name) for base in (view, users) for name in watch.files if name.startswith("script")]
    found: dict[str, set[tuple[str, str]]] = {}
    try:
        async with Firefox(path() or "", folder) as firefox:

            async def attempt(way: str, *steps: Callable[[], Awaitable[Any]]) -> None:
                for step in steps:
                    await step()
                await asyncio.sleep(0.5)
                names = {watch.url: "control", host.url: "the server"}
                found[way] = {(name, names.get(origin, origin)) for name, origin in watch.taken()}
                await firefox.new_tab()

            async def embed(urls: list[str], tags: tuple[str, ...]) -> None:
                parts = [tag % url.replace("&", "&amp;") for url in urls for tag in tags]
                for start in range(0, len(parts), 100):
                    watch.page = "".join(parts[start : start + 100])
                    await firefox.open(f"{watch.url}/page", wait="interactive")
                    await firefox.evaluate(LOADED)

            async def opened(urls: list[str]) -> None:
                for url in urls:
                    await firefox.open(url)

            async def run(base: str, urls: list[str]) -> None:
                await firefox.open(base)
                await firefox.evaluate(RUN % json.dumps(urls))

            control = [f"{watch.url}/file/{quote(name)}" for name in watch.files]
            await attempt(
                "control",
                lambda: embed(control, FRAMES + OBJECTS),
                lambda: run(f"{watch.url}/page", [f"{watch.url}/file/script.js"]),
            )
            await attempt("frames", lambda: embed(made, FRAMES), lambda: embed(user, FRAMES))
            await attempt("objects", lambda: embed(made, OBJECTS), lambda: embed(user, OBJECTS))
            await attempt(
                "addresses",
                lambda: opened([url for url in made if any(f"={kind}" in url for kind in ("html", "svg", "styled"))]),
            )
            await attempt("uploads", lambda: embed(uploaded, FRAMES + OBJECTS), lambda: opened(uploaded))
            await attempt("scripts of its own page", lambda: run(f"{host.url}/metrics", scripts))
    finally:
        await watch.runner.cleanup()
    return found


def _script(address: str, name: str) -> str:
    """A script that reports its origin, without characters that markup would escape."""
    return f"fetch('{address}?file={quote(name)}'.concat(String.fromCharCode(38), 'origin=', encodeURIComponent(self.origin)))"


async def _keep(server: str, users: str, files: dict[str, bytes]) -> list[str]:
    """Save the files as the user's, and upload those that start like a picture. Returns the names of the uploads."""
    names = []
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    async with ClientSession() as session:
        for name, data in files.items():
            async with session.post(users + quote(name), data=data) as reply:
                assert reply.status == 200, await reply.text()
        for ending in (".html", ".svg", ".xht", ".xml", ".html.png", ""):
            form = FormData()
            form.add_field(
                "image", picture.getvalue() + files["html.html"], filename=f"blob{ending}", content_type="image/png"
            )
            async with session.post(f"{server}/upload/image", data=form) as reply:
                assert reply.status == 200, await reply.text()
                names.append((await reply.json())["name"])
    return names
