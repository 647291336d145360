"""Results kept between runs, by what they were computed from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from .calls import call_over_lists
from .schema import NodeSchema, argument_names, hidden_before_run, is_link, unwrap

_never = count()


@dataclass(frozen=True)
class NodeResult:
    """What a node gave: one list of values per output, and what it shows in the editor."""

    outputs: list[list[Any]]
    ui: dict[str, list[Any]]


@dataclass
class ResultCache:
    """Results by signature, and node instances by id and class. Holds what the last run's workflow can use."""

    results: dict[str, NodeResult] = field(default_factory=dict)
    instances: dict[tuple[str, str], Any] = field(default_factory=dict)

    def keep_only(self, signatures: set[str], instances: set[tuple[str, str]]) -> None:
        self.results = {key: result for key, result in self.results.items() if key in signatures}
        self.instances = {key: instance for key, instance in self.instances.items() if key in instances}


class Signatures:
    """The signature of every node of one workflow: class, constants, IS_CHANGED, and the signatures of its sources."""

    def __init__(self, prompt: dict[str, Any], classes: Mapping[str, type], schemas: Mapping[str, NodeSchema]) -> None:
        self._prompt, self._classes, self._schemas = prompt, classes, schemas
        self._known: dict[str, str] = {}

    def all_behind(self, outputs: list[str]) -> dict[str, str]:
        """The signatures by id of the output nodes and all they need, which must be free of cycles."""
        stack = list(outputs)
        while stack:
            current = stack[-1]
            missing = [source for source in self._sources(current) if source not in self._known]
            if missing:
                stack.extend(missing)
                continue
            stack.pop()
            if current not in self._known:
                self._known[current] = self._compute(current)
        return self._known

    def _sources(self, node_id: str) -> list[str]:
        return [value[0] for value in self._prompt[node_id]["inputs"].values() if is_link(value)]

    def _compute(self, node_id: str) -> str:
        node = self._prompt[node_id]
        node_class = self._classes[node["class_type"]]
        parts = [node["class_type"], _canonical(self._is_changed(node_id))]
        schema = self._schemas[node["class_type"]]
        if getattr(node_class, "NOT_IDEMPOTENT", False) or "UNIQUE_ID" in schema.hidden.values():
            parts.append(f"id {node_id}")
        for name, value in sorted(node["inputs"].items()):
            if is_link(value):
                parts.append(f"{name}<-{self._known[value[0]]}/{value[1]}")
            else:
                parts.append(f"{name}={_canonical(value)}")
        return hashlib.sha256("\0".join(parts).encode(errors="surrogatepass")).hexdigest()

    def _is_changed(self, node_id: str) -> Any:
        node = self._prompt[node_id]
        node_class = self._classes[node["class_type"]]
        if not hasattr(node_class, "IS_CHANGED"):
            return False
        schema = self._schemas[node["class_type"]]
        inputs = node["inputs"].items()
        values = {name: [None if is_link(value) else unwrap(value)] for name, value in inputs if name in schema.inputs}
        try:
            names, takes_all = argument_names(node_class.IS_CHANGED)
            hidden = hidden_before_run(schema, node_id)
            values.update({name: [value] for name, value in hidden.items() if name in names or takes_all})
            return call_over_lists(node_class.IS_CHANGED, values, schema.input_is_list)
        except Exception:
            # As in ComfyUI: a node that cannot tell has changed. Its run will say what is wrong.
            return float("nan")


def _canonical(value: Any) -> str:
    """A text that is equal for equal values, and new each time for what cannot be compared (NaN, objects)."""
    if isinstance(value, float) and value != value:
        return f"never {next(_never)}"
    if value is None or isinstance(value, (str, int, float, bool, bytes)):
        return f"{type(value).__name__}:{value!r}"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_canonical(key)}:{_canonical(value[key])}" for key in sorted(value, key=str)) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(_canonical(item) for item in value) + "]"
    return f"never {next(_never)}"
