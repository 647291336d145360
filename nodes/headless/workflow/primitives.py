"""The values that the editor's primitive nodes write into the widgets they are wired to, when a workflow is queued.

A primitive writes its value even if it is muted or bypassed, but only into widgets that it is wired to directly. A
number is treated as if it were typed into the widget: it is rounded to the step, and a FLOAT is clipped to the range.
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

REPLACE = "Run widget replace on values"  # the property that enables tokens in the text of a primitive
# The editor's range and step of a number whose node declares none.
_LOW, _HIGH, _FLOAT_STEP = 0, 2048, 0.5
# Options that may differ between two widgets fed by the same primitive.
_MAY_DIFFER = frozenset(
    {"default", "forceInput", "defaultInput", "control_after_generate", "multiline", "tooltip", "dynamicPrompts"}
)
_RANGE = frozenset({"min", "max", "step"})


def apply_primitives(nodes: EditorNodes, replace_tokens: Callable[[str], str]) -> None:
    """Write the values of a graph's primitives into the widgets that they feed.

    Args:
        replace_tokens: replaces the tokens of a text.
    """
    for node in nodes.by_id.values():
        if node.virtual and node.type == PRIMITIVE and "value" in node.widgets.values:
            value = node.widgets.values["value"]
            if isinstance(value, str) and value and node.properties.get(REPLACE):
                value = replace_tokens(value)
            for target, entry in nodes.fed_by(node.id, 0):
                _write(target, entry, value)


def read_primitives(nodes: EditorNodes, full_id: Callable[[str], str]) -> None:
    """Set the values of a graph's primitives to those that the editor shows.

    Args:
        full_id: returns the id of a node for error messages.

    Raises:
        UniWorldError: a number is too large for the editor.
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


def _current_value(node: EditorNode, entry: EditorInput) -> object:
    return entry.value if entry.promoted is not None else node.widgets.values.get(entry.widget or "")


def _through_reroutes(nodes: EditorNodes, node: EditorNode, entry: EditorInput) -> tuple[EditorNode, EditorInput]:
    """Return the first input with a widget behind reroutes, or the given one: reroutes show its type and range."""
    seen: set[str] = set()
    pending = [(node, entry)]
    while pending:
        target, target_entry = pending.pop()
        if not (target.virtual and target.type == REROUTE):
            if _widget(target, target_entry) is not None:
                return target, target_entry
        elif target.id not in seen:
            seen.add(target.id)
            pending += reversed(nodes.fed_by(target.id, 0))
    return node, entry


def _own_value(node: EditorNode, targets: list[tuple[EditorNode, EditorInput]]) -> list[object]:
    """Return a list with the value of a primitive, or an empty list. Its first target determines its widget."""
    if not targets:
        return []
    target, entry = targets[0]
    widget = _widget(target, entry)
    saved = node.saved.get("widgets_values")
    value: Any
    if isinstance(saved, list) and saved and node.outputs[:1] == [entry.type]:
        value = saved[0]
    elif widget is not None:
        value = _current_value(target, entry)
    else:
        return []
    numeric = widget is not None and widget.kind in ("INT", "FLOAT")
    if numeric and isinstance(value, int) and abs(value) > sys.float_info.max:
        # All numbers of the editor are floats, so this one would become infinity, which it does not send.
        raise UniWorldError(f"its value {shown(value)} is too large (at most 1.8e308). Set a smaller one.")
    if numeric and _is_number(value):
        value = _clip_to_all(value, [found for one, input_ in targets if (found := _widget(one, input_)) is not None])
    return [widget.coerce(value) if widget is not None else value]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _clip_to_all(value: float, widgets: list[Widget]) -> float:
    """Return the value of a primitive that feeds these widgets: clipped and rounded for all compatible ones."""
    first = widgets[0]
    merged: dict[str, Any] = dict(first.options)
    for widget in widgets:
        options = _merged(merged, widget.options) if widget.kind == first.kind else None
        if options is None:
            continue
        merged = options
        value = min(max(value, merged["min"]), merged["max"])
        value = _rounded(value, first.kind, merged)
    return value


def _merged(one: Mapping[str, object], other: Mapping[str, object]) -> dict[str, Any] | None:
    """Return options that satisfy two widgets, or None if they are incompatible."""
    low = max(_number(one.get("min"), -math.inf), _number(other.get("min"), -math.inf))
    high = min(_number(one.get("max"), math.inf), _number(other.get("max"), math.inf))
    if low > high or any(one.get(key) != other.get(key) for key in (one.keys() | other.keys()) - _MAY_DIFFER - _RANGE):
        return None
    steps = _number(one.get("step"), 1), _number(other.get("step"), 1)
    return {**one, **other, "min": low, "max": high, "step": _common_step(*steps)}


def _common_step(one: float, other: float) -> float:
    """Return the least common multiple of two steps, by Euclid's algorithm."""
    greater, less = abs(one), abs(other)
    while less > 1e-10:
        greater, less = less, math.fmod(greater, less)
    return abs(one * other) / greater if greater else 0


def _number(value: Any, default: float) -> float:
    return value if _is_number(value) or value in (math.inf, -math.inf) else default


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
    """Round a number to the step of a widget, and clip a FLOAT to its range."""
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
    """Round to the nearest integer, halves up like JavaScript; floats too large for a fraction are unchanged."""
    return float(math.floor(value + 0.5)) if abs(value) < 2**52 else float(value)


def _whole(value: float) -> float:
    return int(value) if math.isfinite(value) and value == int(value) else value
