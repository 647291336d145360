"""Turns a workflow from the editor's form into API form, as the editor does when it queues one.

Left out of what editors can do: group nodes of old editors (refused by name) and random `{a|b}` prompts, whose text is
taken as it stands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .editor_graph import BYPASSED, MUTED, SUBGRAPH_INPUT, Scope, all_scopes, open_graph, slots
from .problems import node_label, shown
from .widgets import widget_surplus, widget_values

# Gives a node class's object_info, None for a class that is not known.
Infos = Callable[[str], dict[str, Any] | None]

NOTES = frozenset({"Note", "MarkdownNote"})
REROUTE, PRIMITIVE = "Reroute", "PrimitiveNode"


@dataclass(frozen=True)
class Output:
    """The output of a node, by its id in API form, that a wire comes from."""

    node_id: str
    slot: int


@dataclass(frozen=True)
class Value:
    """The value a wire carries that comes from a primitive or from a subgraph's own widget."""

    value: Any


def convert(workflow: dict[str, Any], infos: Infos, notes: list[str] | None = None) -> dict[str, Any]:
    """The API form of a workflow in editor form.

    Nodes of unknown classes are kept with their links, for `validate_prompt` to name them.

    Args:
        notes: takes sentences on what is no error but hardly meant.

    Raises:
        ValueError: the workflow is not of the editor's form.
    """
    prompt: dict[str, Any] = {}
    for scope in all_scopes(open_graph(workflow)):
        for node_id, node in scope.nodes.items():
            _check_values(scope, node_id, node)
            if _takes_part(scope, node_id, node):
                prompt[scope.full_id(node_id)] = _api_node(scope, node, infos)
                if notes is not None:
                    notes += _value_notes(scope.full_id(node_id), node, infos)
    for entry in prompt.values():
        # A link from a node that takes no part leaves its input without anything, as in the editor.
        entry["inputs"] = {
            name: value for name, value in entry["inputs"].items() if not isinstance(value, list) or value[0] in prompt
        }
    return prompt


def _takes_part(scope: Scope, node_id: str, node: dict[str, Any]) -> bool:
    kind = node.get("type")
    if node.get("mode") in (MUTED, BYPASSED) or node_id in scope.children or kind in NOTES | {REROUTE, PRIMITIVE}:
        return False
    if isinstance(kind, str) and kind.startswith(("workflow>", "workflow/")):
        raise ValueError(
            f"Node {scope.full_id(node_id)} is a group node ('{kind}') of an old editor. Open the workflow in a "
            "newer editor, turn it into a subgraph, and save it."
        )
    return True


def _check_values(scope: Scope, node_id: str, node: dict[str, Any]) -> None:
    saved, kind = node.get("widgets_values"), str(node.get("type", ""))
    if saved is None or isinstance(saved, (list, dict)) or kind in NOTES or node.get("mode") in (MUTED, BYPASSED):
        return
    raise ValueError(
        f'{node_label(scope.full_id(node_id), kind)}: "widgets_values" is {shown(saved)}; it must be a list of values. '
        "Save the workflow anew in the editor."
    )


def _value_notes(full_id: str, node: dict[str, Any], infos: Infos) -> list[str]:
    """Whether the saved values are fewer or more than the node has widgets, as those of another version may be."""
    kind, saved = str(node.get("type", "")), node.get("widgets_values")
    info = infos(kind)
    if info is None or not isinstance(saved, list) or not saved:
        return []
    missing, extra = widget_surplus(info, saved)
    linked = {entry.get("name") for entry in slots(node, "inputs") if entry.get("link") is not None}
    missing = [name for name in missing if name not in linked]
    label, counted = node_label(full_id, kind), "1 value" if len(saved) == 1 else f"{len(saved)} values"
    mend = "Look at them in the editor and save it anew."
    if missing:
        return [f"{label}: only {counted} saved, so {', '.join(missing)} take their defaults. {mend}"]
    return [f"{label}: {counted} saved, {extra} more than it has inputs; the last are ignored. {mend}"] if extra else []


def _api_node(scope: Scope, node: dict[str, Any], infos: Infos) -> dict[str, Any]:
    kind = str(node.get("type", ""))
    info = infos(kind)
    inputs: dict[str, Any] = {}
    if info is not None:
        inputs = {name: _wrap(value) for name, value in widget_values(info, node.get("widgets_values")).items()}
    for index, entry in enumerate(slots(node, "inputs")):
        name, source = entry.get("name"), source_of(scope, node, index)
        if not isinstance(name, str) or source is None:
            continue
        inputs[name] = _wrap(source.value) if isinstance(source, Value) else [source.node_id, source.slot]
    title = node.get("title")
    label = title if isinstance(title, str) else (info or {}).get("display_name", kind)
    return {"inputs": inputs, "class_type": kind, "_meta": {"title": label}}


def _wrap(value: Any) -> Any:
    return {"__value__": value} if isinstance(value, list) else value


def source_of(scope: Scope, node: dict[str, Any], slot: int) -> Output | Value | None:
    """What really feeds an input: through reroutes, bypassed nodes, primitives, and in and out of subgraphs.

    Raises:
        ValueError: the wires run in a circle of nodes that do nothing.
    """
    wanted = slots(node, "inputs")[slot].get("type", "*")
    promoted: Value | None = None
    visited: set[tuple[tuple[str, ...], Any, int]] = set()
    while True:
        key = (scope.path, node.get("id"), slot)
        if key in visited:
            raise ValueError(f"Node {scope.full_id(str(node.get('id')))}: the wires into it run in a circle. Cut one.")
        visited.add(key)
        link = scope.link_into(node, slot)
        if link is None:
            return promoted
        origin = _descend(scope, link.origin_id, link.origin_slot)
        if origin is None:
            return None
        scope, origin_id, slot = origin
        if origin_id == SUBGRAPH_INPUT:
            promoted = _host_value(scope, slot) or promoted
            outside = _host_slot(scope, slot)
            if scope.parent is None or outside is None:
                return promoted
            node, scope, slot = scope.host, scope.parent, outside
            continue
        node = scope.nodes.get(origin_id, {})
        kind, mode = node.get("type"), node.get("mode")
        if not node or kind in NOTES:
            return None
        if mode == BYPASSED:
            through = _bypass_slot(node, slot, wanted)
            if through is None:
                return None
            slot = through
            wanted = slots(node, "inputs")[slot].get("type", "*")
        elif kind == PRIMITIVE:
            values = node.get("widgets_values")
            return Value(values[0]) if isinstance(values, list) and values else None
        elif kind == REROUTE and mode != MUTED:
            slot = 0
        else:
            return Output(scope.full_id(origin_id), slot)


def _descend(scope: Scope, node_id: str, slot: int) -> tuple[Scope, str, int] | None:
    """The output inside, where a node is an opened subgraph; None if nothing is wired to it there."""
    while node_id in scope.children:
        scope = scope.children[node_id]
        link = scope.link_out(slot)
        if link is None:
            return None
        node_id, slot = link.origin_id, link.origin_slot
    return scope, node_id, slot


def _host_slot(scope: Scope, index: int) -> int | None:
    """Which input of the node that opens a subgraph is the subgraph's input `index`."""
    declared = slots(scope.definition, "inputs")
    if not 0 <= index < len(declared):
        return None
    names = [entry.get("name") for entry in slots(scope.host, "inputs")]
    name = declared[index].get("name")
    return names.index(name) if name in names else None


def _host_value(scope: Scope, index: int) -> Value | None:
    """The value that the node opening a subgraph keeps for the subgraph's input `index`.

    Its `widgets_values` hold one value for each input of the subgraph that is wired to a widget.
    """
    positions = [number for number in range(len(slots(scope.definition, "inputs"))) if _feeds_widget(scope, number)]
    saved = scope.host.get("widgets_values")
    if index not in positions or not isinstance(saved, list) or positions.index(index) >= len(saved):
        return None
    return Value(saved[positions.index(index)])


def _feeds_widget(scope: Scope, index: int) -> bool:
    pending = [(scope, index)]
    while pending:
        inner, number = pending.pop()
        for link in inner.links.values():
            if link.origin_id != SUBGRAPH_INPUT or link.origin_slot != number or link.target_id not in inner.nodes:
                continue
            inputs = slots(inner.nodes[link.target_id], "inputs")
            if not 0 <= link.target_slot < len(inputs):
                continue
            child = inner.children.get(link.target_id)
            if child is None and inputs[link.target_slot].get("widget"):
                return True
            if child is not None:
                names = [entry.get("name") for entry in slots(child.definition, "inputs")]
                name = inputs[link.target_slot].get("name")
                pending.extend([(child, names.index(name))] if name in names else [])
    return False


def _bypass_slot(node: dict[str, Any], slot: int, wanted: Any) -> int | None:
    """Which input of a bypassed node stands in for its output `slot`, seen from an input of type `wanted`."""
    kinds = [entry.get("type", "*") for entry in slots(node, "inputs")]
    outputs = slots(node, "outputs")
    given = outputs[slot].get("type", "*") if 0 <= slot < len(outputs) else "*"
    if not kinds:
        return None
    if wanted in ("*", ""):
        return slot if slot < len(kinds) else 0

    def fits(kind: Any) -> bool:
        return _connects(kind, given) and _connects(kind, wanted)

    if slot < len(kinds) and fits(kinds[slot]):
        return slot
    if wanted in kinds:
        return kinds.index(wanted)
    return next((index for index, kind in enumerate(kinds) if fits(kind)), None)


def _connects(left: Any, right: Any) -> bool:
    """The editor's rule for wires: case does not count, "*" meets anything, commas separate alternatives."""
    lefts, rights = ({part.strip().lower() for part in str(kind).split(",")} for kind in (left, right))
    return bool({"*", "", "0"} & (lefts | rights)) or bool(lefts & rights)
