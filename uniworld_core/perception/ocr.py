"""Text in the references as a description for the prompt: the model renders text better if the prompt spells it out.

Published: app.py ("Enhance Text Rendering") and the trainer's `ocr_enhancer` append the text that an OCR reads in each
picture to the instruction, with its place in a three-by-three grid, if the confidence exceeds 0.9. The wording here is our
own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from PIL import Image

from ..errors import UniWorldError
from ..prompts.text import RESERVED

# Lines with this confidence or less are ignored (univa/utils/get_ocr.py).
MIN_CONFIDENCE = 0.9

_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "center", "right")


@dataclass(frozen=True)
class TextLine:
    """One line of text that an OCR found.

    Attributes:
        text: the text.
        confidence: the OCR's confidence, 0 to 1.
        x, y: center of the line's bounding box, as shares of the picture's width and height.
    """

    text: str
    confidence: float
    x: float
    y: float

    @property
    def place(self) -> str:
        """The line's place in a three-by-three grid, such as "top left"; "center" in the middle."""
        row, column = (_third(self.y, _ROWS), _third(self.x, _COLUMNS))
        return column if (row, column) == ("middle", "center") else f"{row} {column}"


def _third(share: float, names: tuple[str, str, str]) -> str:
    return names[min(2, max(0, int(share * 3)))]


def describe_text(pictures: Sequence[Sequence[TextLine]], min_confidence: float = MIN_CONFIDENCE) -> str:
    """Describe the text in each picture, one line per picture with text; "" if there is none.

    Args:
        pictures: the text lines of each reference, in the order of the references.
        min_confidence: lines with this confidence or less are ignored.
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
    """Put a text on one line, without double quotes and without the special tokens that prompts must not contain."""
    while any(token in text for token in RESERVED):
        for token in RESERVED:
            text = text.replace(token, " ")
    return " ".join(text.replace('"', "'").split())


def read_text(picture: Image.Image) -> list[TextLine]:
    """Read the lines of text in an RGB picture, from top to bottom.

    Raises:
        UniWorldError: the OCR, an optional package, is not installed. The message has the command that installs it.
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
    """Return the OCR with the models in its wheel; nothing is downloaded."""
    try:
        import onnxruntime  # noqa: F401  (rapidocr needs it, but does not declare it as a dependency)
        from rapidocr import RapidOCR
    except ImportError as error:
        raise UniWorldError(
            f"Reading text needs the packages rapidocr and onnxruntime, but {error.name} is not installed: "
            'pip install "uniworld[ocr]", or with ComfyUI\'s own Python: '
            "python -m pip install rapidocr onnxruntime"
        ) from error
    return RapidOCR(params={"Global.log_level": "critical"})
