"""The prompt of Qwen-Image-Edit: its template, and the sizes in which Qwen2.5-VL and the VAE get the references.

Published: diffusers' QwenImageEditPipeline and QwenImageEditPlusPipeline.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

from PIL import Image

from ...backbones.qwen_image_classes import diffusers_class
from ...backbones.qwen_template import PICTURE
from ...errors import UniWorldError
from ...images.pictures import MAX_ASPECT
from ...images.sizes import Size

# Sides of references, and of the pictures that are painted by default, are multiples of this number of pixels.
STRIDE = 32


@dataclass(frozen=True)
class Release:
    """What differs between releases of the model.

    Attributes:
        name: display name of the model.
        pipeline: diffusers' class, which `model_index.json` names.
        vlm_side: side of a square with the area at which Qwen2.5-VL sees references; None for the area of the VAE.
        max_references: number of references that its prompt has room for.
        min_references: number of references that it needs.
    """

    name: str
    pipeline: str
    vlm_side: int | None
    max_references: int
    min_references: int = 0


# The first release, and those from 2509 on.
RELEASES = {
    release.pipeline: release
    for release in (
        Release("Qwen-Image-Edit", "QwenImageEditPipeline", vlm_side=None, max_references=1, min_references=1),
        Release("Qwen-Image-Edit-2509", "QwenImageEditPlusPipeline", vlm_side=384, max_references=16),
    )
}


@dataclass(frozen=True)
class Template:
    """The text around an instruction, read from the installed diffusers.

    Attributes:
        text: with a pair of braces at the place of the instruction.
        skipped: number of tokens at its start whose hidden states the transformer does not get.
        numbered: whether the pictures are numbered before the instruction; otherwise the text has the place of one.
    """

    text: str
    skipped: int
    numbered: bool

    def render(self, instruction: str, pictures: int) -> str:
        """Return the text of a prompt, with one `<|image_pad|>` for each of its pictures."""
        if not self.numbered:
            return self.text.format(instruction)
        return self.text.format("".join(f"Picture {i + 1}: {PICTURE}" for i in range(pictures)) + instruction)


@cache
def read_template(pipeline: str) -> Template:
    """Read the template of a release. Raises UniWorldError if the installed diffusers is too old."""
    made = diffusers_class(pipeline)(
        scheduler=None, vae=None, text_encoder=None, tokenizer=None, processor=None, transformer=None
    )
    text = made.prompt_template_encode
    return Template(text, made.prompt_template_encode_start_idx, numbered=PICTURE not in text)


def size_at(height: float, width: float, side: int) -> Size:
    """Return the size with the area of a square of this side, and about the aspect ratio of a picture.

    Both sides are multiples of 32, as diffusers' `calculate_dimensions` computes, and at least 32.

    Raises:
        UniWorldError: a side is not positive.
    """
    if not (height > 0 and width > 0):
        raise UniWorldError(f"The picture is {width}x{height} pixels; both sides must be positive.")
    new_width = math.sqrt(side * side * (width / height))
    new_height = new_width / (width / height)
    return Size(*(max(STRIDE, round(length / STRIDE) * STRIDE) for length in (new_height, new_width)))


def resize(picture: Image.Image, side: int) -> Image.Image:
    """Resize a reference to `size_at` with Lanczos filtering, as diffusers does.

    Raises:
        UniWorldError: the result exceeds the aspect ratio that Qwen2.5-VL takes.
    """
    size = size_at(picture.height, picture.width, side)
    if max(size.height, size.width) > MAX_ASPECT * min(size.height, size.width):
        raise UniWorldError(
            f"A reference of {picture.width}x{picture.height} pixels becomes one of {size.width}x{size.height}. The vision "
            f"encoder takes aspect ratios up to {MAX_ASPECT}:1: crop or pad the picture."
        )
    return picture.resize((size.width, size.height), Image.Resampling.LANCZOS)
