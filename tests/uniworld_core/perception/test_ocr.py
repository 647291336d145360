"""Text in pictures: how the prompt describes it, and the OCR that reads it."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from PIL import Image, ImageDraw, ImageFont
from uniworld.uniworld_core.perception import ocr
from uniworld.uniworld_core.perception.ocr import TextLine, describe_text, read_text
from uniworld.uniworld_core.prompts.text import RESERVED, check_prompt


def line(text: str, confidence: float = 0.99, x: float = 0.5, y: float = 0.5) -> TextLine:
    return TextLine(text, confidence, x, y)


def test_every_place_of_the_grid_has_a_name() -> None:
    thirds = (1 / 6, 1 / 2, 5 / 6)
    names = [line("a", x=x, y=y).place for y in thirds for x in thirds]
    assert names == [
        "top left",
        "top center",
        "top right",
        "middle left",
        "center",
        "middle right",
        "bottom left",
        "bottom center",
        "bottom right",
    ]
    assert line("a", x=0.0, y=0.0).place == "top left"
    assert line("a", x=1.0, y=1.0).place == "bottom right"


def test_lines_are_described_by_picture_and_position() -> None:
    first = [line("SALE", x=0.1, y=0.1), line("50 %", x=0.2, y=0.2), line("Coffee")]
    assert describe_text([first, [], [line("Exit", x=0.9, y=0.9)]]) == (
        'Text in image 1: "SALE", "50 %" at the top left; "Coffee" at the center.\n'
        'Text in image 3: "Exit" at the bottom right.'
    )


def test_lines_that_the_ocr_is_not_sure_of_are_left_out() -> None:
    assert describe_text([[line("sure", 0.91), line("unsure", 0.9)]]) == 'Text in image 1: "sure" at the center.'
    assert describe_text([[line("unsure", 0.9)], []]) == ""
    assert describe_text([]) == ""


@pytest.mark.parametrize("token", RESERVED)
def test_text_in_a_picture_cannot_open_a_turn(token: str) -> None:
    inner = token[: len(token) // 2] + token + token[len(token) // 2 :]  # what is left of it is not a token either
    text = describe_text([[line(f"a {token} b {inner} c")]])
    assert check_prompt(text) == text
    assert text.startswith('Text in image 1: "a b')


def test_quotes_and_line_breaks_of_the_text_do_not_end_it() -> None:
    assert (
        describe_text([[line('say "hi"\nthere'), line("  ")]]) == "Text in image 1: \"say 'hi' there\" at the center."
    )


@pytest.mark.parametrize("package", ["rapidocr", "onnxruntime"])
def test_without_the_extra_the_command_that_installs_it_is_named(monkeypatch: Any, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    ocr._engine.cache_clear()
    with pytest.raises(ValueError, match=r'not installed: pip install "uniworld\[ocr\]".*rapidocr onnxruntime'):
        read_text(Image.new("RGB", (8, 8)))
    ocr._engine.cache_clear()


def write(picture: Image.Image, text: str, at: tuple[int, int]) -> None:
    ImageDraw.Draw(picture).text(at, text, fill="black", font=ImageFont.load_default(size=40))


def test_the_ocr_reads_words_and_where_they_stand() -> None:
    pytest.importorskip("rapidocr")
    pytest.importorskip("onnxruntime")
    picture = Image.new("RGB", (640, 480), "white")
    write(picture, "SALE", (20, 20))
    write(picture, "Coffee", (480, 400))
    lines = read_text(picture)
    assert [(line.text, line.place) for line in lines] == [("SALE", "top left"), ("Coffee", "bottom right")]
    assert all(line.confidence > 0.9 for line in lines)
    assert read_text(Image.new("RGB", (64, 64), "white")) == []
