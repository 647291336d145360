"""Open the group nodes of old editors as the editor does: each becomes a subgraph of its own.

Source: `GroupNodeHandler.convertToNodes` of comfyui-frontend-package 1.58.1, which numbers the nodes inside first. This
differs where the editor loses something: a muted or bypassed group node stays so, and wires into former widgets are kept.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ....uniworld_core.errors import UniWorldError
from ..problems import node_label
from ..registry.widgets import input_specs
from .editor_graph import SUBGRAPH_INPUT, SUBGRAPH_OUTPUT, Graph, is_off, read_graph, slots, subgraph_definitions
from .editor_ids import with_unique_ids
from .editor_nodes import PRIMITIVE, VIRTUAL, EditorInput, EditorNode, Infos, read_nodes
from .group_classes import PREFIXES, GroupClass, read_group
from .saved_values import read_values


def is_group(node: object) -> bool:
    kind = node.get("type") if isinstance(node, dict) else None
    return isinstance(kind, str) and kind.startswith(PREFIXES)


def with_groups_opened(workflow: dict[str, Any], infos: Infos) -> dict[str, Any]:
    """Return the workflow with a subgraph in place of each group node; the same object if there is none.

    Group nodes without a definition stay, and so do those in subgraphs, where editors never had any.

    Raises:
        UniWorldError: a definition is malformed, or the saved values of a group node match no known layout.
    """
    extra = workflow.get("extra")
    definitions = extra.get("groupNodes") if isinstance(extra, dict) else None
    if not isinstance(definitions, dict) or not any(map(is_group, workflow["nodes"])):
        return workflow
    # The editor makes ids unique before it opens groups.
    workflow, subgraphs = with_unique_ids(workflow, subgraph_definitions(workflow))
    alone = [{key: part for key, part in one.items() if key != "definitions"} for one in subgraphs.values()]
    workflow = {**workflow, "definitions": {"subgraphs": alone}}
    graph = read_graph(workflow, "the workflow")
    names = {
        kind: kind[len(PREFIXES[0]) :] for kind in (node["type"] for node in graph.nodes.values() if is_group(node))
    }
    classes = {kind: read_group(name, definitions[name], infos) for kind, name in names.items() if name in definitions}
    placed = {node_id: node for node_id, node in graph.nodes.items() if node["type"] in classes}
    only = Graph(graph.definition, graph.name, placed, graph.links, graph.aliases)
    try:
        groups = read_nodes(only, lambda kind: classes[kind].info, str, lambda _: None).by_id
    except UniWorldError as error:
        unknown = sorted({one["type"] for kind in classes.values() for one in kind.nodes if _is_unknown(one, infos)})
        if not unknown:
            raise
        raise UniWorldError(
            f"{error}\nThe group nodes contain the unknown classes {', '.join(map(repr, unknown))}, whose values cannot be "
            "counted. Load their packs with --pack."
        ) from error
    opened = []
    last = _last_id(workflow)
    for group in groups.values():
        opened.append(_Opened(group, classes[group.type], last))
        last = opened[-1].id
    return _with(workflow, opened, infos, last)


def _is_unknown(node: dict[str, Any], infos: Infos) -> bool:
    return node["type"] not in VIRTUAL and infos(node["type"]) is None


def _last_id(workflow: dict[str, Any]) -> int:
    """Return the highest id of a node in the workflow and its subgraphs, or that the editor has assigned."""
    last = [workflow.get("last_node_id")]
    for graph in (workflow, *workflow["definitions"]["subgraphs"]):
        state = graph.get("state")
        last.append(state.get("lastNodeId") if isinstance(state, dict) else None)
        ids = (str(node.get("id")) for node in slots(graph, "nodes"))
        last += [int(node_id) for node_id in ids if node_id.isdecimal() and len(node_id) < 16]
    return max([0, *(value for value in last if isinstance(value, int))])


@dataclass
class _Opened:
    """A group node that becomes a subgraph.

    Attributes:
        before: the highest id so far. The nodes inside get the next ones, and the subgraph's node the one after them.
    """

    node: EditorNode
    kind: GroupClass
    before: int

    def __post_init__(self) -> None:
        self.type = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{self.node.id} {self.before}"))
        # A widget is an input of the subgraph only if something is wired to it.
        # A saved input that the group does not have leads nowhere, and is dropped as in the editor.
        known = [entry for entry in self.node.inputs if entry.name in self.kind.inputs]
        self.inputs = [entry for entry in known if entry.widget is None or entry.link is not None]
        self.outputs = [{"name": f"output_{slot}", "type": kind} for slot, kind in enumerate(self.node.outputs)]

    @property
    def id(self) -> int:
        return self.before + len(self.kind.nodes) + 1

    def inner_id(self, index: int) -> int:
        return self.before + index + 1

    def host(self) -> dict[str, object]:
        """Return the node that opens the subgraph."""
        links = [entry.link.id if entry.link is not None else None for entry in self.inputs]
        inputs = [
            {"name": one.name, "type": one.type, "link": link} for one, link in zip(self.inputs, links, strict=True)
        ]
        kept: dict[str, object] = {key: self.node.saved[key] for key in ("mode", "title") if key in self.node.saved}
        return {"id": self.id, "type": self.type, "inputs": inputs, "outputs": self.outputs, **kept}

    def definition(self, infos: Infos) -> dict[str, object]:
        """Return the definition of the subgraph."""
        nodes = [self._inner(index, infos) for index in range(len(self.kind.nodes))]
        links: list[dict[str, object]] = []
        for origin, output, target, slot in self.kind.links:
            if slot < len(nodes[target]["inputs"]):
                nodes[target]["inputs"][slot]["link"] = len(links) + 1
            links.append(_link(len(links) + 1, self.inner_id(origin), output, self.inner_id(target), slot))
        for number, entry in enumerate(self.inputs):
            index, name = self.kind.inputs[entry.name]
            slot = _slot_of(nodes[index], name, entry)
            nodes[index]["inputs"][slot]["link"] = len(links) + 1
            links.append(_link(len(links) + 1, int(SUBGRAPH_INPUT), number, self.inner_id(index), slot))
        for number, (index, output) in enumerate(self.kind.outputs):
            links.append(_link(len(links) + 1, self.inner_id(index), output, int(SUBGRAPH_OUTPUT), number))
        inputs = [{"name": str(number), "type": one.type} for number, one in enumerate(self.inputs)]
        name = self.node.type[len(PREFIXES[0]) :]
        return {
            "id": self.type,
            "name": name,
            "nodes": nodes,
            "links": links,
            "inputs": inputs,
            "outputs": self.outputs,
        }

    def _inner(self, index: int, infos: Infos) -> dict[str, Any]:
        """Return a node inside, with the values of the group node."""
        saved = self.kind.nodes[index]
        node = {
            **saved,
            "id": self.inner_id(index),
            "inputs": [{**one, "link": None} for one in slots(saved, "inputs")],
        }
        values = {
            name: self.node.widgets.values[shown]
            for shown, (place, name) in self.kind.inputs.items()
            if place == index and shown in self.node.widgets.values
        }
        if not values:
            return node
        if node["type"] == PRIMITIVE:
            others = saved.get("widgets_values")
            return {**node, "widgets_values": [values["value"], *(others[1:] if isinstance(others, list) else ())]}
        info = infos(node["type"])
        if info is None:
            return node
        try:
            own = read_values(input_specs(info), saved.get("widgets_values"), saved.get("widgets_values_named")).values
        except UniWorldError as error:
            label = node_label(f"{self.id}:{node['id']}", node["type"])
            raise UniWorldError(f"{label}, of the group node {self.node.id}: {error}") from error
        return {**node, "widgets_values": {**own, **values}}


def _slot_of(node: dict[str, Any], name: str, entry: EditorInput) -> int:
    """Return the place of an input in the saved inputs of a node inside; it is appended if it is missing."""
    inputs = node["inputs"]
    if not name and inputs:  # a reroute, which has only one
        return 0
    slot = next((slot for slot, one in enumerate(inputs) if one.get("name") == name), None)
    if slot is None:
        slot = len(inputs)
        inputs.append({"name": name, "type": entry.type} | ({"widget": {"name": name}} if entry.widget else {}))
    return slot


def _link(number: int, origin: int, output: int, target: int, slot: int) -> dict[str, object]:
    return {"id": number, "origin_id": origin, "origin_slot": output, "target_id": target, "target_slot": slot}


def _with(workflow: dict[str, Any], opened: list[_Opened], infos: Infos, last: int) -> dict[str, Any]:
    by_id = {one.node.id: one for one in opened}
    made = [one.definition(infos) for one in opened if not is_off(one.node.saved)]
    # The editor appends the new nodes.
    nodes = [node for node in workflow["nodes"] if str(node["id"]) not in by_id]
    return {
        **workflow,
        "nodes": [*nodes, *(one.host() for one in opened)],
        "links": list(_moved(workflow, by_id)),
        "definitions": {"subgraphs": [*workflow["definitions"]["subgraphs"], *made]},
        "last_node_id": last,
    }


def _moved(workflow: dict[str, Any], by_id: dict[str, _Opened]) -> Iterator[object]:
    """Yield the workflow's links with the ends at group nodes moved to the subgraphs' nodes."""
    links = workflow.get("links")
    for entry in links if isinstance(links, list) else ():
        keys: tuple[Any, ...] = (0, 1, 3, 4)
        if isinstance(entry, dict):
            keys = ("id", "origin_id", "target_id", "target_slot")
        link_id, origin, target, slot = (entry[key] for key in keys)
        if str(target) in by_id:
            into = by_id[str(target)]
            place = (n for n, one in enumerate(into.inputs) if one.link is not None and one.link.id == link_id)
            slot, target = next(place, None), into.id
            if slot is None:  # a wire into an input that the group node no longer has
                continue
        origin = by_id[str(origin)].id if str(origin) in by_id else origin
        changed = dict(entry) if isinstance(entry, dict) else dict(enumerate(entry))
        changed.update(zip(keys, (link_id, origin, target, slot), strict=True))
        yield changed if isinstance(entry, dict) else list(changed.values())
