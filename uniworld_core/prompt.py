"""The prompt as the VLM reads it: Qwen's chat template without its system turn, text first, then the pictures.

Published: serve/cli.py, which renders the template and cuts the system turn off.
"""

from __future__ import annotations

from collections.abc import Sequence

# One picture in the text; the processor repeats the middle token once for every merged patch.
IMAGE_PAD = "<|image_pad|>"
PICTURE = f"<|vision_start|>{IMAGE_PAD}<|vision_end|>"

RESERVED = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    IMAGE_PAD,
    "<|video_pad|>",
)

# The word of the opened assistant turn, at which the routing head reads (published as token id 77091).
ASSISTANT = "assistant"


def check_prompt(prompt: str) -> str:
    """The prompt as given, if it can be read.

    Raises:
        ValueError: it is empty, holds half a character (a lone surrogate, as of a cut emoji), or one of the tokens that
            mark turns and pictures.
    """
    if not isinstance(prompt, str):
        raise ValueError(f"The prompt is a {type(prompt).__name__}, not text.")
    if not prompt.strip():
        raise ValueError("The prompt is empty: write what to paint, to change or to answer.")
    halves = [character for character in prompt if "\ud800" <= character <= "\udfff"]
    if halves:
        raise ValueError(
            f"The prompt contains {halves[0]!r}, half of a character, which is no text: put the whole one there, or remove it."
        )
    found = [token for token in RESERVED if token in prompt]
    if found:
        raise ValueError(f"The prompt contains {', '.join(found)}, reserved for marking turns and pictures: remove it.")
    return prompt


def chat_text(prompt: str, pad_counts: Sequence[int] = ()) -> str:
    """One user turn and an opened assistant turn.

    Args:
        prompt: the instruction.
        pad_counts: for each picture, how many merged patches it has.
    """
    pictures = "".join(PICTURE.replace(IMAGE_PAD, IMAGE_PAD * count) for count in pad_counts)
    return f"<|im_start|>user\n{prompt}{pictures}<|im_end|>\n<|im_start|>{ASSISTANT}\n"
