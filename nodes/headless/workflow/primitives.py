"""What the editor's primitives write into the widgets they are wired to, when a workflow is queued.

A primitive writes whatever its mode, but only into widgets that its wires reach directly. A widget takes a number as
it would take one that is typed in: rounded to its step, and a FLOAT within its range.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

from ....uniworld_core.errors import UniWorldError, shown
from ..problems import node_label
from ..registry.widgets import Widget
from .editor_nodes import PRIMITIVE, REROUTE, EditorInput, EditorNode, EditorNodes

REPLACE = "Run widget replace on values"  # the property that lets tokens in a primitive's text be filled in
# The editor's ranges and step of a number whose node declares none.
_LOW, _HIGH, _FLOAT_STEP = 0, 2048, 0.5
# What two widgets need not have in common to be fed by one primitive.
_FREE = frozenset(
    {"default", "forceInput", "defaultInput", "control_after_generate", "multiline", "tooltip", "dynamicPrompts"}
)
_RANGE = frozenset({"min", "max", "step"})


def apply_primitives(nodes: EditorNodes, replaced: Callable[[str], str]) -> None:
    """Write the values of a graph's primitives into the widgets that they feed.

    Args:
        replaced: fills in the tokens of a text.
    """
    for node in nodes.by_id.values():
        if node.virtual and node.type == PRIMITIVE and "value" in node.widgets.values:
            value = node.widgets.values["value"]
            if isinstance(value, str) and value and node.properties.get(REPLACE):
                value = replaced(value)
            for target, entry in nodes.fed_by(node.id, 0):
                _write(target, entry, value)


def read_primitives(nodes: EditorNodes, full_id: Callable[[str], str]) -> None:
    """Give a graph's primitives the values that they show.

    Args:
        full_id: the id of a node as sentences name it.

    Raises:
        UniWorldError: a value is too large for a number.
    """
    for node in nodes.by_id.values():
        if node.virtual and node.type == PRIMITIVE:
            targets = [_through_reroutes(nodes, *target) for target in nodes.fed_by(node.id, 0)]
            try:
                for value in _own_value(node, targets):
                    node.widgets.values["value"] = value
            except UniWorldError as error:
                raise UniWorldError(f"{node_label(full_id(node.id), node.type)}: {error}") from error


def _widget(node: EditorNode, entry: EditorInput) -> Widget | None:
    return entry.promoted or node.widgets.widgets.get(entry.widget or "")


def _held(node: EditorNode, entry: EditorInput) -> object:
    return entry.value if entry.promoted is not None else node.widgets.values.get(entry.widget or "")


def _through_reroutes(nodes: EditorNodes, node: EditorNode, entry: EditorInput) -> tuple[EditorNode, EditorInput]:
    """The first widget behind a reroute, which shows its type and range to what feeds it; else what was given."""
    seen: set[str] = set()
    pending = [(node, entry)]
    while pending:
        target, way = pending.pop()
        if not (target.virtual and target.type == REROUTE):
            if _widget(target, way) is not None:
                return target, way
        elif target.id not in seen:
            seen.add(target.id)
            pending += reversed(nodes.fed_by(target.id, 0))
    return node, entry


def _own_value(node: EditorNode, targets: list[tuple[EditorNode, EditorInput]]) -> list[object]:
    """A primitive's value, if it has one: it gets its widget from the first input that it is wired to."""
    if not targets:
        return []
    target, entry = targets[0]
    widget = _widget(target, entry)
    saved = node.saved.get("widgets_values")
    value: Any
    if isinstance(saved, list) and saved and node.outputs[:1] == [entry.type]:
        value = saved[0]
    elif widget is not None:
        value = _held(target, entry)
    else:
        return []
    numeric = widget is not None and widget.kind in ("INT", "FLOAT")
    if numeric and isinstance(value, int) and abs(value) > sys.float_info.max:
        # The editor, whose numbers are all floats, would hold infinity and send nothing.
        raise UniWorldError(f"its value {shown(value)} is too large, at most 1.8e308. Set a smaller one.")
    if numeric and _is_number(value):
        value = _within_all(value, [found for one, way in targets if (found := _widget(one, way)) is not None])
    return [widget.coerce(value) if widget is not None else value]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _within_all(value: float, widgets: list[Widget]) -> float:
    """A number as a primitive holds it that feeds these widgets: within the range and on the step of all that agree."""
    first = widgets[0]
    merged: dict[str, Any] = dict(first.options)
    for widget in widgets:
        together = _merged(merged, widget.options) if widget.kind == first.kind else None
        if together is None:
            continue
        merged = together
        value = min(max(value, merged["min"]), merged["max"])
        value = _rounded(value, first.kind, merged)
    return value


def _merged(one: Mapping[str, object], other: Mapping[str, object]) -> dict[str, Any] | None:
    low = max(_number(one.get("min"), -math.inf), _number(other.get("min"), -math.inf))
    high = min(_number(one.get("max"), math.inf), _number(other.get("max"), math.inf))
    if low > high or any(one.get(key) != other.get(key) for key in (one.keys() | other.keys()) - _FREE - _RANGE):
        return None
    steps = _number(one.get("step"), 1), _number(other.get("step"), 1)
    return {**one, **other, "min": low, "max": high, "step": _common_step(*steps)}


def _common_step(one: float, other: float) -> float:
    greater, less = abs(one), abs(other)
    while less > 1e-10:
        greater, less = less, math.fmod(greater, less)
    return abs(one * other) / greater if greater else 0


def _number(value: Any, otherwise: float) -> float:
    return value if _is_number(value) or value in (math.inf, -math.inf) else otherwise


def _write(node: EditorNode, entry: EditorInput, value: Any) -> None:
    widget = _widget(node, entry)
    if widget is None:
        return
    if _is_number(value) and widget.kind in ("INT", "FLOAT"):
        value = _rounded(value, widget.kind, widget.options)
    if entry.promoted is not None:
        entry.value = value
    else:
        node.widgets.values[entry.widget or ""] = widget.coerce(value)


def _rounded(value: float, kind: str, options: Mapping[str, Any]) -> float:
    """A number as a widget with these options takes it."""
    low, high = _number(options.get("min"), _LOW), _number(options.get("max"), _HIGH)
    if kind == "INT":
        step = _number(options.get("step"), 1) or 1
        if step == 1:
            return value if isinstance(value, int) else _whole(_nearest(value))
        offset = math.fmod(low, step) if math.isfinite(low) else 0
        return _whole(_nearest((value - offset) / step) * step + offset)
    step = _number(options.get("step"), _FLOAT_STEP)
    precision = max(0, -math.floor(math.log10(step))) if step > 0 else 0
    unit = options.get("round") or (10.0**-precision if precision else 0)
    if not _is_number(unit) or unit <= 0:
        return value
    return _whole(min(max(round(_nearest(value / unit) * unit, precision), low), high))


def _nearest(value: float) -> float:
    """The nearest whole number, halves upwards; what is too large to have a fraction, infinity included, as it is."""
    return float(math.floor(value + 0.5)) if abs(value) < 2**52 else float(value)


def _whole(value: float) -> float:
    return int(value) if math.isfinite(value) and value == int(value) else value
