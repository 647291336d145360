"""Makes the thumbnails of the workflows and the README's two pictures: python tests/browser/pictures.py [NAME ...]

Needs what the tests here need. Names of workflows, and "readme", choose some of them. Thumbnails show the graph alone,
with what it made; each workflow runs once.
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
README = "readme"
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
# Whether nodes show so many pictures, by the node's id, and have their answers.
SHOWS = """(wanted) => Object.entries(wanted).every(([id, count]) =>
    app.nodeOutputs[id] &&
    (app.graph.getNodeById(id)?.imgs ?? []).filter((one) => one.complete && one.naturalWidth).length >= count)
"""
# The editor never shows a picture larger than it is, and nano's are as wide as a thumb: here they are drawn larger, with
# the size that they have written below.
MAGNIFY = """() => {
    const sizes = {}
    for (const node of app.graph._nodes) node.imgs = node.imgs?.map((one) => {
        const [width, height] = [one.naturalWidth, one.naturalHeight]
        const times = Math.floor(256 / Math.max(width, height))
        if (times < 2) return one
        const large = document.createElement('canvas')
        large.width = large.naturalWidth = times * width
        large.height = large.naturalHeight = times * height
        large.src = one.src
        large.complete = true
        const context = large.getContext('2d')
        context.imageSmoothingEnabled = false
        context.drawImage(one, 0, 0, large.width, large.height)
        sizes[`${large.width} × ${large.height}`] = `${width} × ${height}`
        return large
    })
    const write = CanvasRenderingContext2D.prototype.fillText
    CanvasRenderingContext2D.prototype.fillText = function (text, ...at) {
        return write.call(this, sizes[text] ?? text, ...at)
    }
    app.canvas.setDirty(true, true)
}"""
# How many templates show their thumbnail.
CARDS = """() => [...document.querySelectorAll('[data-testid^=template-workflow-] img')]
    .filter((one) => one.complete && one.naturalWidth).length
"""


def main(names: list[str]) -> None:
    from conftest import FLAGS, NAMES, SIZE, Editor, Host

    workflows = sorted(file.stem for file in (ROOT / "workflows").glob("*.json"))
    path = os.environ.get("UNIWORLD_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        host = Host(Path(folder))
        host.start()
        try:
            host.ask("/api/settings", QUIET)
            browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
            large = browser.new_page(viewport={"width": 2400, "height": 1400}, locale="en-US")
            for name in names or [*workflows, README]:
                if name != README:
                    save(thumbnail(Editor(large, host), name), ROOT / "workflows" / f"{name}.jpg", THUMBNAIL)
                    continue
                for file, picture in readme(Editor(browser.new_page(viewport=SIZE, locale="en-US"), host)).items():
                    save(picture, ROOT / "nodes" / "web" / "images" / file, WIDE)
            browser.close()
        finally:
            host.stop()


def save(picture: Image.Image, file: Path, side: int) -> None:
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    picture.save(file, quality=85)
    print(file)


def thumbnail(editor, name: str) -> Image.Image:
    editor.page.goto(f"{editor.host.url}/?template={name}&source=uniworld")
    editor.wait_until_ready()
    editor.wait_for_node("UniWorldLoader")
    if editor.node("LoadImage", "Boolean(node)"):
        editor.until(lambda: editor.pictures("LoadImage"), "the sample picture")
    run(editor)
    editor.page.wait_for_load_state("networkidle")
    x, y, width, height = editor.page.evaluate(FIT)
    editor.page.wait_for_timeout(300)  # the canvas and the texts over it are drawn in later frames
    return screen(editor, clip={"x": x, "y": y, "width": width, "height": height})


def run(editor) -> None:
    """Run the graph, and wait until its nodes show what they made."""
    editor.count_jobs()
    editor.run()
    [job] = editor.wait_for_jobs(1)
    outputs = editor.host.ask(f"/api/history/{job['id']}")[job["id"]]["outputs"]
    assert outputs, "The workflow made nothing to show."
    wanted = {key: len(made.get("images", ())) for key, made in outputs.items()}
    editor.until(lambda: editor.page.evaluate(SHOWS, wanted), "what the workflow made")
    editor.page.evaluate(MAGNIFY)


def readme(editor) -> dict[str, Image.Image]:
    editor.open()
    editor.until(lambda: editor.page.evaluate(CARDS) >= 8, "the thumbnails")
    editor.page.wait_for_timeout(1000)  # they fade in
    templates = screen(editor)
    editor.page.get_by_test_id("template-workflow-edit").click()
    editor.wait_for_node("UniWorldSampler")
    run(editor)
    editor.until(lambda: editor.shows_colours("SaveImage"), "the picture on the screen")
    editor.page.get_by_text("Job queued").wait_for(state="hidden")
    return {"templates.jpg": templates, "editor.jpg": screen(editor)}


def screen(editor, **options) -> Image.Image:
    return Image.open(io.BytesIO(editor.page.screenshot(**options))).convert("RGB")


if __name__ == "__main__":
    main(sys.argv[1:])
