"""Convert a workflow from the editor's form to API form, as the editor does when it queues one.

Source: `app.loadGraphData` and `graphToPrompt` of comfyui-frontend-package 1.58.1. This converter differs where the
editor loses or mixes up values: it also reads values saved by name, finds values of old files that the editor shifts
(its issue 3399), and supports subgraphs that only connect an input to an output. Tokens in file names and `{a|b}` in prompts
are resolved later, when all values are set (`replacements.py`, `prompt_choices.py`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ....uniworld_core.errors import UniWorldError
from .editor_graph import SUBGRAPH_INPUT, GraphScope, all_scopes, is_off, open_graph
from .editor_nodes import GET, REROUTE, SET, EditorNode, EditorNodes, Infos, read_nodes
from .group_nodes import is_group, with_groups_opened
from .primitives import apply_primitives, read_primitives
from .promoted import assign_promoted_values
from .prompt_choices import PromptChoices, is_dynamic
from .replacements import PREFIX_INPUT, SAVE_CLASSES, NamedNode, Replacements, named_nodes, replace_tokens

# Properties that identify the pack of a node, in the forms that the editor accepts.
_PACK_FORMS = {
    "cnr_id": re.compile(r"[\w.-]+"),
    "aux_id": re.compile(r"[\w.-]+/[\w.-]+"),
    "ver": re.compile(r"unknown|v?\d+\.\d+\.\d+[\w.+-]*|v?[0-9a-f]{4,40}", re.IGNORECASE),
}


@dataclass(frozen=True)
class OutputSlot:
    """The output that a wire comes from, by the node's id in API form."""

    node_id: str
    slot: int


@dataclass(frozen=True)
class PromotedValue:
    """The value that a subgraph's node stores for an input without a wire."""

    value: object


@dataclass(frozen=True)
class PlacedNode:
    """A node at one place where its graph is used; a subgraph may be used several times."""

    scope: GraphScope
    node: EditorNode

    @property
    def full_id(self) -> str:
        return self.scope.full_id(self.node.id)


@dataclass
class OpenedWorkflow:
    """A workflow in editor form with all its nodes read.

    Attributes:
        nodes: the nodes of every graph, by the graph's `id()`.
    """

    root: GraphScope
    scopes: list[GraphScope]
    nodes: dict[int, EditorNodes]

    def of(self, scope: GraphScope) -> EditorNodes:
        return self.nodes[id(scope.graph)]

    def place(self, scope: GraphScope, node_id: str) -> PlacedNode | None:
        node = self.of(scope).by_id.get(node_id)
        return None if node is None else PlacedNode(scope, node)


def convert(
    workflow: dict[str, object],
    infos: Infos,
    replacements: Replacements | None = None,
    choices: PromptChoices | None = None,
) -> dict[str, object]:
    """Return the API form of a workflow in editor form.

    Nodes of unknown classes are kept with their links, so that `validate_prompt` can report them.

    Args:
        workflow: the content of the file; it is not changed.
        infos: returns the object_info of a node class.
        replacements: filled with the values of tokens in file names; the names themselves are not changed.
        choices: filled with the places of prompts with choices; the prompts themselves are not changed.

    Raises:
        UniWorldError: the workflow is not in the editor's form, or the saved values of a node match no known layout.
    """
    opened = _open(workflow, infos)
    root = opened.of(opened.root)
    found = list(named_nodes(root))
    named = [entry for _, entry in found]
    now = datetime.now()
    graphs = [root, *(nodes for nodes in opened.nodes.values() if nodes is not root)]
    scopes = {id(opened.of(scope)): scope for scope in reversed(opened.scopes)}  # the first scope of each graph
    for nodes in graphs:
        read_primitives(nodes, scopes[id(nodes)].full_id)
    for nodes in graphs:
        apply_primitives(nodes, lambda text: replace_tokens(text, named, now))
    prompt: dict[str, Any] = {}
    prefixes: set[str] = set()
    for scope in opened.scopes:
        for node in opened.of(scope).by_id.values():
            if not is_off(node.saved) and not node.virtual and node.inner is None:
                entry, own = _api_node(opened, PlacedNode(scope, node))
                prompt[scope.full_id(node.id)] = entry
                if own & {PREFIX_INPUT} and node.type in SAVE_CLASSES:
                    prefixes.add(scope.full_id(node.id))
                if choices is not None:
                    dynamic = (name for name in own if _is_dynamic(node, name))
                    choices.places.update((scope.full_id(node.id), name) for name in dynamic)
    for entry in prompt.values():
        # As in the editor, a link from a node that does not run leaves its input empty.
        entry["inputs"] = {
            name: value for name, value in entry["inputs"].items() if not isinstance(value, list) or value[0] in prompt
        }
    if replacements is not None:
        _fill_replacements(replacements, opened, found, prefixes)
    return prompt


def _is_dynamic(node: EditorNode, name: str) -> bool:
    widget = node.widgets.widgets[name]
    return is_dynamic(widget.kind, widget.options)


def _open(workflow: dict[str, object], infos: Infos) -> OpenedWorkflow:
    root = open_graph(with_groups_opened(workflow, infos), lambda name: infos(name) is not None)
    scopes = all_scopes(root)
    nodes: dict[int, EditorNodes] = {}
    # Innermost graphs first, because the node of a subgraph shows widgets of the nodes inside.
    for scope in sorted(scopes, key=lambda one: -len(one.path)):
        if id(scope.graph) not in nodes:
            nodes[id(scope.graph)] = _read(scope, infos, nodes)
    return OpenedWorkflow(root, scopes, nodes)


def _read(scope: GraphScope, infos: Infos, nodes: dict[int, EditorNodes]) -> EditorNodes:
    for node_id, node in scope.graph.nodes.items():
        if not is_off(node) and is_group(node):
            reason = "is in a subgraph" if scope.path else "has no definition in the workflow"
            raise UniWorldError(
                f"Node {scope.full_id(node_id)} is a group node ('{node['type']}') of an old editor, and {reason}. Save the "
                "workflow again in an editor that can open the node."
            )
    opened = {child.graph.definition["id"]: nodes[id(child.graph)] for child in scope.children.values()}
    found = read_nodes(scope.graph, infos, scope.full_id, opened.get)
    assign_promoted_values(found, scope.full_id)
    return found


def _fill_replacements(
    replacements: Replacements,
    opened: OpenedWorkflow,
    found: list[tuple[EditorNode, NamedNode]],
    prefixes: set[str],
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


def _api_node(opened: OpenedWorkflow, place: PlacedNode) -> tuple[dict[str, object], set[str]]:
    """Return a node in API form, and the names of the inputs that have the values of its own widgets."""
    node = place.node
    values = node.widgets.values
    inputs = {name: _wrap(values[name], widget.kind) for name, widget in node.widgets.widgets.items() if widget.sent}
    own = set(inputs)
    for slot, entry in enumerate(node.inputs):
        source = source_of(opened, place, slot)
        if source is None:
            continue
        own.discard(entry.name)
        inputs[entry.name] = _wrap(source.value) if isinstance(source, PromotedValue) else [source.node_id, source.slot]
    meta = {"title": node.title}
    for key, form in _PACK_FORMS.items():
        value = node.properties.get(key)
        if isinstance(value, str) and form.fullmatch(value):
            meta[key] = value.removeprefix("v") if key == "ver" else value
    return {"inputs": inputs, "class_type": node.type, "_meta": meta}, own


def _wrap(value: object, kind: str = "") -> object:
    """Mark a list as a value, so that it is not mistaken for a link."""
    if kind == "CURVE" and value is not None:
        return {"__type__": "CURVE", "__value__": value}
    return {"__value__": value} if isinstance(value, list) else value


def source_of(opened: OpenedWorkflow, place: PlacedNode, slot: int) -> OutputSlot | PromotedValue | None:
    """Return the actual source of an input, following reroutes, bypassed nodes, Set/Get nodes and subgraphs.

    Raises:
        UniWorldError: the wires form a loop of such nodes.
    """
    here: PlacedNode | None = place
    wanted: object = None
    visited: set[tuple[tuple[str, ...], str, int]] = set()
    while here is not None:
        key = (here.scope.path, here.node.id, slot)
        if key in visited:
            raise UniWorldError(f"Node {here.full_id}: the wires into it form a loop. Remove one.")
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
                return PromotedValue(outer.value) if outer.promoted is not None else None
            continue
        origin = _descend(opened, opened.place(here.scope, entry.link.origin_id), entry.link.origin_slot)
        if origin is None:
            return None
        here, slot, through = origin
        wanted = entry.type if wanted is None else wanted
        if through:
            # The subgraph connects its own input straight to its output.
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
            here, slot = _set_node(opened, here), 0
        elif node.virtual:
            return None
        else:
            return OutputSlot(here.full_id, slot)
    return None


def _outside(opened: OpenedWorkflow, scope: GraphScope) -> PlacedNode | None:
    """Return the node that opens this subgraph."""
    return None if scope.parent is None else opened.place(scope.parent, scope.path[-1])


def _descend(opened: OpenedWorkflow, place: PlacedNode | None, slot: int) -> tuple[PlacedNode, int, bool] | None:
    """Follow an output of a subgraph's node to the node and output inside; None if nothing is wired to it.

    The third value is True if the subgraph connects one of its inputs straight to the output; the slot is that input's.
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


def _set_node(opened: OpenedWorkflow, place: PlacedNode) -> PlacedNode | None:
    """Return the SetNode with the name of a GetNode: from its own graph, an enclosing graph, or any other graph."""
    name = _variable(place.node)
    enclosing = []
    scope: GraphScope | None = place.scope
    while scope is not None:
        enclosing.append(scope)
        scope = scope.parent
    for candidate in [*enclosing, *opened.scopes] if name else ():
        for node in opened.of(candidate).by_id.values():
            if node.virtual and node.type == SET and not node.muted and node.inputs and _variable(node) == name:
                return PlacedNode(candidate, node)
    return None


def _variable(node: EditorNode) -> str:
    saved = node.saved.get("widgets_values")
    return saved[0] if isinstance(saved, list) and saved and isinstance(saved[0], str) else ""


def _bypass_slot(node: EditorNode, slot: int, wanted: object) -> int | None:
    """Return the input of a bypassed node that replaces its output `slot` for an input of type `wanted`."""
    kinds = [entry.type for entry in node.inputs]
    output = node.outputs[slot] if 0 <= slot < len(node.outputs) else "*"
    if not kinds:
        return None
    if wanted in ("*", ""):
        return slot if slot < len(kinds) else 0

    def fits(kind: object) -> bool:
        return _types_connect(kind, output) and _types_connect(kind, wanted)

    if slot < len(kinds) and fits(kinds[slot]):
        return slot
    if wanted in kinds:
        return kinds.index(wanted)
    return next((index for index, kind in enumerate(kinds) if fits(kind)), None)


def _types_connect(left: object, right: object) -> bool:
    """Apply the editor's rule for wires: case is ignored, "*" matches any type, commas separate alternatives."""
    lefts, rights = (set(str(kind).lower().split(",")) for kind in (left, right))
    return bool({"*", "", "0"} & (lefts | rights)) or bool(lefts & rights)
