"""A workflow in the editor's form, schema 0.4 or 1.0: nodes, links, and subgraphs opened where they are used."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MAX_NODES = 100_000

# The ids of the two boxes inside a subgraph that stand for its own inputs and outputs.
SUBGRAPH_INPUT, SUBGRAPH_OUTPUT = "-10", "-20"

MUTED, BYPASSED = 2, 4  # a node's `mode`; other values run


@dataclass(frozen=True)
class Link:
    """A wire: from an output slot to an input slot."""

    origin_id: str
    origin_slot: int
    target_id: str
    target_slot: int


@dataclass
class Scope:
    """The workflow itself, or a subgraph at one place where it is used.

    Attributes:
        path: ids of the nodes that open it, outermost first.
        definition: the subgraph's definition, or the workflow.
        host: the node that opens it, which lies in `parent`.
        children: the subgraphs opened in it, by node id.
    """

    path: tuple[str, ...]
    definition: dict[str, Any]
    nodes: dict[str, dict[str, Any]]
    links: dict[Any, Link]
    parent: Scope | None = None
    host: dict[str, Any] = field(default_factory=dict)
    children: dict[str, Scope] = field(default_factory=dict)

    def full_id(self, node_id: str) -> str:
        """The id a node has in API form: `6:2` is node 2 of the subgraph that node 6 opens."""
        return ":".join((*self.path, node_id))

    def link_into(self, node: dict[str, Any], slot: int) -> Link | None:
        inputs = slots(node, "inputs")
        return self.link(inputs[slot].get("link")) if 0 <= slot < len(inputs) else None

    def link(self, link_id: Any) -> Link | None:
        return self.links.get(link_id) if isinstance(link_id, (int, str)) else None

    def link_out(self, slot: int) -> Link | None:
        """The wire into output `slot` of this subgraph."""
        for link in self.links.values():
            if link.target_id == SUBGRAPH_OUTPUT and link.target_slot == slot:
                return link
        return None


def slots(node: dict[str, Any], side: str) -> list[dict[str, Any]]:
    """A node's or definition's `inputs` or `outputs`, whatever else may stand there left out."""
    entries = node.get(side)
    return [entry if isinstance(entry, dict) else {} for entry in entries] if isinstance(entries, list) else []


def is_editor_form(workflow: Any) -> bool:
    return isinstance(workflow, dict) and isinstance(workflow.get("nodes"), list)


def open_graph(workflow: dict[str, Any]) -> Scope:
    """Read a workflow in editor form.

    Raises:
        ValueError: a part is not of the form, or subgraphs contain themselves.
    """
    definitions = _definitions(workflow)
    root = _scope(workflow, (), "the workflow")
    pending = [(root, frozenset[str]())]
    count = len(root.nodes)
    while pending:
        scope, inside = pending.pop()
        for node_id, node in scope.nodes.items():
            kind = node.get("type")
            # What a muted or bypassed subgraph holds takes no part.
            if not isinstance(kind, str) or kind not in definitions or node.get("mode") in (MUTED, BYPASSED):
                continue
            name = f"subgraph '{definitions[kind].get('name', kind)}'"
            if kind in inside:
                raise ValueError(f"Node {scope.full_id(node_id)}: the {name} contains itself. Take it out of itself.")
            child = _scope(definitions[kind], (*scope.path, node_id), name)
            child.parent, child.host = scope, node
            scope.children[node_id] = child
            count += len(child.nodes)
            if count > MAX_NODES:
                raise ValueError(f"The workflow opens into more than {MAX_NODES} nodes. Use fewer nested subgraphs.")
            pending.append((child, inside | {kind}))
    return root


def all_scopes(root: Scope) -> list[Scope]:
    """The scope and all that are opened in it, each before its children."""
    found = [root]
    for scope in found:
        found.extend(scope.children.values())
    return found


def _definitions(workflow: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    pending = [workflow]
    while pending:
        holder = pending.pop().get("definitions")
        subgraphs = holder.get("subgraphs") if isinstance(holder, dict) else None
        for subgraph in subgraphs if isinstance(subgraphs, list) else ():
            if isinstance(subgraph, dict) and isinstance(subgraph.get("id"), str):
                found.setdefault(subgraph["id"], subgraph)
                pending.append(subgraph)
    return found


def _scope(definition: dict[str, Any], path: tuple[str, ...], name: str) -> Scope:
    nodes: dict[str, dict[str, Any]] = {}
    entries = definition.get("nodes")
    for position, node in enumerate(entries if isinstance(entries, list) else ()):
        if not isinstance(node, dict) or not isinstance(node.get("id"), (int, str)):
            raise ValueError(
                f"Entry {position} of the nodes of {name} is no node with an id. Save it anew in the editor."
            )
        if not isinstance(node.get("type"), str):
            raise ValueError(f"Node {node['id']} of {name} names no node class. Save it anew in the editor.")
        if str(node["id"]) in nodes:
            raise ValueError(f"Two nodes of {name} have the id {node['id']}. Save it anew in the editor.")
        nodes[str(node["id"])] = node
    links: dict[Any, Link] = {}
    entries = definition.get("links")
    for position, entry in enumerate(entries if isinstance(entries, list) else ()):
        link_id, link = _link(entry)
        if link is None:
            raise ValueError(f"Entry {position} of the links of {name} is no link. Save it anew in the editor.")
        links[link_id] = link
    return Scope(path, definition, nodes, links)


def _link(entry: Any) -> tuple[Any, Link | None]:
    """Read a link as schema 0.4 saves it (a list) or as schema 1.0 and subgraphs do (an object)."""
    if isinstance(entry, list):
        parts = entry[:5]
    elif isinstance(entry, dict):
        parts = [entry.get(key) for key in ("id", "origin_id", "origin_slot", "target_id", "target_slot")]
    else:
        return None, None
    if len(parts) < 5 or not all(isinstance(part, (int, str)) for part in parts):
        return None, None
    link_id, origin_id, origin_slot, target_id, target_slot = parts
    if not isinstance(origin_slot, int) or not isinstance(target_slot, int):
        return None, None
    return link_id, Link(str(origin_id), origin_slot, str(target_id), target_slot)
