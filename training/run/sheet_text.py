"""Words on contact sheets."""

from __future__ import annotations

import unicodedata

from PIL import ImageDraw


def fit_text(draw: ImageDraw.ImageDraw, text: str, width: int) -> str:
    """The text on one line of at most `width` pixels, cut where it is too long.

    Pillow's own font has the letters of ASCII alone: accents are left out, and other letters become question marks.
    """
    plain = "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    line = " ".join(plain.split()).encode("ascii", "replace").decode("ascii")
    while line and draw.textlength(line) > width:
        line = line[:-4].rstrip() + "..." if len(line) > 4 else ""
    return line
