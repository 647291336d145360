"""Configurations as TOML: presets, files, overrides on the command line, and back to text.

Read by hand and not by pydantic, tyro or msgspec: a sentence on a wrong setting names its file, its section, the values
allowed and the nearest name, and one configuration does not pay for a dependency.
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from ...uniworld_core.errors import UniWorldError
from .settings import Config

PRESETS = Path(__file__).parent / "presets"

T = TypeVar("T")
_KIND_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def preset_names() -> list[str]:
    """Names of the presets that ship with the package."""
    return sorted(file.stem for file in PRESETS.glob("*.toml"))


def load_config(source: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a preset or file, with overrides.

    Args:
        source: a name in `preset_names()`, or the path of a TOML file.
        overrides: `section.key=value`, the value as in TOML; text needs no quotes.

    Raises:
        UniWorldError: no such file, not TOML, unknown keys, values of the wrong kind or out of range; the key is named.
    """
    named = PRESETS / f"{source}.toml"
    file = named if str(source) in preset_names() else Path(source)
    try:
        raw = parse_toml(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise UniWorldError(
            f"The configuration {source} cannot be read ({error}): give a TOML file or a preset, "
            f"{' or '.join(preset_names())}."
        ) from error
    for override in overrides:
        _apply(raw, override)
    return config_from_dict(raw, str(file))


def config_from_dict(raw: Mapping[str, object], source: str = "the configuration") -> Config:
    """A configuration from tables, as TOML has them. Raises UniWorldError naming an unknown key or a wrong value."""
    return _read(Config, raw, "", source)


def parse_toml(text: str, source: str) -> dict[str, object]:
    """TOML as tables. Raises UniWorldError naming the source and the line of what is not TOML."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise UniWorldError(f"{source} is nested too deep for a configuration: correct it.") from error
    except ValueError as error:  # also a number of thousands of digits
        raise UniWorldError(f"{source} is not TOML: {error}.") from error


def to_toml(config: Config) -> str:
    """Every setting as a TOML file that gives the same configuration again."""
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
        # JSON's escapes are TOML's; the one control character that JSON lets through is not.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)


def _apply(raw: dict[str, object], override: str) -> None:
    """Put one `section.key=value` into the tables."""
    name, equals, text = override.partition("=")
    section, dot, key = name.strip().partition(".")
    if not equals or not dot:
        raise UniWorldError(f"The override '{override}' is not of the form section.key=value, as in run.steps=100.")
    _check_key(Config, section, "", "--set")
    kind = get_type_hints(Config)[section]
    _check_key(kind, key, f"{section}.", "--set")
    field_kind = get_type_hints(kind)[key]
    value = _override_value(text.strip(), field_kind)
    _convert(value, field_kind, f"{section}.{key}", "--set")  # so that a wrong one is not laid on the file
    table = raw.setdefault(section, {})
    if isinstance(table, dict):  # else the file is wrong, which is told when it is read as a configuration
        table[key] = value


def _override_value(text: str, kind: object) -> object:
    if kind is str and not text.startswith(('"', "'")):
        return text
    try:
        return parse_toml(f"value = {text}", "--set")["value"]
    except UniWorldError:
        return text


def _check_key(kind: type, key: str, prefix: str, source: str) -> None:
    known = [item.name for item in fields(kind)]  # type: ignore[arg-type]
    if key in known:
        return
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {prefix}{near[0]}?" if near else f"known are {', '.join(prefix + name for name in known)}."
    raise UniWorldError(f"{source} has the unknown key {prefix}{key}: {hint}")


def _read(kind: type[T], raw: object, prefix: str, source: str) -> T:
    """An object of dataclass `kind` from a table."""
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
        raise UniWorldError(f"{prefix.rstrip('.')} in {source} lacks a key: {error}.") from error


def _convert(value: object, kind: Any, name: str, source: str) -> object:
    """A TOML value as the type of its field; whole numbers serve as numbers, and one value as a list of one."""
    if is_dataclass(kind):
        return _read(kind, value, f"{name}.", source)  # type: ignore[arg-type]
    if get_origin(kind) is tuple:
        return _convert_tuple(value, get_args(kind), name, source)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise UniWorldError(f"{name} in {source} is {value!r}; it must be {_KIND_NAMES[kind]}.")
    return value


def _convert_tuple(value: object, kinds: tuple[object, ...], name: str, source: str) -> tuple[object, ...]:
    items = value if isinstance(value, list) else [value]
    if kinds[-1] is Ellipsis:
        return tuple(_convert(item, kinds[0], name, source) for item in items)
    if len(items) != len(kinds):
        raise UniWorldError(f"{name} in {source} is {value!r}; it must be a list of {len(kinds)}.")
    return tuple(_convert(item, kind, name, source) for item, kind in zip(items, kinds))
