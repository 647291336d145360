"""Qwen's chat template without its system turn: in every turn the text first, then the pictures.

Published: serve/cli.py, which renders the template and cuts the system turn off.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..prompts.text import ASSISTANT, IMAGE_PAD, USER, VISION_END, VISION_START

# One picture in the text; the middle token is repeated once for every merged patch.
_START = "<|im_start|>"
PICTURE = f"{VISION_START}{IMAGE_PAD}{VISION_END}"


def conversation_text(turns: Iterable[tuple[str, str, Sequence[int]]]) -> str:
    """All turns, and an opened assistant turn.

    Args:
        turns: of each its role, its text, and for each of its pictures how many merged patches it has.
    """
    return "".join(_turn_text(*turn) for turn in turns) + f"{_START}{ASSISTANT}\n"


def chat_text(prompt: str, pad_counts: Sequence[int] = ()) -> str:
    """`conversation_text` of a plain prompt, which is one user turn."""
    return conversation_text([(USER, prompt, pad_counts)])


def turns_in(text: str) -> int:
    """The turns of a rendered conversation, without the opened one at its end."""
    return text.count(_START) - 1


def _turn_text(role: str, text: str, pad_counts: Sequence[int]) -> str:
    pictures = "".join(PICTURE.replace(IMAGE_PAD, IMAGE_PAD * count) for count in pad_counts)
    return f"{_START}{role}\n{text}{pictures}<|im_end|>\n"
