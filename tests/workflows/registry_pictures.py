"""Draws the icon and the banner of the registry's entry: python tests/workflows/registry_pictures.py

The icon is what the edit workflow makes of its sample, the banner shows sample and result. Square of at most 400
pixels, and 21:9, as the registry asks (docs.comfy.org, registry/specifications).
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
IMAGES = ROOT / "nodes" / "web" / "images"
SIDE, WIDTH, HEIGHT = 400, 1260, 540
BACK, ARROW = "#1c1d22", "#f2f2f2"


def pictures() -> dict[str, Image.Image]:
    """{file name: picture}."""
    from uniworld.training.shapes.world.draw import draw
    from workflows.samples import SAMPLES

    task = SAMPLES["edit"].task
    assert task.after is not None
    before, after = (draw(replace(scene, side=SIDE)) for scene in (task.before[0], task.after))
    banner = Image.new("RGB", (WIDTH, HEIGHT), BACK)
    top, left = (HEIGHT - SIDE) // 2, 100
    banner.paste(before, (left, top))
    banner.paste(after, (WIDTH - left - SIDE, top))
    middle, y = WIDTH // 2, HEIGHT // 2
    lines = ImageDraw.Draw(banner)
    lines.line((middle - 70, y, middle + 30, y), ARROW, 16)
    lines.polygon(((middle + 20, y - 40), (middle + 80, y), (middle + 20, y + 40)), ARROW)
    return {"icon.png": after, "banner.png": banner}


if __name__ == "__main__":
    import conftest  # noqa: F401  (makes the checkout importable as `uniworld`)

    for name, picture in pictures().items():
        picture.save(IMAGES / name, optimize=True)
