"""Parse a line of `uniworld chat`: a command, or a message that may name pictures."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

from ....uniworld_core.errors import UniWorldError, shown
from ....uniworld_core.images.picture_files import PICTURE_TYPES
from ....uniworld_core.json_text import BadJson, loads

COMMANDS = {
    "/image FILE": "attach a picture to the next message",
    "/paint TEXT": "paint a picture, regardless of the routing head",
    "/ask TEXT": "answer in words, regardless of the routing head",
    "/seed N": "set the seed of the next pictures",
    "/history": "show the conversation so far",
    "/undo": "remove the last message and its reply; painted pictures stay in the folder",
    "/reset": "start a new conversation; this one stays saved",
    "/save NAME": "copy the last painted picture to NAME.png, or the conversation to the folder NAME",
    "/help": "show this",
    "/quit": "leave, like Ctrl-D",
}
_NAMES = frozenset(usage.split()[0] for usage in COMMANDS)
_ALIASES = {"/exit": "/quit", "/?": "/help", "/new": "/reset"}
# Commands whose argument is a message, with the route that they force.
FORCED = {"/paint": True, "/ask": False}

# A quoted name, or a word in which a backslash escapes a space: terminals insert these forms when a file is dropped.
_QUOTED = r"""@?"(?P<double>[^"\n]+)"|@?'(?P<single>[^'\n]+)'"""
_BARE = r"@?(?P<bare>\S+)" if os.name == "nt" else r"@?(?P<bare>(?:\\.|[^\s\\])+)"
_WORD = re.compile(rf"(?<!\S)[(\[]?(?:(?:{_QUOTED})(?=[\s,.;:!?)\]]|$)|{_BARE})")
# What `streams.protect_standard_streams` makes of bytes that are not text.
_UNDECODED = re.compile("[\udc80-\udcff]")
_SENTENCE_END = re.compile(r"[.!?:;,]\s*$")


@dataclass(frozen=True)
class ChatCommand:
    """A line that starts with a slash: the command's name, with the slash, and its argument."""

    name: str
    argument: str = ""


@dataclass(frozen=True)
class ChatMessage:
    """A message of the user.

    Attributes:
        text: the text, with file names of pictures removed or replaced by "the picture", "image 1", ...
        pictures: the pictures' files, in order.
        paint: whether to paint or to answer; None to let the routing head decide.
    """

    text: str
    pictures: tuple[Path, ...] = ()
    paint: bool | None = None


def parse_line(
    line: str, find: Callable[[str], Path], attached: int = 0, objects: bool = False
) -> ChatCommand | ChatMessage | None:
    """Parse a line. Returns None for an empty one.

    Args:
        find: returns a picture's file by its name or path, and raises UniWorldError if it does not exist.
        attached: number of pictures that precede those in the line.
        objects: also accept JSON, `{"text": ..., "images": [...]}`.

    Raises:
        UniWorldError: the command is unknown, a picture does not exist, or a message has bytes that are not text.
    """
    parsed = _parse(line.strip(), find, attached, objects)
    if isinstance(parsed, ChatMessage):
        _check_decoded(parsed.text)
    return parsed


def _parse(line: str, find: Callable[[str], Path], attached: int, objects: bool) -> ChatCommand | ChatMessage | None:
    if objects and line.startswith("{"):
        return _parse_object(line, find)
    name, _, rest = line.partition(" ")
    name = _ALIASES.get(name, name)
    if name in FORCED:
        message = _parse_message(rest.strip(), find, attached)
        if not message.text:
            raise UniWorldError(f"{name} needs a text, such as `{name} a red circle`.")
        return ChatMessage(message.text, message.pictures, FORCED[name])
    if name in _NAMES:
        return ChatCommand(name, _unquoted(rest.strip()))
    if re.fullmatch(r"/[A-Za-z?]+", name):
        raise UniWorldError(f"Unknown command {name}. The commands are {', '.join(sorted(_NAMES))}.")
    return _parse_message(line, find, attached) if line else None


def _check_decoded(text: str) -> None:
    # File names may contain such bytes (`os.fsencode`), but not the text that goes to a tokenizer.
    found = _UNDECODED.search(text)
    if found:
        raise UniWorldError(
            f"The message contains the byte {ord(found[0]) - 0xDC00:#04x}, which is not text in the encoding of the input: "
            "write it in UTF-8."
        )


def _parse_object(line: str, find: Callable[[str], Path]) -> ChatMessage:
    try:
        said = loads(line)
    except BadJson as error:
        raise UniWorldError(f'The line {error}: write {{"text": ..., "images": [...]}}.') from None
    if not isinstance(said, dict):
        raise UniWorldError(f'The line is not a JSON object but {shown(said)}: write {{"text": ..., "images": [...]}}.')
    text, images = said.get("text", ""), said.get("images", [])
    if not isinstance(text, str) or not isinstance(images, list) or not all(isinstance(one, str) for one in images):
        raise UniWorldError(
            'In {"text": ..., "images": [...]}, the text must be a string and the images a list of file names.'
        )
    return ChatMessage(text.strip(), tuple(find(name) for name in images))


def _parse_message(text: str, find: Callable[[str], Path], attached: int) -> ChatMessage:
    found: list[tuple[int, int, Path]] = []
    for match in _WORD.finditer(text):
        kind = match.lastgroup or "bare"
        word = match[kind]
        # Punctuation of the sentence is not part of a name.
        name = word.rstrip(",.;:!?)]") if kind == "bare" else word
        if is_picture_name(name):
            start = match.start(kind) - (kind != "bare")
            start -= text[start - 1 : start] == "@"
            found.append((start, match.start(kind) + len(name) + (kind != "bare"), find(plain_path(name, kind))))
    said = _without_names(text, [(start, end) for start, end, _ in found], attached)
    return ChatMessage(said, tuple(path for *_, path in found))


def is_picture_name(name: str) -> bool:
    return Path(_path_of_url(name) or name).suffix.lower() in PICTURE_TYPES


def plain_path(name: str, kind: str = "bare") -> str:
    """Return a plain path: `file:` URLs and escaped spaces, which terminals insert for dropped files, are decoded."""
    path = _path_of_url(name)
    if path is not None:
        return path
    return name if kind != "bare" or os.name == "nt" else re.sub(r"\\(.)", r"\1", name)


def _path_of_url(name: str) -> str | None:
    """Return the path of a `file:` URL; None for any other name or an invalid URL."""
    if not name.startswith("file:"):
        return None
    try:
        return url2pathname(urlparse(name).path)
    except ValueError:
        return None


def _unquoted(argument: str) -> str:
    if len(argument) > 1 and argument[0] == argument[-1] and argument[0] in "\"'":
        return argument[1:-1]
    return plain_path(argument)


def _without_names(text: str, spans: list[tuple[int, int]], attached: int) -> str:
    """Remove the spans of file names from a text.

    Names before and after the sentences are dropped. Inside a sentence, words that the model knows replace them.
    """
    count = attached + len(spans)
    words = ["the picture"] if count == 1 else [f"image {number}" for number in range(attached + 1, count + 1)]
    inside = list(zip(spans, words))
    head, tail = 0, len(text)
    while inside and not text[head : inside[0][0][0]].strip(" ,:;-"):
        (_, head), _ = inside.pop(0)
    while inside and not text[inside[-1][0][1] : tail].strip(" ,.") and _SENTENCE_END.search(text[: inside[-1][0][0]]):
        (tail, _), _ = inside.pop()
    pieces, at = [], head
    for (start, end), word in inside:
        pieces += [text[at:start], word]
        at = end
    return "".join([*pieces, text[at:tail]]).strip(" ,:;-" if head else " ")
