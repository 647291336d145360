"""Read and write configurations as TOML: presets, files and overrides from the command line.

Validated here rather than by pydantic, tyro or msgspec: messages name the file, the section, the allowed values and the
closest key, and a single configuration does not justify a dependency.
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from ...uniworld_core.errors import UniWorldError, shown
from ...uniworld_core.files import read_limited
from .editr1 import EditR1Config
from .settings import Config

PRESETS = Path(__file__).parent / "presets"
_MAX_BYTES = 4 * 2**20

T = TypeVar("T")
_LISTS = {str: '["a", "b"]', int: "[1, 2]", float: "[1.0, 0.5]", bool: "[true, false]"}
_KIND_NAMES = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}


def preset_names() -> list[str]:
    """Return the names of the presets that ship with the package."""
    return sorted(file.stem for file in PRESETS.glob("*.toml"))


def load_config(source: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Load a preset or a file of a run that trains on targets, and apply overrides; see `load_any`.

    Raises:
        UniWorldError: as `load_any`, or the file is of a run with rewards.
    """
    config = load_any(source, overrides)
    if not isinstance(config, Config):
        raise UniWorldError(f"{source} configures a run with rewards (it has a table editr1): give one without.")
    return config


def load_any(source: str | Path, overrides: Sequence[str] = ()) -> Config | EditR1Config:
    """Load a preset or a file of either kind and apply overrides. A table `editr1` makes it a run with rewards.

    Args:
        source: a name in `preset_names()`, or the path of a TOML file.
        overrides: `section.key=value`, with the value in TOML syntax; strings need no quotes.

    Raises:
        UniWorldError: the file does not exist or is not TOML, or a key is unknown or its value invalid; the message names
            the key.
    """
    named = PRESETS / f"{source}.toml"
    file = named if str(source) in preset_names() else Path(source)
    try:
        data = read_limited(file, _MAX_BYTES)
        if data is None:
            raise UniWorldError(f"{source} is larger than {_MAX_BYTES // 2**20} MiB: give a TOML file of settings.")
        raw = parse_toml(data.decode("utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise UniWorldError(
            f"The configuration {source} cannot be read ({error}): give a TOML file or a preset, "
            f"{' or '.join(preset_names())}."
        ) from error
    kind: type[Config | EditR1Config] = EditR1Config if "editr1" in raw else Config
    for override in overrides:
        _apply(kind, raw, override)
    return _read(kind, raw, "", str(file))


def config_from_dict(raw: Mapping[str, object], source: str = "the configuration") -> Config:
    """Build a configuration from parsed TOML. Raises UniWorldError naming an unknown key or an invalid value."""
    return _read(Config, raw, "", source)


def parse_toml(text: str, source: str) -> dict[str, object]:
    """Parse TOML. Raises UniWorldError naming the source and the line of a syntax error."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise UniWorldError(f"{source} is nested too deeply for a configuration: correct it.") from error
    except ValueError as error:  # also raised for an integer of thousands of digits
        raise UniWorldError(f"{source} is not TOML: {error}.") from error


def to_toml(config: Config | EditR1Config) -> str:
    """Write every setting as TOML that loads as the same configuration."""
    lines = []
    for section in fields(config):
        lines.append(f"[{section.name}]")
        values = getattr(config, section.name)
        lines += [f"{key.name} = {_toml_value(getattr(values, key.name))}" for key in fields(values)]
        lines.append("")
    return "\n".join(lines)


def _toml_value(value: object) -> str:
    if is_dataclass(value):
        return "{ " + ", ".join(f"{key.name} = {_toml_value(getattr(value, key.name))}" for key in fields(value)) + " }"
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    if isinstance(value, str):
        # JSON's escapes are valid TOML; DEL is the only control character that JSON does not escape and TOML requires.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)


def _apply(root: type, raw: dict[str, object], override: str) -> None:
    """Apply one `section.key=value` to the parsed TOML."""
    name, equals, text = override.partition("=")
    section, dot, key = name.strip().partition(".")
    if not equals or not dot:
        raise UniWorldError(f"The override '{override}' is not of the form section.key=value, such as run.steps=100.")
    _check_key(root, section, "", "--set")
    kind = get_type_hints(root)[section]
    _check_key(kind, key, f"{section}.", "--set")
    field_kind = get_type_hints(kind)[key]
    value = _override_value(text.strip(), field_kind, f"{section}.{key}")
    _convert(value, field_kind, f"{section}.{key}", "--set")  # here, so that the error names --set and not the file
    table = raw.setdefault(section, {})
    if isinstance(table, dict):  # otherwise the file is invalid, which `config_from_dict` reports
        table[key] = value


def _override_value(text: str, kind: object, name: str) -> object:
    if kind is str and not text.startswith(('"', "'")):
        return text
    is_list = get_origin(kind) is tuple
    if is_list and not text:
        return []
    try:
        return parse_toml(f"value = {text}", "--set")["value"]
    except UniWorldError as error:
        # Otherwise the text would be the only value of the list.
        if is_list and get_args(kind)[0] in _LISTS and (text.startswith("[") or "," in text):
            written = _as_list(text, get_args(kind)[0])
            raise UniWorldError(f"{name} in --set is {text}; write a list as {written}.") from error
        return text


def _as_list(text: str, kind: object) -> str:
    """Write a list of strings or of numbers as TOML, from text such as `a,b` or `[a, b]`; an example if that is impossible."""
    items = [item.strip().strip("\"'") for item in text.strip("[]").split(",")]
    if kind is str:
        return json.dumps([item for item in items if item], ensure_ascii=False)
    try:
        return "[" + ", ".join(f"{float(item):g}" for item in items) + "]"
    except ValueError:
        return _LISTS[float]


def _check_key(kind: type, key: str, prefix: str, source: str) -> None:
    known = [item.name for item in fields(kind)]  # type: ignore[arg-type]
    if key in known:
        return
    near = difflib.get_close_matches(key, known, n=1)
    names = ", ".join(prefix + name for name in known)
    hint = f"did you mean {prefix}{near[0]}?" if near else f"valid keys are {names}."
    raise UniWorldError(f"{source} has the unknown key {prefix}{key}: {hint}")


def _read(kind: type[T], raw: object, prefix: str, source: str) -> T:
    """Build a dataclass of type `kind` from a TOML table."""
    if not isinstance(raw, Mapping):
        raise UniWorldError(f"{prefix.rstrip('.')} in {source} is {raw!r}; it must be a table of keys and values.")
    hints = get_type_hints(kind)
    values = {}
    for key, value in raw.items():
        _check_key(kind, key, prefix, source)
        values[key] = _convert(value, hints[key], f"{prefix}{key}", source)
    try:
        return kind(**values)
    except TypeError as error:
        raise UniWorldError(f"{prefix.rstrip('.')} in {source} is missing a key: {error}.") from error


def _convert(value: object, kind: Any, name: str, source: str) -> object:
    """Convert a TOML value to the type of its field. Integers are valid floats; a single value is a valid list."""
    if is_dataclass(kind):
        return _read(kind, value, f"{name}.", source)  # type: ignore[arg-type]
    if get_origin(kind) is tuple:
        return _convert_tuple(value, get_args(kind), name, source)
    if kind is float and type(value) is int:
        try:
            return float(value)
        except OverflowError as error:
            raise UniWorldError(f"{name} in {source} is {shown(value)}; it must be a number below 1.8e308.") from error
    if type(value) is not kind:
        raise UniWorldError(f"{name} in {source} is {shown(value)}; it must be {_KIND_NAMES[kind]}.")
    return value


def _convert_tuple(value: object, kinds: tuple[object, ...], name: str, source: str) -> tuple[object, ...]:
    items = value if isinstance(value, list) else [value]
    if kinds[-1] is Ellipsis:
        try:
            return tuple(_convert(item, kinds[0], name, source) for item in items)
        except UniWorldError as error:
            if is_dataclass(kinds[0]):
                raise
            wanted = f"it must be a list, such as {_LISTS[kinds[0]]}"  # type: ignore[index]
            raise UniWorldError(f"{name} in {source} is {shown(value)}; {wanted}.") from error
    if len(items) != len(kinds):
        raise UniWorldError(f"{name} in {source} is {value!r}; it must be a list of {len(kinds)} values.")
    return tuple(_convert(item, kind, name, source) for item, kind in zip(items, kinds))
