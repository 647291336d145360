"""UniPic's prompts, and how pictures are cut for it.

Published: the template of the model's configuration, and scripts/{text2image,image_edit,image2text}.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from ...errors import UniWorldError
from ...images.pictures import to_image
from ...images.sizes import Size, crop_box
from ...prompts.conversation import Conversation
from ...prompts.text import check_prompt
from .config import NAME
from .network import IMAGE

# The prompts without the instruction, against which guidance compares.
NEGATIVE, EDIT_NEGATIVE = "Generate an image.", "Repeat this image."
# Color around a picture that is padded to a square.
_PAD = (127, 127, 127)


@dataclass(frozen=True, eq=False)
class Request:
    """What one item of a batch asks for.

    Attributes:
        prompt: the instruction or question.
        picture: the picture to edit or to ask about; None for text to image.

    Raises:
        UniWorldError: the prompt is empty, or contains `<image>` or another reserved token.
    """

    prompt: str
    picture: Image.Image | None = None

    def __post_init__(self) -> None:
        check_words(self.prompt)


def requests_of(conversations: Sequence[Conversation]) -> list[Request]:
    """Return the requests of conversations.

    Raises:
        UniWorldError: a conversation has several turns or several pictures, or a prompt contains `<image>`.
    """
    made = []
    for conversation in conversations:
        if len(conversation.turns) > 1:
            raise UniWorldError(
                f"The conversation has {len(conversation.turns)} turns, and {NAME} reads one: give the last instruction only."
            )
        if len(conversation.refs) > 1:
            raise UniWorldError(
                f"The prompt has {len(conversation.refs)} pictures, and {NAME} reads one: give a single reference."
            )
        made.append(Request(conversation.instruction, conversation.refs[0].picture if conversation.refs else None))
    return made


def check_words(prompt: str, what: str = "prompt") -> str:
    """Check a prompt and return it. Raises UniWorldError as `check_prompt`, or if it contains `<image>`."""
    if IMAGE in check_prompt(prompt, what):
        raise UniWorldError(f"The {what} contains {IMAGE}, which {NAME} reserves for pictures: remove it.")
    return prompt


def paint_text(prompt: str) -> str:
    """Render a prompt for text to image."""
    return _template(f"Generate an image: {prompt}")


def negative_text(negative: str | None, edit: bool) -> str:
    """Render the prompt of the unconditional rows; None for the published one."""
    if edit:
        return _template(f"{IMAGE}\n{(negative or EDIT_NEGATIVE).strip()}")
    return _template(negative or NEGATIVE)


def edit_text(prompt: str) -> str:
    """Render a prompt for an edit."""
    return _template(f"{IMAGE}\n{prompt.strip()}")


def question_text(prompt: str, picture: bool = True) -> str:
    """Render a question, about a picture if there is one."""
    return _template(f"{IMAGE}\n{prompt}" if picture else prompt)


def cropped(picture: Image.Image, size: Size) -> torch.Tensor:
    """Crop a picture around its center and resize it, as published for edits: (1, H, W, 3) in 0..1."""
    box = crop_box(picture.height, picture.width, size)
    return to_image([picture.crop(box).resize((size.width, size.height), Image.Resampling.BICUBIC)])


def padded(picture: Image.Image, side: int) -> torch.Tensor:
    """Pad a picture to a square and resize it, as published for questions: (1, side, side, 3) in 0..1."""
    longer = max(picture.size)
    square = Image.new("RGB", (longer, longer), _PAD)
    square.paste(picture, ((longer - picture.width) // 2, (longer - picture.height) // 2))
    return to_image([square.resize((side, side), Image.Resampling.BICUBIC)])


def _template(text: str) -> str:
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
