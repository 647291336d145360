"""What a model of a small world knows, told by a file beside its configuration, so that it can be said what lies outside."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..loading.settings import SHARE, Rule, listed, read_json, take, whole
from .conversation import Conversation
from .text import USER

# The file, in the checkpoint's folder; UniWorld-V1 has none, since it knows pictures and words of every kind.
SCOPE_FILE = "knows.json"
_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)?")
_NAMED = 5  # of unknown words, at most
# A picture is looked at with this longer side; of each 2 x 2 pixels, values this far apart count as equal; and so many of
# the most frequent colours count.
_SIDE, _EQUAL, _COLOURS = 128, 6, 6


@dataclass(frozen=True)
class Scope:
    """What a model knows.

    Attributes:
        about: in words, as the end of "It knows only".
        words: all words it has learned, in lower case.
        flat: the least share of a picture of its world that is filled evenly with few colours (`flat_share`).
        turns: of the longest conversation it has learned; 1 for single instructions.
    """

    about: str
    words: frozenset[str]
    flat: float
    turns: int = 1

    def unknown_words(self, text: str) -> list[str]:
        """The words of a text that it has not learned, in order, none twice."""
        said = dict.fromkeys(word.replace("\u2019", "'") for word in _WORD.findall(text.lower()))
        return [word for word in said if word not in self.words]

    def holds(self, picture: Image.Image) -> bool:
        """Whether a picture is like those of its world."""
        return flat_share(picture) >= self.flat

    def outside(self, conversation: Conversation) -> str | None:
        """A warning that names the words and pictures of a conversation that it does not know, or says that the
        conversation is too long for it; None where there is nothing to warn of.
        """
        text = " ".join(turn.text for turn in conversation.turns if turn.role == USER)
        words = self.unknown_words(text)
        pictures = [number for number, ref in enumerate(conversation.refs, 1) if not self.holds(ref.picture)]
        strange = []
        if words:
            more = f" and {len(words) - _NAMED} more" if len(words) > _NAMED else ""
            strange.append(
                "the " + _count(len(words), "word") + " " + ", ".join(f"'{word}'" for word in words[:_NAMED]) + more
            )
        if not _WORD.search(text):
            strange.append("the prompt")
        if pictures:
            alone = len(conversation.refs) == 1
            strange.append("the picture" if alone else _count(len(pictures), "picture") + " " + _numbers(pictures))
        said = []
        if strange:
            said.append(
                f"The model does not know {' or '.join(strange)}, so that what comes out will mean nothing: it knows only "
                f"{self.about}. For photographs and free prompts, get the weights of UniWorld-V1 (README: Where the "
                "weights go) and choose them as checkpoint."
            )
        if (turns := len(conversation.turns)) > self.turns:
            learned = f"conversations of {self.turns} turns" if self.turns > 1 else "single instructions"
            said.append(
                f"The model has learned {learned} only, and this conversation has {turns} turns: what comes out is often "
                "wrong. UniWorld-V1 reads whole conversations."
            )
        return " ".join(said) or None


def read_scope(checkpoint: str | Path) -> Scope | None:
    """What the model of a checkpoint folder knows, or None if it has no such file. Raises UniWorldError if it is damaged."""
    file = Path(checkpoint) / SCOPE_FILE
    if not file.exists():
        return None
    raw = take(read_json(file), _RULES, str(file), tuple(_RULES))
    return Scope(raw["about"], frozenset(raw["words"]), float(raw["flat"]), raw["turns"])


def flat_share(picture: Image.Image) -> float:
    """The share of a picture, 0 to 1, whose pixels are as their neighbours and of one of its few main colours.

    Drawings of even colours have much of it and photographs little, as light and noise vary from pixel to pixel.
    """
    shrink = _SIDE / max(picture.size)
    size = [max(2, round(side * shrink)) for side in picture.size]
    # Enlarged without new colours between the old.
    how = Image.Resampling.BOX if shrink < 1 else Image.Resampling.NEAREST
    image_HW3 = np.asarray(picture.convert("RGB").resize((size[0], size[1]), how), dtype=np.int16)
    blocks = np.lib.stride_tricks.sliding_window_view(image_HW3, (2, 2), axis=(0, 1))
    even_hw = (blocks.max((-1, -2)) - blocks.min((-1, -2))).max(-1) <= _EQUAL
    left_N3, covered = image_HW3[1:, 1:][even_hw], 0
    for _ in range(_COLOURS):
        if not len(left_N3):
            break
        _, number_N, counts = np.unique(left_N3 // 8, axis=0, return_inverse=True, return_counts=True)
        main = np.median(left_N3[number_N.reshape(-1) == counts.argmax()], axis=0)
        near = np.abs(left_N3 - main).max(axis=1) <= _EQUAL
        covered += int(near.sum())
        left_N3 = left_N3[~near]
    return covered / even_hw.size


def _count(count: int, what: str) -> str:
    return what if count == 1 else f"{what}s"


def _numbers(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


_TEXT = Rule("text of up to 500 characters", lambda value: isinstance(value, str) and 0 < len(value) <= 500)
_RULES = {"about": _TEXT, "words": listed(_TEXT, 1, 100_000), "flat": SHARE, "turns": whole(1, 1000)}
