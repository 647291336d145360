"""Make the README's screenshots of the editor: python tests/browser/pictures.py

Has the requirements of these tests. `tests/workflows/thumbnails.py` draws the cards of the workflows.
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

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
WINDOW = {"width": 1400, "height": 900}
QUIET = {"Comfy.Minimap.Visible": False, "Comfy.Graph.CanvasInfo": False}
# Whether nodes show this many pictures, by node id, and have their outputs.
SHOWS = """(wanted) => Object.entries(wanted).every(([id, count]) =>
    app.nodeOutputs[id] &&
    (app.graph.getNodeById(id)?.imgs ?? []).filter((one) => one.complete && one.naturalWidth).length >= count)
"""
# The editor does not enlarge pictures, and nano's are tiny: enlarge them for the screenshot, with
# their real size written below.
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
# The number of templates that show their thumbnail.
CARDS = """() => [...document.querySelectorAll('[data-testid^=template-workflow-] img')]
    .filter((one) => one.complete && one.naturalWidth).length
"""


def main() -> None:
    from tests.browser import conftest
    from tests.browser.conftest import FLAGS, NAMES, Editor, Host

    conftest.PATIENCE = 300.0  # nano paints with all of its steps
    path = os.environ.get("UNIWORLD_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        host = Host(Path(folder))
        host.start()
        try:
            host.ask("/api/settings", QUIET)
            browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
            for name, picture in readme(Editor(browser.new_page(viewport=WINDOW, locale="en-US"), host)).items():
                file = ROOT / "nodes" / "web" / "images" / name
                picture.save(file, quality=85, optimize=True)
                print(file)
            browser.close()
        finally:
            host.stop()


def run(editor) -> None:
    """Run the graph, and wait until its nodes show their results."""
    editor.count_jobs()
    editor.run()
    [job] = editor.wait_for_jobs(1)
    outputs = editor.host.ask(f"/api/history/{job['id']}")[job["id"]]["outputs"]
    assert outputs, "The workflow has no visible result."
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
    editor.until(lambda: editor.shows_colors("SaveImage"), "the picture on the screen")
    editor.page.get_by_text("Job queued").wait_for(state="hidden")
    return {"templates.webp": templates, "editor.webp": screen(editor)}


def screen(editor, **options) -> Image.Image:
    return Image.open(io.BytesIO(editor.page.screenshot(**options))).convert("RGB")


if __name__ == "__main__":
    main()
