"""The published annotations: what one says, and where each stands in its file.

An annotation is `{"image": "a.png" or ["before.png", "after.png"], "conversations": [{"from": "human" or "gpt",
"value": ...}]}`. In a painting the last answer is `<gen_image>`, the last picture is what is painted, and each other
one has an `<image>` mark in the instruction (published: univa/dataset/qwen2vl_dataset.py, univa/serve/check_data.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from ...uniworld_core.errors import UniWorldError
from ...uniworld_core.prompts.text import check_prompt

IMAGE_MARK = "<image>"
PAINT_MARK = "<gen_image>"
BOM = b"\xef\xbb\xbf"
_ROLES = ("human", "gpt")
_SPACE = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True)
class Annotation:
    """What one annotation of a painting says.

    Attributes:
        prompt: the last instruction without `<image>` marks; its line breaks are spaces.
        images: picture files as written, the last one to be painted.
    """

    prompt: str
    images: tuple[str, ...]


@dataclass(frozen=True)
class Placed:
    """An annotation and where it stands: bytes start to end of its file."""

    number: int
    start: int
    end: int
    value: object


def scan(data: bytes, name: str) -> Iterator[Placed]:
    """The annotations of a file one by one, with the bytes they stand at.

    Raises:
        UniWorldError: it is no UTF-8, no JSON list, or broken at some line, which is named.
    """
    skipped = len(BOM) if data.startswith(BOM) else 0
    try:
        text = data[skipped:].decode("utf-8")
    except UnicodeDecodeError as error:
        raise UniWorldError(f"{name} is not UTF-8 text (byte {error.start}): save it as UTF-8.") from error
    decoder = json.JSONDecoder()
    at = _after_space(text, 0)
    if text[at : at + 1] != "[":
        raise UniWorldError(
            f"{name} is no JSON list of annotations: it starts with {text[at : at + 10]!r} instead of '['."
        )
    read, byte, number = 0, skipped, 0
    at = _after_space(text, at + 1)
    closed = text[at : at + 1] == "]"
    at = _after_space(text, at + 1) if closed else at
    while not closed:
        try:
            value, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise UniWorldError(f"{name}, line {error.lineno}: the JSON is broken ({error.msg}).") from error
        except ValueError as error:
            raise UniWorldError(f"{name}: annotation {number} holds a number of too many digits.") from error
        except RecursionError as error:
            raise UniWorldError(f"{name}: annotation {number} is nested too deep to be read.") from error
        start = byte + len(text[read:at].encode())
        read, byte = end, start + len(text[at:end].encode())
        yield Placed(number, start, byte, value)
        number += 1
        at = _after_space(text, end)
        if text[at : at + 1] not in (",", "]"):
            line = text.count("\n", 0, at) + 1
            raise UniWorldError(f"{name}, line {line}: after annotation {number - 1} stands neither a comma nor ']'.")
        closed = text[at] == "]"
        at = _after_space(text, at + 1)
    if at < len(text):
        line = text.count("\n", 0, at) + 1
        raise UniWorldError(f"{name}, line {line}: something stands after the end of the list.")


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None
    return match.end()


def is_painting(value: object) -> bool:
    """Whether an annotation is to be painted. Questions with answers in words are not; what is no annotation is."""
    turns = value.get("conversations") if isinstance(value, dict) else None
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        return True
    answers = [turn.get("value") for turn in turns if turn.get("from") == "gpt"]
    return not answers or any(not isinstance(answer, str) or PAINT_MARK in answer for answer in answers)


def read_annotation(value: object) -> Annotation:
    """What an annotation of a painting says.

    Raises:
        UniWorldError: it is none, with the first thing that is wrong.
    """
    if not isinstance(value, dict):
        raise UniWorldError(f"an annotation is an object with 'image' and 'conversations', but this is {_kind(value)}.")
    images = value.get("image")
    images = [] if images is None else [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not all(isinstance(image, str) and image for image in images):
        raise UniWorldError("its 'image' is neither a file name nor a list of file names.")
    turns = value.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise UniWorldError("it has no 'conversations', a list of turns.")
    for turn in turns:
        if not isinstance(turn, dict) or turn.get("from") not in _ROLES or not isinstance(turn.get("value"), str):
            raise UniWorldError("a turn of its 'conversations' is not {'from': 'human' or 'gpt', 'value': a text}.")
    asked = [turn["value"] for turn in turns if turn["from"] == "human"]
    painted = sum(turn["value"].count(PAINT_MARK) for turn in turns)
    if painted != 1 or turns[-1]["from"] != "gpt" or PAINT_MARK not in turns[-1]["value"]:
        raise UniWorldError(f"it has {painted} {PAINT_MARK} marks; a painting has one, in the last answer.")
    if not images:
        raise UniWorldError("it has no picture to paint: 'image' is empty.")
    marks = sum(text.count(IMAGE_MARK) for text in asked)
    if marks != len(images) - 1:
        raise UniWorldError(
            f"it has {marks} {IMAGE_MARK} marks, but {len(images) - 1} pictures before the one to paint: "
            "each picture but the last has a mark."
        )
    # The published trainer takes line breaks out, which would glue the words on both sides together.
    prompt = asked[-1].replace(IMAGE_MARK, "").replace("\n", " ").strip() if asked else ""
    if not prompt:
        raise UniWorldError("its last instruction is empty.")
    return Annotation(check_prompt(prompt), tuple(images))


def _kind(value: object) -> str:
    return {list: "a list", str: "a text", type(None): "null"}.get(type(value), "a number or a truth value")
