"""What a small model knows, from a file next to its configuration, so that users are warned of anything else."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import plural
from ..loading.settings import SHARE, Rule, listed, read_json, take, whole
from .conversation import Conversation
from .text import USER

# File in the checkpoint's folder. UniWorld-V1 has none, because it knows pictures and words of every kind.
SCOPE_FILE = "knows.json"
_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)?")
_LISTED = 5  # unknown words in a warning, at most
# Pictures are compared at this length of their longer side. 8-bit values that differ by no more than `_EQUAL` count as equal,
# and the `_COLORS` most frequent colors count as main colors.
_SIDE, _EQUAL, _COLORS = 128, 6, 6


@dataclass(frozen=True)
class Scope:
    """What a model knows.

    Attributes:
        about: a description that completes "It knows only ...".
        words: all words that it has learned, in lower case.
        flat: smallest `flat_share` of the pictures that it has learned.
        turns: number of turns of the longest conversation that it has learned; 1 for single instructions.
    """

    about: str
    words: frozenset[str]
    flat: float
    turns: int = 1

    def unknown_words(self, text: str) -> list[str]:
        """Return the words of a text that the model has not learned, in order, without repetitions."""
        words = dict.fromkeys(word.replace("\u2019", "'") for word in _WORD.findall(text.lower()))
        return [word for word in words if word not in self.words]

    def contains(self, picture: Image.Image) -> bool:
        """Whether a picture resembles those that the model has learned."""
        return flat_share(picture) >= self.flat

    def outside(self, conversation: Conversation) -> str | None:
        """Return a warning that names the unknown words and pictures of a conversation, or says that it is too long.

        Returns:
            None if the model knows everything.
        """
        text = " ".join(turn.text for turn in conversation.turns if turn.role == USER)
        words = self.unknown_words(text)
        pictures = [number for number, ref in enumerate(conversation.refs, 1) if not self.contains(ref.picture)]
        unknown = []
        if words:
            more = f" and {len(words) - _LISTED} more" if len(words) > _LISTED else ""
            unknown.append(
                f"the {plural(len(words), 'word')} " + ", ".join(f"'{word}'" for word in words[:_LISTED]) + more
            )
        if not _WORD.search(text):
            unknown.append("the prompt")
        if pictures:
            single = len(conversation.refs) == 1
            numbers = ", ".join(map(str, pictures))
            unknown.append("the picture" if single else f"{plural(len(pictures), 'picture')} {numbers}")
        warnings = []
        if unknown:
            warnings.append(
                f"The model does not know {' or '.join(unknown)}, so the result will be meaningless. It knows only "
                f"{self.about}. For photographs and free prompts, get the weights of UniWorld-V1 (README: Where the "
                "weights go) and choose them as the checkpoint."
            )
        if (turns := len(conversation.turns)) > self.turns:
            learned = f"conversations of up to {self.turns} turns" if self.turns > 1 else "single instructions"
            warnings.append(
                f"The model has learned only {learned}, and this conversation has {turns} turns: the result is often "
                "wrong. UniWorld-V1 reads conversations of any length."
            )
        return " ".join(warnings) or None


def read_scope(checkpoint: str | Path) -> Scope | None:
    """Read what the model in a checkpoint folder knows, or None without the file. Raises UniWorldError if it is damaged."""
    file = Path(checkpoint) / SCOPE_FILE
    if not file.exists():
        return None
    raw = take(read_json(file), _RULES, str(file), tuple(_RULES))
    return Scope(raw["about"], frozenset(raw["words"]), float(raw["flat"]), raw["turns"])


def flat_share(picture: Image.Image) -> float:
    """Return the share of pixels, 0 to 1, that equal their neighbors and have one of the picture's main colors.

    It is high for drawings in flat colors, and low for photographs, where light and noise vary from pixel to pixel.
    """
    shrink = _SIDE / max(picture.size)
    size = [max(2, round(side * shrink)) for side in picture.size]
    # Nearest-neighbor enlarges without mixing colors.
    how = Image.Resampling.BOX if shrink < 1 else Image.Resampling.NEAREST
    image_HW3 = np.asarray(picture.convert("RGB").resize((size[0], size[1]), how), dtype=np.int16)
    blocks = np.lib.stride_tricks.sliding_window_view(image_HW3, (2, 2), axis=(0, 1))
    even_hw = (blocks.max((-1, -2)) - blocks.min((-1, -2))).max(-1) <= _EQUAL
    left_N3, covered = image_HW3[1:, 1:][even_hw], 0
    for _ in range(_COLORS):
        if not len(left_N3):
            break
        _, number_N, counts = np.unique(left_N3 // 8, axis=0, return_inverse=True, return_counts=True)
        main = np.median(left_N3[number_N.reshape(-1) == counts.argmax()], axis=0)
        near = np.abs(left_N3 - main).max(axis=1) <= _EQUAL
        covered += int(near.sum())
        left_N3 = left_N3[~near]
    return covered / even_hw.size


_TEXT = Rule("text of up to 500 characters", lambda value: isinstance(value, str) and 0 < len(value) <= 500)
_RULES = {"about": _TEXT, "words": listed(_TEXT, 1, 100_000), "flat": SHARE, "turns": whole(1, 1000)}
