"""Makes the thumbnails of the workflows and the README's two pictures: python tests/browser/pictures.py

Needs what the tests here need. Thumbnails show the graph alone, so that they change only when a workflow does.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))
THUMBNAIL, WIDE = 800, 1400
QUIET = {"Comfy.Minimap.Visible": False, "Comfy.Graph.CanvasInfo": False}
# Puts the whole graph, with a margin, into the middle of the window; the corner, width and height on the screen.
FIT = """() => {
    const boxes = [...app.graph._nodes.map((node) => [node.pos[0], node.pos[1] - 30, ...node.size.map(Number)]),
                   ...app.graph.groups.map((group) => [...group.pos, ...group.size])]
    for (const box of boxes.slice(0, app.graph._nodes.length)) box[3] += 30
    const left = Math.min(...boxes.map((box) => box[0])) - 20, top = Math.min(...boxes.map((box) => box[1])) - 20
    const width = Math.max(...boxes.map((box) => box[0] + box[2])) + 20 - left
    const height = Math.max(...boxes.map((box) => box[1] + box[3])) + 20 - top
    const ds = app.canvas.ds, room = app.canvas.canvas.getBoundingClientRect()
    ds.scale = Math.min(2100 / width, 1000 / height, 1)
    ds.offset[0] = (150 - room.left) / ds.scale - left
    ds.offset[1] = (150 - room.top) / ds.scale - top
    app.canvas.setDirty(true, true)
    return [150, 150, width * ds.scale, height * ds.scale]
}"""


def main() -> None:
    from conftest import FLAGS, NAMES, SIZE, Editor, Host

    path = os.environ.get("UNIWORLD_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        host = Host(Path(folder))
        host.start()
        try:
            host.ask("/api/settings", QUIET)
            browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
            large = browser.new_page(viewport={"width": 2400, "height": 1400}, locale="en-US")
            for file in sorted((ROOT / "workflows").glob("*.json")):
                picture = thumbnail(Editor(large, host), file.stem)
                picture.save(file.with_suffix(".jpg"), quality=85)
            for name, picture in readme(Editor(browser.new_page(viewport=SIZE, locale="en-US"), host)).items():
                picture.thumbnail((WIDE, WIDE), Image.Resampling.LANCZOS)
                picture.save(ROOT / "nodes" / "web" / "images" / name, quality=85)
            browser.close()
        finally:
            host.stop()


def thumbnail(editor, name: str) -> Image.Image:
    editor.page.goto(f"{editor.host.url}/?template={name}&source=uniworld")
    editor.wait_until_ready()
    editor.wait_for_node("UniWorldLoader")
    if editor.node("LoadImage", "Boolean(node)"):
        editor.until(lambda: editor.pictures("LoadImage"), "the photograph")
    editor.page.wait_for_load_state("networkidle")
    x, y, width, height = editor.page.evaluate(FIT)
    editor.page.wait_for_timeout(300)  # the canvas and the texts over it are drawn in later frames
    picture = screen(editor, clip={"x": x, "y": y, "width": width, "height": height})
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return picture


def readme(editor) -> dict[str, Image.Image]:
    editor.open()
    for card in editor.page.locator("[data-testid^=template-workflow-] img").all()[:8]:
        editor.until(lambda one=card: one.evaluate("(one) => one.naturalWidth"), "a thumbnail")
    templates = screen(editor)
    editor.page.get_by_test_id("template-workflow-edit").click()
    editor.wait_for_node("UniWorldSampler")
    editor.count_jobs()
    editor.run()
    editor.until(lambda: editor.pictures("SaveImage"), "the picture")
    editor.wait_for_jobs(1)
    editor.until(lambda: editor.shows_colours("SaveImage"), "the picture on the screen")
    return {"templates.jpg": templates, "editor.jpg": screen(editor)}


def screen(editor, **options) -> Image.Image:
    return Image.open(io.BytesIO(editor.page.screenshot(**options))).convert("RGB")


if __name__ == "__main__":
    main()
