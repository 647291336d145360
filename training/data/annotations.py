"""Parse the published annotations and locate each one in its file.

An annotation is `{"image": "a.png" or ["before.png", "after.png"], "conversations": [{"from": "human" or "gpt",
"value": ...}]}`. A painting is an annotation whose last answer is `<gen_image>`. Its last picture is the target, and each
other picture has an `<image>` mark in the instruction (published: univa/dataset/qwen2vl_dataset.py,
univa/serve/check_data.py).
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
    """A parsed annotation of a painting.

    Attributes:
        prompt: the last instruction, without `<image>` marks and with spaces for line breaks.
        images: picture files as written; the last one is the target.
    """

    prompt: str
    images: tuple[str, ...]


@dataclass(frozen=True)
class Placed:
    """An annotation's JSON value, its number in the file, and its byte range, start to end."""

    number: int
    start: int
    end: int
    value: object


def scan(data: bytes, name: str) -> Iterator[Placed]:
    """Yield the annotations of a file with their byte ranges.

    Raises:
        UniWorldError: the file is not UTF-8 or not a JSON list, or has a syntax error; the message names the line.
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
            f"{name} is not a JSON list of annotations: it starts with {text[at : at + 10]!r} instead of '['."
        )
    read, byte, number = 0, skipped, 0
    at = _after_space(text, at + 1)
    closed = text[at : at + 1] == "]"
    at = _after_space(text, at + 1) if closed else at
    while not closed:
        try:
            value, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise UniWorldError(f"{name}, line {error.lineno}: invalid JSON ({error.msg}).") from error
        except ValueError as error:
            raise UniWorldError(f"{name}: annotation {number} has a number with too many digits.") from error
        except RecursionError as error:
            raise UniWorldError(f"{name}: annotation {number} is nested too deeply.") from error
        start = byte + len(text[read:at].encode())
        read, byte = end, start + len(text[at:end].encode())
        yield Placed(number, start, byte, value)
        number += 1
        at = _after_space(text, end)
        if text[at : at + 1] not in (",", "]"):
            line = text.count("\n", 0, at) + 1
            raise UniWorldError(f"{name}, line {line}: expected a comma or ']' after annotation {number - 1}.")
        closed = text[at] == "]"
        at = _after_space(text, at + 1)
    if at < len(text):
        line = text.count("\n", 0, at) + 1
        raise UniWorldError(f"{name}, line {line}: unexpected text after the end of the list.")


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None
    return match.end()


def is_painting(value: object) -> bool:
    """Return whether an annotation is a painting; questions with answers in words are not.

    Invalid annotations count as paintings, so that `read_annotation` reports them.
    """
    turns = value.get("conversations") if isinstance(value, dict) else None
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        return True
    answers = [turn.get("value") for turn in turns if turn.get("from") == "gpt"]
    return not answers or any(not isinstance(answer, str) or PAINT_MARK in answer for answer in answers)


def read_annotation(value: object) -> Annotation:
    """Parse an annotation of a painting.

    Raises:
        UniWorldError: the annotation is invalid; the message is the first problem.
    """
    if not isinstance(value, dict):
        raise UniWorldError(f"an annotation must be an object with 'image' and 'conversations', but is {_kind(value)}.")
    images = value.get("image")
    images = [] if images is None else [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not all(isinstance(image, str) and image for image in images):
        raise UniWorldError("'image' must be a file name or a list of file names.")
    turns = value.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise UniWorldError("'conversations' must be a list of turns.")
    for turn in turns:
        if not isinstance(turn, dict) or turn.get("from") not in _ROLES or not isinstance(turn.get("value"), str):
            raise UniWorldError("a turn in 'conversations' is not {'from': 'human' or 'gpt', 'value': a string}.")
    instructions = [turn["value"] for turn in turns if turn["from"] == "human"]
    painted = sum(turn["value"].count(PAINT_MARK) for turn in turns)
    if painted != 1 or turns[-1]["from"] != "gpt" or PAINT_MARK not in turns[-1]["value"]:
        raise UniWorldError(f"it has {painted} {PAINT_MARK} marks; a painting has exactly one, in the last answer.")
    if not images:
        raise UniWorldError("it has no target picture: 'image' is empty.")
    marks = sum(text.count(IMAGE_MARK) for text in instructions)
    if marks != len(images) - 1:
        raise UniWorldError(
            f"it has {marks} {IMAGE_MARK} marks, but {len(images) - 1} reference pictures: each picture except the last "
            "needs one mark."
        )
    # Replaced by spaces: the published trainer deletes line breaks, which joins the words on both sides.
    prompt = instructions[-1].replace(IMAGE_MARK, "").replace("\n", " ").strip() if instructions else ""
    if not prompt:
        raise UniWorldError("the last instruction is empty.")
    return Annotation(check_prompt(prompt), tuple(images))


def _kind(value: object) -> str:
    return {list: "a list", str: "a string", type(None): "null"}.get(type(value), "a number or a boolean")
