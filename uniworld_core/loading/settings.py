"""Settings of a model folder: JSON read strictly and within bounds, and values taken only if a model can have them.

A folder may come from anywhere. Nothing in it is passed to transformers or diffusers unless a rule names its key and its value
is within the rule's range, so that no file can make them run code, allocate without limit, or never return.
"""

from __future__ import annotations

import math
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UniWorldError, shown
from ..json_text import BadJson, loads

# Bytes of a JSON file that are read at most: a configuration is a few kilobytes, the index of UniWorld-V1 about 200.
MAX_SETTINGS = 4 * 2**20
_MAX_DEPTH = 32  # objects within objects; published ones have 6


def read_json(path: Path, limit: int = MAX_SETTINGS) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        limit: the most bytes that the file may have.

    Raises:
        UniWorldError: the file is missing, too large, or no JSON object; it is named.
    """
    data = parse_json(read_bytes(path, limit), str(path))
    if not isinstance(data, dict):
        raise UniWorldError(f"{path} holds a {type(data).__name__}, not an object: copy the file again.")
    return data


def read_bytes(path: Path, limit: int) -> bytes:
    """A file's bytes. Raises UniWorldError as `check_file`."""
    check_file(path, limit)
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise UniWorldError(
            f"{path} cannot be read ({error.strerror or error}): check the file's permissions."
        ) from error
    if len(data) > limit:  # files of the system may report a size of 0 and never end
        raise UniWorldError(f"{path} has more than {limit} bytes: it is not the published file, copy it again.")
    return data


def check_file(path: Path, limit: int | None = None) -> None:
    """Check that a file can be opened at once and has an end; nothing else in a model folder is opened.

    Args:
        limit: the most bytes that the file may have; None for any number.

    Raises:
        UniWorldError: it is missing, no regular file (a folder, a pipe, a device, or a link to one), or larger than `limit`.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UniWorldError(f"{path} is not a regular file: copy the folder again.")
        if limit is not None and status.st_size > limit:
            raise UniWorldError(
                f"{path} has {status.st_size} bytes, and such a file has {limit} at most: it is not the published file, "
                "copy it again."
            )
    except FileNotFoundError:
        raise UniWorldError(
            f"{path} does not exist: the folder is not the model it should be, or its copy is not whole."
        ) from None
    except OSError as error:
        raise UniWorldError(
            f"{path} cannot be read ({error.strerror or error}): check the file's permissions."
        ) from error


def parse_json(data: bytes, source: str) -> Any:
    """The value in JSON text.

    Python's own parser also accepts NaN and infinity, and keeps the last of several equal keys; here each is an error.

    Raises:
        UniWorldError: it is not valid JSON, has a key twice in one object, NaN or infinity, or is nested too deep.
    """
    try:
        value = loads(data)
    except BadJson as error:
        raise UniWorldError(f"{source} {error}: copy the file again.") from error
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [inner for outer in level for inner in _parts(outer)]
    if level:
        raise UniWorldError(f"{source} is nested too deeply for a model: copy the file again.")
    return value


def _parts(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


@dataclass(frozen=True)
class Rule:
    """What a value of a configuration may be.

    Attributes:
        expected: in words, for errors.
        holds: whether a value is such a one.
    """

    expected: str
    holds: Callable[[Any], bool]


def whole(low: int, high: int) -> Rule:
    """A whole number from `low` to `high`."""
    return Rule(f"a whole number from {low} to {high}", lambda value: _is_whole(value) and low <= value <= high)


def number(low: float, high: float) -> Rule:
    """A finite number from `low` to `high`."""
    return Rule(f"a number from {low:g} to {high:g}", lambda value: _is_number(value) and low <= value <= high)


def choice(*words: str) -> Rule:
    """One of some words."""
    return Rule(f"one of {', '.join(words)}", lambda value: isinstance(value, str) and value in words)


def exactly(wanted: Any, why: str) -> Rule:
    """One value alone; `why` says what asks for it."""
    return Rule(f"{wanted!r}, {why}", lambda value: type(value) is type(wanted) and value == wanted)


def listed(rule: Rule, low: int, high: int) -> Rule:
    """A list of `low` to `high` values that each keep the rule."""
    length = str(low) if low == high else f"{low} to {high}"
    return Rule(
        f"a list of {length} values, each {rule.expected}",
        lambda value: isinstance(value, list) and low <= len(value) <= high and all(map(rule.holds, value)),
    )


def optional(rule: Rule) -> Rule:
    """What the rule says, or null."""
    return Rule(f"{rule.expected}, or null", lambda value: value is None or rule.holds(value))


def either(first: Rule, second: Rule) -> Rule:
    """What one of two rules says."""
    return Rule(f"{first.expected}, or {second.expected}", lambda value: first.holds(value) or second.holds(value))


FLAG = Rule("true or false", lambda value: isinstance(value, bool))
OBJECT = Rule("an object", lambda value: isinstance(value, dict))
LIST = Rule("a list", lambda value: isinstance(value, list))

# Bounds wide enough for any model of these kinds, and narrow enough that one of their size is described in a second.
WIDTH = whole(1, 2**16)
HIDDEN = whole(1, 2**18)
LAYERS = whole(1, 128)
HEADS = whole(1, 1024)
VOCABULARY = whole(1, 2**21)
TOKEN = whole(0, 2**21)
POSITIONS = whole(1, 2**22)
EPSILON = number(0, 1)
SHARE = number(0, 1)
ACTIVATION = choice("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu")


def take(raw: Any, rules: Mapping[str, Rule], source: str, need: tuple[str, ...] = ()) -> dict[str, Any]:
    """The values of the keys that have a rule; all other keys are left behind.

    Args:
        raw: an object of a configuration.
        source: what to call it in errors.
        need: keys that must be there.

    Raises:
        UniWorldError: it is no object, lacks a key, or a value does not keep its rule; each is named.
    """
    if not isinstance(raw, Mapping):
        raise UniWorldError(f"{source} holds a {type(raw).__name__} where an object is expected: copy the file again.")
    for key in need:
        if key not in raw:
            raise UniWorldError(f"{source} has no {key!r}, which such a configuration carries: copy the file again.")
    for key, rule in rules.items():
        if key in raw and not rule.holds(raw[key]):
            raise UniWorldError(f"{source} has {key} {shown(raw[key])}, expected {rule.expected}: copy the file again.")
    return {key: raw[key] for key in rules if key in raw}


def check_heads(width: int, heads: int, source: str, even: bool = False) -> None:
    """Raises UniWorldError unless a width can be shared among so many heads; `even`: each share must be even."""
    if width % heads or (even and width // heads % 2):
        parts = "even parts" if even else "parts"
        raise UniWorldError(
            f"{source} has a width of {width}, which {heads} attention heads cannot share in whole {parts}: copy it again."
        )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    # A whole number beyond a float's range is compared as it is.
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))
