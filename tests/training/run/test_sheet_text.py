"""Text on contact sheets: one line that fits, in characters that the font has."""

from __future__ import annotations

import pytest
from PIL import Image, ImageDraw
from uniworld.training.run.sheet_text import fit_text


@pytest.fixture
def draw() -> ImageDraw.ImageDraw:
    return ImageDraw.Draw(Image.new("RGB", (400, 20)))


def test_a_short_text_stays_on_one_line(draw: ImageDraw.ImageDraw) -> None:
    assert fit_text(draw, " Make it\n blue. ", 400) == "Make it blue."


def test_a_long_text_is_truncated_to_the_width(draw: ImageDraw.ImageDraw) -> None:
    cut = fit_text(draw, "Make it blue. " * 20, 100)
    assert cut.startswith("Make it")
    assert cut.endswith("...")
    assert draw.textlength(cut) <= 100


@pytest.mark.parametrize(("text", "shown"), [("très bien", "tres bien"), ("一 cat", "? cat"), ("a — b", "a ? b")])
def test_characters_missing_in_the_font_lose_accents_or_become_question_marks(
    draw: ImageDraw.ImageDraw, text: str, shown: str
) -> None:
    assert fit_text(draw, text, 400) == shown
