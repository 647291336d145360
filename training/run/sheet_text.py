"""Text on contact sheets."""

from __future__ import annotations

import unicodedata

from PIL import ImageDraw


def fit_text(draw: ImageDraw.ImageDraw, text: str, width: int) -> str:
    """Return the text as one line of at most `width` pixels, truncated if it is too long.

    Pillow's built-in font has only ASCII, so accents are dropped and other characters become question marks.
    """
    plain = "".join(char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char))
    line = " ".join(plain.split()).encode("ascii", "replace").decode("ascii")
    while line and draw.textlength(line) > width:
        line = line[:-4].rstrip() + "..." if len(line) > 4 else ""
    return line
