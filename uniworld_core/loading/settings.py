"""Settings of a model folder: JSON is parsed strictly, and values are checked against bounds.

A model folder is untrusted input. A value reaches transformers or diffusers only if a rule names its key and accepts the
value. No file can therefore make them run code, allocate without limit, or loop forever.
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

# Size limit of a JSON file in bytes. A configuration has a few kilobytes, the index of UniWorld-V1 about 200.
MAX_SETTINGS = 4 * 2**20
_MAX_DEPTH = 32  # nesting of objects and lists; published files have 6 levels


def read_json(path: Path, limit: int = MAX_SETTINGS) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Args:
        limit: size limit of the file in bytes.

    Raises:
        UniWorldError: the file is missing, too large, or not a JSON object. The message names it.
    """
    data = parse_json(read_bytes(path, limit), str(path))
    if not isinstance(data, dict):
        raise UniWorldError(f"{path} holds a {type(data).__name__}, not an object: copy the file again.")
    return data


def read_bytes(path: Path, limit: int) -> bytes:
    """Read a file of at most `limit` bytes. Raises UniWorldError as `check_file` does."""
    check_file(path, limit)
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise UniWorldError(
            f"{path} cannot be read ({error.strerror or error}): check the file's permissions."
        ) from error
    if len(data) > limit:  # files in /proc report a size of 0 and may be endless
        raise UniWorldError(f"{path} has more than {limit} bytes: it is not the published file, copy it again.")
    return data


def check_file(path: Path, limit: int | None = None) -> None:
    """Check that a path is a regular file of limited size. Opening a pipe or a device could block forever.

    Args:
        limit: size limit in bytes; None for no limit.

    Raises:
        UniWorldError: the file is missing, larger than `limit`, or not a regular file (a folder, pipe, device, or a link
            to one).
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UniWorldError(f"{path} is not a regular file: copy the folder again.")
        if limit is not None and status.st_size > limit:
            raise UniWorldError(
                f"{path} has {status.st_size} bytes, more than the limit of {limit}: it is not the published file, "
                "copy it again."
            )
    except FileNotFoundError:
        raise UniWorldError(
            f"{path} does not exist: the folder holds a different model, or the download is incomplete."
        ) from None
    except OSError as error:
        raise UniWorldError(
            f"{path} cannot be read ({error.strerror or error}): check the file's permissions."
        ) from error


def parse_json(data: bytes, source: str) -> Any:
    """Parse JSON text strictly.

    Python's parser accepts NaN and infinity, and keeps the last of several equal keys. Here each of these is an error.

    Args:
        source: name of the text in errors.

    Raises:
        UniWorldError: the text is not valid JSON, repeats a key, has NaN or infinity, or is nested too deeply.
    """
    try:
        value = loads(data)
    except BadJson as error:
        raise UniWorldError(f"{source} {error}: copy the file again.") from error
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [inner for outer in level for inner in _children(outer)]
    if level:
        raise UniWorldError(f"{source} is nested too deeply for a model: copy the file again.")
    return value


def _children(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


@dataclass(frozen=True)
class Rule:
    """A condition on a value of a configuration.

    Attributes:
        expected: describes valid values in errors.
        holds: returns whether a value is valid.
    """

    expected: str
    holds: Callable[[Any], bool]


def whole(low: int, high: int) -> Rule:
    """Accept a whole number from `low` to `high`."""
    return Rule(f"a whole number from {low} to {high}", lambda value: _is_whole(value) and low <= value <= high)


def number(low: float, high: float) -> Rule:
    """Accept a finite number from `low` to `high`."""
    return Rule(f"a number from {low:g} to {high:g}", lambda value: _is_number(value) and low <= value <= high)


def choice(*words: str) -> Rule:
    """Accept one of these words."""
    return Rule(f"one of {', '.join(words)}", lambda value: isinstance(value, str) and value in words)


def exactly(wanted: Any, why: str) -> Rule:
    """Accept a single value; `why` says in errors what requires it."""
    return Rule(f"{wanted!r}, {why}", lambda value: type(value) is type(wanted) and value == wanted)


def listed(rule: Rule, low: int, high: int) -> Rule:
    """Accept a list of `low` to `high` values that the rule accepts."""
    length = str(low) if low == high else f"{low} to {high}"
    return Rule(
        f"a list of {length} values, each {rule.expected}",
        lambda value: isinstance(value, list) and low <= len(value) <= high and all(map(rule.holds, value)),
    )


def optional(rule: Rule) -> Rule:
    """Accept null and what the rule accepts."""
    return Rule(f"{rule.expected}, or null", lambda value: value is None or rule.holds(value))


def either(first: Rule, second: Rule) -> Rule:
    """Accept what one of two rules accepts."""
    return Rule(f"{first.expected}, or {second.expected}", lambda value: first.holds(value) or second.holds(value))


FLAG = Rule("true or false", lambda value: isinstance(value, bool))
OBJECT = Rule("an object", lambda value: isinstance(value, dict))
LIST = Rule("a list", lambda value: isinstance(value, list))

# Wide enough for any model of these architectures. Narrow enough that even the largest is built on the meta device in a second.
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
    """Return the values of the keys that have a rule; all other keys are dropped.

    Args:
        raw: an object of a configuration.
        rules: {key: rule}.
        source: name of the object in errors.
        need: required keys.

    Raises:
        UniWorldError: `raw` is not an object, lacks a required key, or has an invalid value. The message names the key.
    """
    if not isinstance(raw, Mapping):
        raise UniWorldError(f"{source} holds a {type(raw).__name__} where an object is expected: copy the file again.")
    for key in need:
        if key not in raw:
            raise UniWorldError(f"{source} has no {key!r}, which is required: copy the file again.")
    for key, rule in rules.items():
        if key in raw and not rule.holds(raw[key]):
            raise UniWorldError(f"{source} has {key} {shown(raw[key])}, expected {rule.expected}: copy the file again.")
    return {key: raw[key] for key in rules if key in raw}


def check_heads(width: int, heads: int, source: str, even: bool = False) -> None:
    """Check that a width is divisible by the number of attention heads.

    Args:
        even: whether the width of each head must be even, as rotary positions rotate pairs of values.

    Raises:
        UniWorldError: it is not.
    """
    if width % heads:
        raise UniWorldError(
            f"{source} has a width of {width}, which is not divisible by its {heads} attention heads: copy it again."
        )
    if even and width // heads % 2:
        raise UniWorldError(
            f"{source} has a width of {width} for {heads} attention heads: the width of a head, {width // heads}, must be "
            "even. Copy it again."
        )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    # Integers need no check: `math.isfinite` raises OverflowError for those beyond a float's range.
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))
