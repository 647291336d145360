"""A workflow in the editor's form, schema 0.4 or 1.0: its graphs, links, and instances of subgraphs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ....uniworld_core.errors import UniWorldError
from .editor_ids import with_unique_ids

MAX_NODES = 100_000

# Ids of the two boxes inside a subgraph that represent its own inputs and outputs.
SUBGRAPH_INPUT, SUBGRAPH_OUTPUT = "-10", "-20"

# The editor numbers links; other programs may use strings.
LinkId = int | str

MUTED, BYPASSED = 2, 4  # a node's `mode`; other values run

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


@dataclass
class Link:
    """A wire from an output slot to an input slot."""

    id: LinkId
    origin_id: str
    origin_slot: int
    target_id: str
    target_slot: int


@dataclass
class Graph:
    """The nodes and links of the workflow or of a subgraph's definition, as saved.

    Attributes:
        name: what error messages call it.
        links: by id, at most one per input.
        aliases: for links that were dropped as duplicates, the id of the link into the same input.
    """

    definition: dict[str, object]
    name: str
    nodes: dict[str, dict[str, Any]]
    links: dict[LinkId, Link]
    aliases: dict[LinkId, LinkId] = field(default_factory=dict)

    def link(self, link_id: object) -> Link | None:
        seen: set[LinkId] = set()
        while isinstance(link_id, (int, str)) and link_id not in seen:
            if link_id in self.links:
                return self.links[link_id]
            seen.add(link_id)
            link_id = self.aliases.get(link_id)
        return None

    @cached_property
    def links_into(self) -> dict[str, list[Link]]:
        """The wires into the inputs of each node, by node id."""
        found: dict[str, list[Link]] = {}
        for link in self.links.values():
            found.setdefault(link.target_id, []).append(link)
        return found

    @cached_property
    def links_out(self) -> dict[int, Link]:
        """The wires into the outputs of this subgraph, by output slot."""
        return {link.target_slot: link for link in self.links.values() if link.target_id == SUBGRAPH_OUTPUT}


@dataclass
class GraphScope:
    """An instance of a graph.

    Attributes:
        path: ids of the nodes that open it, outermost first.
        parent: the scope of the node that opens it, whose id is last in the path.
        children: the subgraphs opened in it, by node id.
    """

    path: tuple[str, ...]
    graph: Graph
    parent: GraphScope | None = None
    children: dict[str, GraphScope] = field(default_factory=dict)

    def full_id(self, node_id: str) -> str:
        """Return the id of a node in API form: `6:2` is node 2 of the subgraph that node 6 opens."""
        return ":".join((*self.path, node_id))


def slots(node: dict[str, object], side: str) -> list[dict[str, object]]:
    """Return the `inputs` or `outputs` of a node or definition, with entries of any other form replaced by `{}`."""
    entries = node.get(side)
    return [entry if isinstance(entry, dict) else {} for entry in entries] if isinstance(entries, list) else []


def is_editor_form(workflow: object) -> bool:
    return isinstance(workflow, dict) and isinstance(workflow.get("nodes"), list)


def is_off(node: dict[str, object]) -> bool:
    return node.get("mode") in (MUTED, BYPASSED)


def open_graph(workflow: dict[str, object], is_class: Callable[[str], bool] = lambda _: False) -> GraphScope:
    """Read a workflow in editor form.

    Args:
        is_class: whether a node class with this name exists, to distinguish a missing subgraph from a node class.

    Raises:
        UniWorldError: a part is malformed, a subgraph has no definition, or a subgraph contains itself.
    """
    workflow, definitions = with_unique_ids(workflow, subgraph_definitions(workflow))
    graphs: dict[str, Graph] = {}
    root = GraphScope((), read_graph(workflow, "the workflow"))
    pending = [(root, frozenset[str]())]
    count = len(root.graph.nodes)
    while pending:
        scope, inside = pending.pop()
        for node_id, node in scope.graph.nodes.items():
            kind = node["type"]
            # Nodes in a muted or bypassed subgraph do not run. If it is inside another subgraph, however, the editor
            # still runs them, and only drops or bypasses the wires that leave it.
            if is_off(node) and scope is root:
                continue
            if kind not in definitions:
                if _UUID.fullmatch(kind) and not is_class(kind):
                    raise UniWorldError(_no_definition(scope, node_id, node))
                continue
            name = f"subgraph '{definitions[kind].get('name', kind)}'"
            if kind in inside:
                raise UniWorldError(
                    f"Node {scope.full_id(node_id)}: the {name} contains itself. Remove it from itself."
                )
            if kind not in graphs:
                graphs[kind] = read_graph(definitions[kind], name)
            child = GraphScope((*scope.path, node_id), graphs[kind], scope)
            scope.children[node_id] = child
            count += len(child.graph.nodes)
            if count > MAX_NODES:
                raise UniWorldError(f"The workflow expands to more than {MAX_NODES} nodes. Use fewer nested subgraphs.")
            pending.append((child, inside | {kind}))
    return root


def _no_definition(scope: GraphScope, node_id: str, node: dict[str, object]) -> str:
    title = f" '{node['title']}'" if isinstance(node.get("title"), str) and node["title"] else ""
    return (
        f"Node {scope.full_id(node_id)}{title} is a subgraph, but the workflow does not contain its definition "
        f"({node['type']}). Save the workflow again in an editor that can open the subgraph."
    )


def all_scopes(root: GraphScope) -> list[GraphScope]:
    """Return a scope and all scopes inside it, each before its children."""
    found = [root]
    for scope in found:
        found.extend(scope.children.values())
    return found


def subgraph_definitions(workflow: dict[str, Any]) -> dict[str, dict[str, object]]:
    """Return the subgraphs by id, each before those nested in its definition."""
    found: dict[str, dict[str, object]] = {}
    pending = [workflow]
    while pending:
        graph = pending.pop()
        if graph is not workflow and isinstance(graph.get("id"), str):
            found.setdefault(graph["id"], graph)
        holder = graph.get("definitions")
        subgraphs = holder.get("subgraphs") if isinstance(holder, dict) else None
        if isinstance(subgraphs, list):
            pending += [subgraph for subgraph in reversed(subgraphs) if isinstance(subgraph, dict)]
    return found


def read_graph(definition: dict[str, object], name: str) -> Graph:
    """Read the nodes and links of the workflow or of a subgraph.

    Args:
        name: what error messages call it.

    Raises:
        UniWorldError: a node or a link is malformed.
    """
    nodes: dict[str, dict[str, object]] = {}
    entries = definition.get("nodes")
    again = "Save the workflow again in the editor."
    for position, node in enumerate(entries if isinstance(entries, list) else ()):
        if not isinstance(node, dict) or not isinstance(node.get("id"), (int, str)):
            raise UniWorldError(f"Entry {position} of the nodes of {name} is not a node with an id. {again}")
        if not isinstance(node.get("type"), str):
            raise UniWorldError(f"Node {node['id']} of {name} has no node class. {again}")
        if str(node["id"]) in nodes:
            raise UniWorldError(f"Two nodes of {name} have the id {node['id']}. {again}")
        nodes[str(node["id"])] = node
    entries = definition.get("links")
    links = []
    for position, entry in enumerate(entries if isinstance(entries, list) else ()):
        link = _link(entry)
        if link is None:
            raise UniWorldError(f"Entry {position} of the links of {name} is not a link. {again}")
        links.append(link)
    return Graph(definition, name, nodes, *_one_per_input(links, set(_named_links(nodes))))


def _named_links(nodes: dict[str, dict[str, object]]) -> Iterator[LinkId]:
    for node in nodes.values():
        links = (entry.get("link") for entry in slots(node, "inputs"))
        yield from (link for link in links if isinstance(link, (int, str)))


def _one_per_input(links: list[Link], named: set[LinkId]) -> tuple[dict[LinkId, Link], dict[LinkId, LinkId]]:
    """Return one link per input, as the editor chooses it: the first one, or the one that the input refers to."""
    kept: dict[tuple[str, int], Link] = {}
    aliases: dict[LinkId, LinkId] = {}
    for link in links:
        place = (link.target_id, link.target_slot)
        first = kept.setdefault(place, link)
        if first is link:
            continue
        same = (first.origin_id, first.origin_slot) == (link.origin_id, link.origin_slot)
        winner, loser = (link, first) if not same and link.id in named and first.id not in named else (first, link)
        kept[place] = winner
        if winner.id != loser.id:
            aliases[loser.id] = winner.id
    by_id: dict[LinkId, Link] = {}
    for link in kept.values():
        by_id.setdefault(link.id, link)
    return by_id, aliases


def _link(entry: object) -> Link | None:
    """Read a link: a list in schema 0.4, an object in schema 1.0 and in subgraphs. None if it is malformed."""
    if isinstance(entry, list):
        parts = entry[:5]
    elif isinstance(entry, dict):
        parts = [entry.get(key) for key in ("id", "origin_id", "origin_slot", "target_id", "target_slot")]
    else:
        return None
    if len(parts) < 5 or not all(isinstance(part, (int, str)) for part in parts):
        return None
    link_id, origin_id, origin_slot, target_id, target_slot = parts
    if not isinstance(origin_slot, int) or not isinstance(target_slot, int):
        return None
    return Link(link_id, str(origin_id), origin_slot, str(target_id), target_slot)
