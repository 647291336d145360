"""Qwen's chat template without its system turn. In every turn the text comes first, then the pictures.

Published: serve/cli.py renders the template and removes the system turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..prompts.text import ASSISTANT, IMAGE_PAD, USER, VISION_END, VISION_START

_START = "<|im_start|>"
# One picture in the text. The middle token is repeated for every merged patch.
PICTURE = f"{VISION_START}{IMAGE_PAD}{VISION_END}"


def conversation_text(turns: Iterable[tuple[str, str, Sequence[int]]]) -> str:
    """Render all turns, followed by the start of an assistant turn.

    Args:
        turns: (role, text, number of merged patches of each picture) of every turn.
    """
    return "".join(_turn_text(*turn) for turn in turns) + f"{_START}{ASSISTANT}\n"


def chat_text(prompt: str, pad_counts: Sequence[int] = ()) -> str:
    """Render a plain prompt as one user turn; see `conversation_text`."""
    return conversation_text([(USER, prompt, pad_counts)])


def turns_in(text: str) -> int:
    """Count the turns of a rendered conversation, without the one started at its end."""
    return text.count(_START) - 1


def _turn_text(role: str, text: str, pad_counts: Sequence[int]) -> str:
    pictures = "".join(PICTURE.replace(IMAGE_PAD, IMAGE_PAD * count) for count in pad_counts)
    return f"{_START}{role}\n{text}{pictures}<|im_end|>\n"
