"""Text in the references, as words for the prompt: the model renders text better when the prompt spells it out.

Published: app.py ("Enhance Text Rendering") and the trainer's `ocr_enhancer` append what an OCR reads in each picture to
the instruction, where the OCR is surer than 0.9, with the place of each text in a grid of three by three. The wording
here is our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from PIL import Image

from ..errors import UniWorldError
from ..prompts.text import RESERVED

# Only what the OCR is surer of than this is used (univa/utils/get_ocr.py).
MIN_CONFIDENCE = 0.9

_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "center", "right")


@dataclass(frozen=True)
class TextLine:
    """One line of text that an OCR found.

    Attributes:
        text: what it reads.
        confidence: how sure the OCR is, 0 to 1.
        x, y: center of the line's bounding box, as shares of the picture's width and height.
    """

    text: str
    confidence: float
    x: float
    y: float

    @property
    def place(self) -> str:
        """Where in a grid of three by three the line stands, such as "top left"; "center" in the middle."""
        row, column = (_third(self.y, _ROWS), _third(self.x, _COLUMNS))
        return column if (row, column) == ("middle", "center") else f"{row} {column}"


def _third(share: float, names: tuple[str, str, str]) -> str:
    return names[min(2, max(0, int(share * 3)))]


def describe_text(pictures: Sequence[Sequence[TextLine]], min_confidence: float = MIN_CONFIDENCE) -> str:
    """The lines of each picture in words, one row of text for each picture in which there are any; "" for none.

    Args:
        pictures: the lines of each reference, in the order in which the prompt speaks of the references.
        min_confidence: lines of this confidence and less are left out.
    """
    described = []
    for number, lines in enumerate(pictures, 1):
        places: dict[str, list[str]] = {}
        for line in lines:
            text = _quotable(line.text)
            if text and line.confidence > min_confidence:
                places.setdefault(line.place, []).append(f'"{text}"')
        if places:
            found = "; ".join(f"{', '.join(texts)} at the {place}" for place, texts in places.items())
            described.append(f"Text in image {number}: {found}.")
    return "\n".join(described)


def _quotable(text: str) -> str:
    """The text on one line, without our own quotes and without what marks turns and pictures, which no prompt may hold."""
    while any(token in text for token in RESERVED):
        for token in RESERVED:
            text = text.replace(token, " ")
    return " ".join(text.replace('"', "'").split())


def read_text(picture: Image.Image) -> list[TextLine]:
    """The lines of text in an RGB picture, in the OCR's order, which is from top to bottom.

    Raises:
        UniWorldError: the OCR, an optional package, is not installed; the command that installs it is named.
    """
    found = _engine()(picture)
    if found.txts is None:
        return []
    lines = []
    for text, confidence, box in zip(found.txts, found.scores, found.boxes):
        xs, ys = [float(point[0]) for point in box], [float(point[1]) for point in box]
        x, y = (min(xs) + max(xs)) / 2 / picture.width, (min(ys) + max(ys)) / 2 / picture.height
        lines.append(TextLine(text, float(confidence), x, y))
    return lines


@cache
def _engine() -> Any:
    """The OCR with the models that its wheel carries; nothing is downloaded."""
    try:
        import onnxruntime  # noqa: F401  (what rapidocr computes with; it asks for none by itself)
        from rapidocr import RapidOCR
    except ImportError as error:
        raise UniWorldError(
            f"Reading text needs the packages rapidocr and onnxruntime, of which {error.name} is not installed: "
            'pip install "uniworld[ocr]", or inside ComfyUI, with its own Python: '
            "python -m pip install rapidocr onnxruntime"
        ) from error
    return RapidOCR(params={"Global.log_level": "critical"})
