"""What the VLM reads: Qwen's chat template without its system turn, in every turn the text first, then the pictures.

Published: serve/cli.py, which renders the template and cuts the system turn off.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ...errors import UniWorldError

# One picture in the text; the processor repeats the middle token once for every merged patch.
IMAGE_PAD = "<|image_pad|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
PICTURE = f"{VISION_START}{IMAGE_PAD}{VISION_END}"

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

# The two sides of a conversation as the template names them. At the last `assistant` token the routing head reads
# (published as token id 77091).
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


def conversation_text(turns: Iterable[tuple[str, str, Sequence[int]]]) -> str:
    """All turns, and an opened assistant turn.

    Args:
        turns: of each its role, its text, and for each of its pictures how many merged patches it has.
    """
    return "".join(_turn_text(*turn) for turn in turns) + f"<|im_start|>{ASSISTANT}\n"


def chat_text(prompt: str, pad_counts: Sequence[int] = ()) -> str:
    """`conversation_text` of a plain prompt, which is one user turn."""
    return conversation_text([(USER, prompt, pad_counts)])


def _turn_text(role: str, text: str, pad_counts: Sequence[int]) -> str:
    pictures = "".join(PICTURE.replace(IMAGE_PAD, IMAGE_PAD * count) for count in pad_counts)
    return f"<|im_start|>{role}\n{text}{pictures}<|im_end|>\n"
