"""Turns a workflow from the editor's form into API form, as the editor does when it queues one.

The rules are those of comfyui-frontend-package 1.58.1: what `app.loadGraphData` and `graphToPrompt` make of a file.
Ours differs where the editor would lose or mix up values: it also reads values saved by name, finds the values of old
files that the editor shifts (its issue 3399), and passes a subgraph through that only passes on. Left out are group
nodes of old editors, which are refused by name. Tokens in file names and the `{a|b}` of prompts are resolved when all
values are set (`replacements.py`, `prompt_choices.py`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ....uniworld_core.errors import UniWorldError
from .editor_graph import SUBGRAPH_INPUT, GraphScope, all_scopes, is_off, open_graph
from .editor_nodes import GET, REROUTE, SET, EditorNode, EditorNodes, Infos, read_nodes
from .primitives import apply_primitives, read_primitives
from .promoted import fill_in
from .prompt_choices import PromptChoices, is_dynamic
from .replacements import PREFIX_INPUT, SAVE_CLASSES, Named, Replacements, all_named, replaced

# What the editor says of a node's pack, in the forms that it accepts.
_PACK_FORMS = {
    "cnr_id": re.compile(r"[\w.-]+"),
    "aux_id": re.compile(r"[\w.-]+/[\w.-]+"),
    "ver": re.compile(r"unknown|v?\d+\.\d+\.\d+[\w.+-]*|v?[0-9a-f]{4,40}", re.IGNORECASE),
}


@dataclass(frozen=True)
class OutputSlot:
    """The output of a node, by its id in API form, that a wire comes from."""

    node_id: str
    slot: int


@dataclass(frozen=True)
class Value:
    """The value that a subgraph's node keeps for an input without a wire."""

    value: object


@dataclass(frozen=True)
class Place:
    """A node where it is used."""

    scope: GraphScope
    node: EditorNode

    @property
    def full_id(self) -> str:
        return self.scope.full_id(self.node.id)


@dataclass
class Opened:
    """A workflow in editor form with all its nodes laid out.

    Attributes:
        nodes: of every graph, by its identity.
    """

    root: GraphScope
    scopes: list[GraphScope]
    nodes: dict[int, EditorNodes]

    def of(self, scope: GraphScope) -> EditorNodes:
        return self.nodes[id(scope.graph)]

    def place(self, scope: GraphScope, node_id: str) -> Place | None:
        node = self.of(scope).by_id.get(node_id)
        return None if node is None else Place(scope, node)


def convert(
    workflow: dict[str, object],
    infos: Infos,
    replacements: Replacements | None = None,
    choices: PromptChoices | None = None,
) -> dict[str, object]:
    """The API form of a workflow in editor form.

    Nodes of unknown classes are kept with their links, for `validate_prompt` to name them.

    Args:
        replacements: takes what tokens in file names stand for, which are left as they are.
        choices: takes the places of prompts with choices, which are left as they are.

    Raises:
        UniWorldError: the workflow is not of the editor's form, or the saved values of a node fit it in no known way.
    """
    opened = _open(workflow, infos)
    root = opened.of(opened.root)
    found = list(all_named(root))
    named = [entry for _, entry in found]
    now = datetime.now()
    graphs = [root, *(nodes for nodes in opened.nodes.values() if nodes is not root)]
    scopes = {id(opened.of(scope)): scope for scope in reversed(opened.scopes)}  # the first place of each
    for nodes in graphs:
        read_primitives(nodes, scopes[id(nodes)].full_id)
    for nodes in graphs:
        apply_primitives(nodes, lambda text: replaced(text, named, now))
    prompt: dict[str, Any] = {}
    prefixes: set[str] = set()
    for scope in opened.scopes:
        for node in opened.of(scope).by_id.values():
            if not is_off(node.saved) and not node.virtual and node.inner is None:
                entry, own = _api_node(opened, Place(scope, node))
                prompt[scope.full_id(node.id)] = entry
                if own & {PREFIX_INPUT} and node.type in SAVE_CLASSES:
                    prefixes.add(scope.full_id(node.id))
                if choices is not None:
                    dynamic = (name for name in own if _is_dynamic(node, name))
                    choices.places.update((scope.full_id(node.id), name) for name in dynamic)
    for entry in prompt.values():
        # A link from a node that does not run leaves its input without anything, as in the editor.
        entry["inputs"] = {
            name: value for name, value in entry["inputs"].items() if not isinstance(value, list) or value[0] in prompt
        }
    if replacements is not None:
        _keep(replacements, opened, found, prefixes)
    return prompt


def _is_dynamic(node: EditorNode, name: str) -> bool:
    widget = node.widgets.widgets[name]
    return is_dynamic(widget.kind, widget.options)


def _open(workflow: dict[str, object], infos: Infos) -> Opened:
    root = open_graph(workflow, lambda name: infos(name) is not None)
    scopes = all_scopes(root)
    nodes: dict[int, EditorNodes] = {}
    # The innermost first, as a subgraph's node shows the widgets inside.
    for scope in sorted(scopes, key=lambda one: -len(one.path)):
        if id(scope.graph) not in nodes:
            nodes[id(scope.graph)] = _read(scope, infos, nodes)
    return Opened(root, scopes, nodes)


def _read(scope: GraphScope, infos: Infos, nodes: dict[int, EditorNodes]) -> EditorNodes:
    for node_id, node in scope.graph.nodes.items():
        if not is_off(node) and node["type"].startswith(("workflow>", "workflow/")):
            raise UniWorldError(
                f"Node {scope.full_id(node_id)} is a group node ('{node['type']}') of an old editor. Open the workflow "
                "in a newer editor, turn it into a subgraph, and save it."
            )
    opened = {child.graph.definition["id"]: nodes[id(child.graph)] for child in scope.children.values()}
    found = read_nodes(scope.graph, infos, scope.full_id, opened.get)
    fill_in(found, scope.full_id)
    return found


def _keep(
    replacements: Replacements, opened: Opened, found: list[tuple[EditorNode, Named]], prefixes: set[str]
) -> None:
    by_node = {id(node): entry for node, entry in found}
    replacements.nodes = [entry for _, entry in found]
    replacements.prefixes = prefixes
    replacements.by_id = {
        scope.full_id(node.id): by_node[id(node)]
        for scope in opened.scopes
        for node in opened.of(scope).by_id.values()
        if id(node) in by_node
    }


def _api_node(opened: Opened, place: Place) -> tuple[dict[str, object], set[str]]:
    """A node in API form, and the names of the inputs that have the values of its own widgets."""
    node = place.node
    values = node.widgets.values
    inputs = {name: _wrap(values[name], widget.kind) for name, widget in node.widgets.widgets.items() if widget.sent}
    own = set(inputs)
    for slot, entry in enumerate(node.inputs):
        source = source_of(opened, place, slot)
        if source is None:
            continue
        own.discard(entry.name)
        inputs[entry.name] = _wrap(source.value) if isinstance(source, Value) else [source.node_id, source.slot]
    meta = {"title": node.title}
    for key, form in _PACK_FORMS.items():
        value = node.properties.get(key)
        if isinstance(value, str) and form.fullmatch(value):
            meta[key] = value.removeprefix("v") if key == "ver" else value
    return {"inputs": inputs, "class_type": node.type, "_meta": meta}, own


def _wrap(value: object, kind: str = "") -> object:
    if kind == "CURVE" and value is not None:
        return {"__type__": "CURVE", "__value__": value}
    return {"__value__": value} if isinstance(value, list) else value


def source_of(opened: Opened, place: Place, slot: int) -> OutputSlot | Value | None:
    """What really feeds an input: through reroutes and bypassed nodes, and in and out of subgraphs.

    Raises:
        UniWorldError: the wires run in a circle of nodes that do nothing.
    """
    here: Place | None = place
    wanted: object = None
    visited: set[tuple[tuple[str, ...], str, int]] = set()
    while here is not None:
        key = (here.scope.path, here.node.id, slot)
        if key in visited:
            raise UniWorldError(f"Node {here.full_id}: the wires into it run in a circle. Cut one.")
        visited.add(key)
        entry = here.node.inputs[slot]
        if entry.link is None:
            return None
        if entry.link.origin_id == SUBGRAPH_INPUT:
            here, slot, wanted = _outside(opened, here.scope), entry.link.origin_slot, None
            if here is None or not 0 <= slot < len(here.node.inputs):
                return None
            outer = here.node.inputs[slot]
            if outer.link is None:
                return Value(outer.value) if outer.promoted is not None else None
            continue
        origin = _descend(opened, opened.place(here.scope, entry.link.origin_id), entry.link.origin_slot)
        if origin is None:
            return None
        here, slot, through = origin
        wanted = entry.type if wanted is None else wanted
        if through:
            # A subgraph that passes its own input on.
            continue
        node = here.node
        if node.muted:
            return None
        if node.bypassed:
            passed = _bypass_slot(node, slot, wanted)
            if passed is None:
                return None
            slot, wanted = passed, None
        elif node.virtual and node.type in (REROUTE, SET) and node.inputs:
            slot = 0
        elif node.virtual and node.type == GET:
            here, slot = _setter(opened, here), 0
        elif node.virtual:
            return None
        else:
            return OutputSlot(here.full_id, slot)
    return None


def _outside(opened: Opened, scope: GraphScope) -> Place | None:
    """The node that opens this subgraph, in its own graph."""
    return None if scope.parent is None else opened.place(scope.parent, scope.path[-1])


def _descend(opened: Opened, place: Place | None, slot: int) -> tuple[Place, int, bool] | None:
    """The node and output inside, where a node is an opened subgraph; None if nothing is wired to it there.

    The third value is true if the slot is an input of a subgraph's node that is connected straight to its output.
    """
    while place is not None and place.node.id in place.scope.children and not is_off(place.node.saved):
        inner = place.scope.children[place.node.id]
        link = inner.graph.links_out.get(slot)
        if link is None:
            return None
        if link.origin_id == SUBGRAPH_INPUT:
            return (place, link.origin_slot, True) if 0 <= link.origin_slot < len(place.node.inputs) else None
        place, slot = opened.place(inner, link.origin_id), link.origin_slot
    return None if place is None else (place, slot, False)


def _setter(opened: Opened, place: Place) -> Place | None:
    """The SetNode of the name that a GetNode asks for: in its own graph, else in those around it, else anywhere."""
    name = _variable(place.node)
    around = []
    scope: GraphScope | None = place.scope
    while scope is not None:
        around.append(scope)
        scope = scope.parent
    for one in [*around, *opened.scopes] if name else ():
        for node in opened.of(one).by_id.values():
            if node.virtual and node.type == SET and not node.muted and node.inputs and _variable(node) == name:
                return Place(one, node)
    return None


def _variable(node: EditorNode) -> str:
    saved = node.saved.get("widgets_values")
    return saved[0] if isinstance(saved, list) and saved and isinstance(saved[0], str) else ""


def _bypass_slot(node: EditorNode, slot: int, wanted: object) -> int | None:
    """Which input of a bypassed node stands in for its output `slot`, seen from an input of type `wanted`."""
    kinds = [entry.type for entry in node.inputs]
    given = node.outputs[slot] if 0 <= slot < len(node.outputs) else "*"
    if not kinds:
        return None
    if wanted in ("*", ""):
        return slot if slot < len(kinds) else 0

    def fits(kind: object) -> bool:
        return _connects(kind, given) and _connects(kind, wanted)

    if slot < len(kinds) and fits(kinds[slot]):
        return slot
    if wanted in kinds:
        return kinds.index(wanted)
    return next((index for index, kind in enumerate(kinds) if fits(kind)), None)


def _connects(left: object, right: object) -> bool:
    """The editor's rule for wires: case does not count, "*" meets anything, commas separate alternatives."""
    lefts, rights = (set(str(kind).lower().split(",")) for kind in (left, right))
    return bool({"*", "", "0"} & (lefts | rights)) or bool(lefts & rights)
