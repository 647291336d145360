"""The declaration of a node class in ComfyUI's V1 form, read once into plain data.

Types are strings, with "*" for any type and commas for unions. A choice is a list of options or
`("COMBO", {"options": [...]})`. Source: `execution.py` and `server.py` of ComfyUI 0.3.64.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeGuard

from ....uniworld_core.errors import UniWorldError

WIDGET_TYPES = frozenset({"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"})
ANY_TYPE = "*"


@dataclass(frozen=True)
class InputSpec:
    """One input of a node.

    Attributes:
        type: name of the type, or the list of options for a choice in the old form.
        category: "required" or "optional".
    """

    name: str
    type: Any
    category: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def choices(self) -> list[object] | None:
        """The options of a choice; None for other inputs and for choices without a fixed list."""
        if isinstance(self.type, (list, tuple)):
            return list(self.type)
        if self.type == "COMBO":
            options = self.options.get("options")
            return list(options) if isinstance(options, (list, tuple)) else None
        return None

    @property
    def type_name(self) -> str:
        return "COMBO" if isinstance(self.type, (list, tuple)) else str(self.type)

    @property
    def lazy(self) -> bool:
        return bool(self.options.get("lazy"))

    @property
    def raw_link(self) -> bool:
        """Whether the node receives the link itself, `[node id, output]`, instead of the linked value."""
        return bool(self.options.get("rawLink"))

    @property
    def accepts_constant(self) -> bool:
        """Whether the input accepts a value: its type has a widget, is a wildcard, or is a union with such a type."""
        names = {part.strip() for part in self.type_name.split(",")}
        return bool(names & WIDGET_TYPES) or ANY_TYPE in names

    @property
    def config(self) -> tuple[object, dict[str, object]]:
        """The pair that ComfyUI puts into error reports as `input_config`."""
        return (self.type, self.options)


@dataclass(frozen=True)
class NodeSchema:
    """The declaration of a node class, for the executor and the validator.

    Attributes:
        arguments: names of the arguments of the node's function; None if it accepts any.
        is_async: whether the function is a coroutine.
        receiver: name of its argument for the node itself (usually "self"), which no input can set.
    """

    inputs: dict[str, InputSpec]
    hidden: dict[str, str]
    output_types: tuple[object, ...]
    output_is_list: tuple[bool, ...]
    input_is_list: bool
    is_output: bool
    arguments: frozenset[str] | None
    is_async: bool
    receiver: str = ""

    def takes_link(self, name: str) -> bool:
        """Return whether the node's function receives a linked input of this name, declared or not."""
        if name in self.inputs or name in self.hidden:
            return True
        return name != self.receiver and (self.arguments is None or name in self.arguments)

    def used_links(self, inputs: dict[str, Any]) -> dict[str, list[Any]]:
        """Return the links among a node's inputs that its function receives, by name."""
        return {name: value for name, value in inputs.items() if is_link(value) and self.takes_link(name)}


def read_schema(node_class: type) -> NodeSchema:
    """Read a V1 node class.

    Raises:
        UniWorldError: the class does not follow the V1 form; the message names the class and the part.
    """
    declared = _input_types(node_class)
    inputs: dict[str, InputSpec] = {}
    for category in ("required", "optional"):
        for name, entry in (declared.get(category) or {}).items():
            inputs.setdefault(name, _input_spec(node_class, name, entry, category))
    output_types = tuple(getattr(node_class, "RETURN_TYPES", ()))
    is_list = tuple(bool(flag) for flag in getattr(node_class, "OUTPUT_IS_LIST", ()))
    function = getattr(node_class, str(getattr(node_class, "FUNCTION", "")), None)
    names, takes_any = argument_names(function) if callable(function) else ([], False)
    receiver = _receiver(node_class)
    return NodeSchema(
        inputs=inputs,
        hidden={name: _hidden_kind(kind) for name, kind in (declared.get("hidden") or {}).items()},
        output_types=output_types,
        output_is_list=(is_list + (False,) * len(output_types))[: len(output_types)],
        input_is_list=bool(getattr(node_class, "INPUT_IS_LIST", False)),
        is_output=getattr(node_class, "OUTPUT_NODE", False) is True,
        arguments=None if takes_any else frozenset(names) - {receiver},
        is_async=inspect.iscoroutinefunction(function),
        receiver=receiver,
    )


class Schemas(dict[str, NodeSchema]):
    """The schemas of node classes by name, each read on first use."""

    def __init__(self, classes: Mapping[str, type]) -> None:
        super().__init__()
        self._classes = classes

    def __missing__(self, name: str) -> NodeSchema:
        self[name] = read_schema(self._classes[name])
        return self[name]


def _input_types(node_class: type) -> dict[str, dict[str, object]]:
    try:
        declared = node_class.INPUT_TYPES()  # type: ignore[attr-defined]
    except Exception as error:
        raise UniWorldError(f"{node_class.__name__}.INPUT_TYPES failed with {type(error).__name__}: {error}") from error
    if not isinstance(declared, dict):
        raise UniWorldError(
            f"{node_class.__name__}.INPUT_TYPES returned a {type(declared).__name__}; it must return a dict."
        )
    return declared


def _input_spec(node_class: type, name: str, entry: object, category: str) -> InputSpec:
    if not isinstance(entry, (list, tuple)) or not entry:
        raise UniWorldError(f"{node_class.__name__}: input '{name}' is {entry!r}; it must be a (type, options) tuple.")
    options = entry[1] if len(entry) > 1 and isinstance(entry[1], dict) else {}
    return InputSpec(name, entry[0], category, options)


def _hidden_kind(kind: object) -> str:
    # Both spellings are in use: "PROMPT" and ("PROMPT",).
    return str(kind[0]) if isinstance(kind, (list, tuple)) and kind else str(kind)


def argument_names(function: Callable[..., object]) -> tuple[list[str], bool]:
    """Return the names of a function's arguments, without a bound first one, and whether it has `**kwargs`."""
    try:
        names, takes_any = _known_arguments(function)
    except TypeError:  # it cannot be hashed
        names, takes_any = _arguments_of(function)
    return list(names), takes_any


def _arguments_of(function: Callable[..., object]) -> tuple[tuple[str, ...], bool]:
    spec = inspect.getfullargspec(function)
    return (*spec.args[inspect.ismethod(function) :], *spec.kwonlyargs), spec.varkw is not None


# Every check of a prompt reads the schemas of its nodes. Inputs may change between two reads, but signatures do not, and
# inspecting them takes most of the time.
_known_arguments = lru_cache(maxsize=4096)(_arguments_of)


def _receiver(node_class: type) -> str:
    """Return the name of the argument of the node's function that is the instance; "" for a static method."""
    function = inspect.getattr_static(node_class, str(getattr(node_class, "FUNCTION", "")), None)
    return _first_argument(function) if inspect.isfunction(function) else ""


@lru_cache(maxsize=4096)
def _first_argument(function: Callable[..., object]) -> str:
    try:
        # `signature` follows `__wrapped__`: a decorator with *args hides the names, the wrapped function has them.
        first = next(iter(inspect.signature(function).parameters.values()), None)
    except (ValueError, TypeError):  # it wraps an object without a signature
        return ""
    named = first is not None and first.kind in (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD)
    return first.name if first is not None and named else ""


def types_match(received: object, expected: object) -> bool:
    """Return whether an output of type `received` may be linked to an input of type `expected`.

    A type may be a `str` subclass whose `!=` always returns False: packs commonly define wildcards this way.
    """
    if not received != expected:  # noqa: SIM202  (the subclass overrides `!=` only)
        return True
    received_name = "COMBO" if isinstance(received, (list, tuple)) else received
    expected_name = "COMBO" if isinstance(expected, (list, tuple)) else expected
    # Choices with different options are different types, but a list of options matches the plain name COMBO.
    if isinstance(received, (list, tuple)) and isinstance(expected, (list, tuple)):
        return list(received) == list(expected)
    if not isinstance(received_name, str) or not isinstance(expected_name, str):
        return False
    left = {part.strip() for part in received_name.split(",")}
    right = {part.strip() for part in expected_name.split(",")}
    return ANY_TYPE in left or ANY_TYPE in right or bool(left & right)


def is_link(value: object) -> TypeGuard[list[Any]]:
    """Return whether an input's value in API form is a link: `[node id, output slot]`."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], (int, float))
        and not isinstance(value[1], bool)
    )


def unwrap(value: object) -> object:
    """Return the constant itself. A list is wrapped as `{"__value__": [...]}` to distinguish it from a link."""
    return value["__value__"] if isinstance(value, dict) and "__value__" in value else value


def object_info(
    name: str, node_class: type, display_name: str | None = None, module: str = "nodes"
) -> dict[str, object]:
    """Return the description of a node that ComfyUI serves under `/object_info`, ready for JSON."""
    declared = _input_types(node_class)
    output_types = tuple(getattr(node_class, "RETURN_TYPES", ()))
    info: dict[str, object] = {
        "input": {part: {key: _as_json(entry) for key, entry in entries.items()} for part, entries in declared.items()},
        "input_order": {part: list(entries) for part, entries in declared.items()},
        "output": [_as_json(kind) for kind in output_types],
        "output_is_list": list(getattr(node_class, "OUTPUT_IS_LIST", [False] * len(output_types))),
        "output_name": [_as_json(label) for label in getattr(node_class, "RETURN_NAMES", output_types)],
        "name": name,
        "display_name": display_name or name,
        "description": getattr(node_class, "DESCRIPTION", ""),
        "python_module": getattr(node_class, "RELATIVE_PYTHON_MODULE", module),
        "category": getattr(node_class, "CATEGORY", "sd"),
        "output_node": getattr(node_class, "OUTPUT_NODE", False) is True,
    }
    if hasattr(node_class, "OUTPUT_TOOLTIPS"):
        info["output_tooltips"] = list(node_class.OUTPUT_TOOLTIPS)
    aliases = getattr(node_class, "SEARCH_ALIASES", None)
    if aliases:
        info["search_aliases"] = list(aliases)
    for flag in ("DEPRECATED", "EXPERIMENTAL"):
        if getattr(node_class, flag, False):
            info[flag.lower()] = True
    return info


def _as_json(value: object) -> object:
    if isinstance(value, dict):
        return {str(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_as_json(item) for item in value]
    if isinstance(value, str):
        return str.__str__(value)
    return value if isinstance(value, (int, float, bool, type(None))) else str(value)
