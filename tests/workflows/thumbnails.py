"""Draw the cards of the shared workflows, with input and result: python tests/workflows/thumbnails.py [NAME ...]

Runs each workflow once. ComfyUI shows the cards as squares of 256 pixels; the prompt below the pictures is the only
description that it can show.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tempfile
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
README = ROOT / "nodes" / "web" / "images" / "examples.jpg"
EXAMPLES = ("edit", "multi_reference", "text_to_image", "perception_openpose")
SIDE, EDGE, GAP = 400, 12, 40
TOP, ROOM = 56, 200  # the editor writes over the upper left corner of a card
BACK, FRAME, LIGHT, QUIET = "#1c1d22", "#4a4c55", "#f2f2f2", "#a9acb8"


def native_card(name: str) -> Image.Image:
    """Draw the card of a workflow that runs in ComfyUI only, from what nano gives in the workflow of the same purpose."""
    from workflows.samples import SAMPLES

    if name == "native_lora":
        return card([result("text_to_image")[0]], negative(), SAMPLES["text_to_image"].task.prompt)
    same = SAMPLES[name.removeprefix("native_")]
    befores = [Image.open(ROOT / "workflows" / "input" / one).convert("RGB") for one in same.pictures]
    return card(befores, result(name.removeprefix("native_"))[0], same.task.prompt)


def family_card(name: str) -> Image.Image:
    """Draw the card of a workflow whose model does not ship: it names the model in place of a result."""
    from workflows.catalog import CATALOG
    from workflows.families import EDITS

    from workflows import unipic

    if name in unipic.PROMPTS:
        file, prompt = unipic.PROMPTS[name]
        files = (file,) if file else ()
    else:
        files, prompt = EDITS[name].pictures, EDITS[name].prompt
    squares = []
    for file in files:
        picture = Image.open(ROOT / "workflows" / "input" / file).convert("RGB")
        side, left = min(picture.size), (picture.width - min(picture.size)) // 2
        squares.append(picture.crop((left, 0, left + side, side)))
    return card(squares, CATALOG[name].needs_model.replace("-", " "), prompt)


def negative() -> Image.Image:
    """Paint the picture of text_to_image with the shipped LoRA merged into nano."""
    from safetensors.torch import load_file
    from uniworld.uniworld_core import UniWorld
    from uniworld.uniworld_core.images.pictures import to_rgb
    from workflows.samples import SAMPLES
    from workflows.train_lora import FILE

    model, lora = UniWorld.from_pretrained("nano"), load_file(FILE)
    for name, up in lora.items():
        if name.endswith(".lora_B.weight"):
            down = lora[name.replace("lora_B", "lora_A")]
            layer = model.dit.transformer.get_submodule(
                name.removeprefix("transformer.").removesuffix(".lora_B.weight")
            )
            layer.weight.data += (up.float() @ down.float()).to(layer.weight.dtype)
    condition = model.encode(SAMPLES["text_to_image"].task.prompt, use_t5=False)
    latent = model.sample(condition, 128, 128, seed=SAMPLES["text_to_image"].seed)
    return to_rgb(model.decode(latent)[0])


def main(names: list[str]) -> None:
    import conftest  # noqa: F401  (makes the checkout importable as `uniworld`)
    from workflows.catalog import CATALOG
    from workflows.samples import SAMPLES

    for name in names or CATALOG:
        if CATALOG[name].needs_model:
            family_card(name).save(ROOT / "workflows" / f"{CATALOG[name].file}.jpg", quality=88, optimize=True)
            continue
        if CATALOG[name].needs_comfyui:
            native_card(name).save(ROOT / "workflows" / f"{CATALOG[name].file}.jpg", quality=88, optimize=True)
            continue
        picture, text = result(name)
        befores = [Image.open(ROOT / "workflows" / "input" / one).convert("RGB") for one in SAMPLES[name].pictures]
        file = ROOT / "workflows" / f"{CATALOG[name].file}.jpg"
        card(befores, picture or text, SAMPLES[name].task.prompt).save(file, quality=88, optimize=True)
        print(file.name, file.stat().st_size)
    if not names:
        strip([ROOT / "workflows" / f"{CATALOG[name].file}.jpg" for name in EXAMPLES]).save(
            README, quality=88, optimize=True
        )


def strip(files: list[Path]) -> Image.Image:
    """Draw cards side by side, as the README shows them."""
    made = Image.new("RGB", (len(files) * SIDE, SIDE), BACK)
    for number, file in enumerate(files):
        made.paste(Image.open(file), (number * SIDE, 0))
    return made


def result(name: str) -> tuple[Image.Image | None, str]:
    """Return the result of a workflow: its saved image, or the first text that it shows."""
    from uniworld.__main__ import main as uniworld

    output, before = io.StringIO(), Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            with contextlib.redirect_stdout(output):
                code = uniworld(["run", name, "--json"])
            event = json.loads(output.getvalue().splitlines()[-1])
            assert code == 0, event
            images = [Image.open(path).convert("RGB") for path in event.get("images", ())]
        finally:
            os.chdir(before)
    texts = [shown["text"][0] for shown in event.get("outputs", {}).values() if shown.get("text")]
    return (images[0], "") if images else (None, texts[0])


def card(befores: list[Image.Image], after: Image.Image | str, prompt: str) -> Image.Image:
    """Draw a card: images on the left, an arrow, the result on the right, and the prompt below."""
    made = Image.new("RGB", (SIDE, SIDE), BACK)
    draw = ImageDraw.Draw(made)
    wide = (SIDE - 2 * EDGE - GAP) // 2
    if befores:
        side = wide if len(befores) == 1 else (ROOM - 8) // 2
        for number, picture in enumerate(befores):
            top = TOP + (ROOM - side) // 2 if len(befores) == 1 else TOP + number * (side + 8)
            put(made, picture, EDGE + (wide - side) // 2, top, side)
        arrow(draw, SIDE // 2, TOP + ROOM // 2)
        if isinstance(after, str):
            write(draw, after, (SIDE - EDGE - wide // 2, TOP + ROOM // 2), 26, 13, LIGHT)
        else:
            put(made, after, SIDE - EDGE - wide, TOP + (ROOM - wide) // 2, wide)
    elif isinstance(after, Image.Image):
        put(made, after, (SIDE - ROOM) // 2, TOP, ROOM)
    else:
        write(draw, after, (SIDE // 2, TOP + ROOM // 2), 26, 26, LIGHT)
    write(draw, f"“{prompt}”", (SIDE // 2, (TOP + ROOM + SIDE) // 2), 21, 36, QUIET)
    return made


def put(card: Image.Image, picture: Image.Image, left: int, top: int, side: int) -> None:
    card.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (left, top))
    ImageDraw.Draw(card).rectangle((left - 1, top - 1, left + side, top + side), outline=FRAME)


def arrow(draw: ImageDraw.ImageDraw, x: int, y: int) -> None:
    draw.line((x - 12, y, x + 6, y), fill=LIGHT, width=4)
    draw.polygon(((x + 4, y - 9), (x + 14, y), (x + 4, y + 9)), fill=LIGHT)


def write(draw: ImageDraw.ImageDraw, text: str, middle: tuple[int, int], size: int, letters: int, color: str) -> None:
    font = ImageFont.load_default(size)
    draw.multiline_text(middle, textwrap.fill(text, letters), color, font, anchor="mm", align="center", spacing=6)


if __name__ == "__main__":
    main(sys.argv[1:])
