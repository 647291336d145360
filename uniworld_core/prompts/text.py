"""What text a prompt may hold: everything but the tokens that mark turns and pictures in what a VLM reads."""

from __future__ import annotations

from ..errors import UniWorldError

# Special tokens of Qwen's tokenizers, which mark turns and pictures in the text that the model reads.
IMAGE_PAD = "<|image_pad|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
RESERVED = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    VISION_START,
    VISION_END,
    "<|vision_pad|>",
    IMAGE_PAD,
    "<|video_pad|>",
)

# The two sides of a conversation, as chat templates name them.
USER = "user"
ASSISTANT = "assistant"


def check_prompt(prompt: str, what: str = "prompt") -> str:
    """The prompt as given, if it can be read; `what` names it in the error.

    Raises:
        UniWorldError: it is empty, or `check_text` refuses it.
    """
    if not check_text(prompt, what).strip():
        raise UniWorldError(f"The {what} is empty: write what to paint, to change or to answer.")
    return prompt


def check_text(text: str, what: str) -> str:
    """The text of a turn as given, if it can be read; `what` names it in the error.

    Raises:
        UniWorldError: it holds half a character (a lone surrogate, as of a cut emoji), or one of the tokens that mark turns
            and pictures.
    """
    if not isinstance(text, str):
        raise UniWorldError(f"The {what} is a {type(text).__name__}, not text.")
    halves = [character for character in text if "\ud800" <= character <= "\udfff"]
    if halves:
        raise UniWorldError(
            f"The {what} contains {halves[0]!r}, half of a character, which is no text: put the whole one there, or remove it."
        )
    found = [token for token in RESERVED if token in text]
    if found:
        raise UniWorldError(
            f"The {what} contains {', '.join(found)}, reserved for marking turns and pictures: remove it."
        )
    return text
