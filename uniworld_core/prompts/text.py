"""Checks of prompt texts: they must not contain the special tokens that mark turns and pictures for a VLM."""

from __future__ import annotations

from ..errors import UniWorldError

# Special tokens of Qwen's tokenizers, which mark turns and pictures. A prompt with one could open a turn of its own.
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

# The two roles of a conversation, as chat templates name them.
USER = "user"
ASSISTANT = "assistant"


def check_prompt(prompt: str, what: str = "prompt") -> str:
    """Check a prompt and return it unchanged.

    Args:
        what: name of the prompt in errors.

    Raises:
        UniWorldError: the prompt is empty, or invalid as in `check_text`.
    """
    if not check_text(prompt, what).strip():
        raise UniWorldError(f"The {what} is empty: write what to paint, change or answer.")
    return prompt


def check_text(text: str, what: str) -> str:
    """Check the text of a turn and return it unchanged.

    Args:
        what: name of the text in errors.

    Raises:
        UniWorldError: the text contains an unpaired surrogate (half an emoji, for example), which UTF-8 cannot encode, or a
            token that marks turns or pictures.
    """
    if not isinstance(text, str):
        raise UniWorldError(f"The {what} is a {type(text).__name__}, not text.")
    surrogates = [character for character in text if "\ud800" <= character <= "\udfff"]
    if surrogates:
        raise UniWorldError(f"The {what} contains {surrogates[0]!r}, an unpaired surrogate: replace or remove it.")
    found = [token for token in RESERVED if token in text]
    if found:
        raise UniWorldError(
            f"The {what} contains {', '.join(found)}, reserved for marking turns and pictures: remove it."
        )
    return text
