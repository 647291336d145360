"""Small folders in the layouts of the benchmarks, with prompts of our own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

KINDS = ("add", "adjust", "remove")
PROMPT = "Rate the edit.\nThe instruction was: <edit_prompt>\n"


def imgedit(folder: Path, count: int = 6, kinds: tuple[str, ...] = KINDS) -> dict[str, Any]:
    """Write a folder like the unpacked Benchmark.tar. Two items share each source picture."""
    root = folder / "Benchmark" / "singleturn"
    items = {}
    for number in range(count):
        name = f"animal/{number // 2:09d}.jpg"
        (root / "animal").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 16), (10 * number, 100, 50)).save(root / name)
        items[str(number)] = {"id": name, "prompt": f"Edit {number}.", "edit_type": kinds[number % len(kinds)]}
    (root / "singleturn.json").write_text(json.dumps(items))
    (root / "judge_prompt.json").write_text(json.dumps({kind: f"{kind}: {PROMPT}" for kind in kinds}))
    return items


def results(folder: Path, names: list[str]) -> Path:
    """Write a result for each name, such as "3" or "add/en/3"."""
    for place, name in enumerate(names):
        file = folder / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (200, 7 * place % 256, 90)).save(file)
    return folder
