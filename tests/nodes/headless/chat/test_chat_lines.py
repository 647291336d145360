"""Parsing lines of `uniworld chat`."""

from __future__ import annotations

from pathlib import Path

import pytest
from uniworld.nodes.headless.chat.lines import ChatCommand, ChatMessage, parse_line
from uniworld.uniworld_core.errors import UniWorldError


def find(name: str) -> Path:
    if "missing" in name:
        raise UniWorldError(f"There is no picture '{name}'.")
    return Path(name)


def said(line: str, attached: int = 0) -> tuple[str, list[str]]:
    message = parse_line(line, find, attached)
    assert isinstance(message, ChatMessage)
    assert message.paint is None
    return message.text, [path.as_posix() for path in message.pictures]


@pytest.mark.parametrize(
    ("line", "text", "pictures"),
    [
        ("Make it red.", "Make it red.", []),
        # Names before and after the sentences are not part of the text.
        ("cat.png Make it red.", "Make it red.", ["cat.png"]),
        ("cat.png: make it red", "make it red", ["cat.png"]),
        ("a.png, b.JPG: put both side by side", "put both side by side", ["a.png", "b.JPG"]),
        ("Make it red. @cat.png", "Make it red.", ["cat.png"]),
        ("cat.png", "", ["cat.png"]),
        # Names inside are replaced by words that the model knows.
        ("What is in cat.png?", "What is in the picture?", ["cat.png"]),
        ("Make the dog of cat.png red", "Make the dog of the picture red", ["cat.png"]),
        ("Put the hat of a.png on (b.png).", "Put the hat of image 1 on (image 2).", ["a.png", "b.png"]),
        ("a.png What differs in b.png?", "What differs in image 2?", ["a.png", "b.png"]),
        # Names with spaces, quoted or escaped as terminals insert dropped files.
        ("'my cat.png' make it red", "make it red", ["my cat.png"]),
        ('Look at "/a b/my cat.webp", and say why.', "Look at the picture, and say why.", ["/a b/my cat.webp"]),
        ("/a\\ b/cat.png make it red", "make it red", ["/a b/cat.png"]),
        ("file:///a%20b/cat.png make it red", "make it red", ["/a b/cat.png"]),
        ("/photos/cat.jpeg", "", ["/photos/cat.jpeg"]),
        # Text that only resembles a name is kept.
        ("don't touch the cat's 'red' hat, e.g. 2.5 of it", "don't touch the cat's 'red' hat, e.g. 2.5 of it", []),
        ("mail me@home about /dev/null", "mail me@home about /dev/null", []),
    ],
)
def test_pictures_named_in_a_message(line: str, text: str, pictures: list[str]) -> None:
    assert said(line) == (text, pictures)


def test_named_pictures_are_counted_after_the_attached_ones() -> None:
    assert said("Put the hat of it on b.png.", attached=1) == ("Put the hat of it on image 2.", ["b.png"])


@pytest.mark.parametrize("line", ["missing.png make it red", "Look at 'is missing.jpg'", "/paint missing.png red"])
def test_a_named_picture_that_does_not_exist(line: str) -> None:
    with pytest.raises(ValueError, match="no picture"):
        parse_line(line, find)


@pytest.mark.parametrize(
    ("line", "parsed"),
    [
        ("", None),
        ("  \n", None),
        ("/undo", ChatCommand("/undo")),
        ("/exit", ChatCommand("/quit")),
        ("/image 'my cat.png'", ChatCommand("/image", "my cat.png")),
        ("/image my\\ cat.png", ChatCommand("/image", "my cat.png")),
        ("/seed 5 ", ChatCommand("/seed", "5")),
        ("/paint a dog", ChatMessage("a dog", (), True)),
        ("/ask what is in cat.png?", ChatMessage("what is in the picture?", (Path("cat.png"),), False)),
    ],
)
def test_commands(line: str, parsed: object) -> None:
    assert parse_line(line, find) == parsed


@pytest.mark.parametrize("line", ["/undoo", "/paint", "/ask cat.png", "/Undo"])
def test_invalid_commands_are_explained(line: str) -> None:
    with pytest.raises(ValueError, match=r"The commands are|needs a text"):
        parse_line(line, find)


def test_json_lines() -> None:
    line = '{"text": "What is in x.png?", "images": ["a.png"]}'
    assert parse_line(line, find, objects=True) == ChatMessage("What is in x.png?", (Path("a.png"),))
    assert parse_line('{"text": "red"}', find, objects=True) == ChatMessage("red")
    for broken in ('{"text": ', '{"text": 3}', '{"images": "a.png"}', '{"images": [1]}'):
        with pytest.raises(ValueError, match="text"):
            parse_line(broken, find, objects=True)


@pytest.mark.parametrize("line", ["caf\udce9", "/ask caf\udce9", '{"text": "caf\udce9"}'])
def test_a_message_with_bytes_that_are_not_text_is_an_error(line: str) -> None:
    with pytest.raises(ValueError, match="the byte 0xe9, which is not text"):
        parse_line(line, find, objects=True)


def test_a_file_name_may_contain_bytes_that_are_not_text() -> None:
    assert parse_line("/image caf\udce9.png", find) == ChatCommand("/image", "caf\udce9.png")
