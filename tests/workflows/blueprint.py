"""Convert a graph to a ComfyUI blueprint: a workflow whose only node is a subgraph.

Used by `build.py`.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from workflows.editor_form import Graph, Node, Slot

INPUT_NODE, OUTPUT_NODE = -10, -20


@dataclass(frozen=True)
class Port:
    """One input of the subgraph node, with the inner inputs that it is linked to."""

    name: str
    targets: tuple[tuple[Node, str], ...]


def to_blueprint(graph: Graph, name: str, inputs: list[Port], outputs: dict[str, Slot]) -> dict[str, Any]:
    """Return the blueprint of a graph.

    Args:
        inputs: in display order. A port that is linked to a widget becomes a widget of the subgraph node.
        outputs: {name: slot of an inner node}.
    """
    made = graph.editor()
    nodes = {node["id"]: node for node in made["nodes"] if node["type"] != "MarkdownNote"}
    links = [
        dict(zip(("id", "origin_id", "origin_slot", "target_id", "target_slot", "type"), link))
        for link in made["links"]
    ]
    ids = [str(uuid.uuid5(uuid.NAMESPACE_URL, f"uniworld/{name}/{i}")) for i in range(1 + len(inputs) + len(outputs))]
    ports_in = [_port_in(port, slot, ids[1 + slot], nodes, links) for slot, port in enumerate(inputs)]
    ports_out = [
        _port_out(label, source, slot, ids[1 + len(inputs) + slot], nodes, links)
        for slot, (label, source) in enumerate(outputs.items())
    ]
    right = max(node["pos"][0] + node["size"][0] for node in nodes.values())
    subgraph = {
        "id": ids[0],
        "version": 1,
        "state": {"lastGroupId": 0, "lastNodeId": max(nodes), "lastLinkId": len(links), "lastRerouteId": 0},
        "revision": 0,
        "config": {},
        "name": name,
        "inputNode": {"id": INPUT_NODE, "bounding": [-260, 0, 120, 40 + 20 * len(inputs)]},
        "outputNode": {"id": OUTPUT_NODE, "bounding": [right + 140, 0, 120, 40 + 20 * len(outputs)]},
        "inputs": [port for port, _ in ports_in],
        "outputs": ports_out,
        "widgets": [],
        "nodes": list(nodes.values()),
        "groups": made["groups"],
        "links": links,
        "extra": {},
    }
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"uniworld/blueprint/{name}")),
        "revision": 0,
        "last_node_id": 1,
        "last_link_id": 0,
        "nodes": [_subgraph_node(name, ids[0], ports_in, ports_out)],
        "links": [],
        "groups": [],
        "definitions": {"subgraphs": [subgraph]},
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def _port_in(
    port: Port, slot: int, port_id: str, nodes: dict[int, Any], links: list[Any]
) -> tuple[dict[str, Any], Any]:
    """Return the port and its widget value on the subgraph node; the value is None for a socket."""
    link_ids, kind, value = [], "*", None
    for node, name in port.targets:
        entry = next(entry for entry in nodes[node.id]["inputs"] if entry["name"] == name)
        entry["link"] = len(links) + 1
        kind = entry["type"]
        if "widget" in entry:
            value = node.inputs[name]
        target_slot = nodes[node.id]["inputs"].index(entry)
        links.append(
            {
                "id": len(links) + 1,
                "origin_id": INPUT_NODE,
                "origin_slot": slot,
                "target_id": node.id,
                "target_slot": target_slot,
                "type": kind,
            }
        )
        link_ids.append(len(links))
    return {"id": port_id, "name": port.name, "type": kind, "linkIds": link_ids, "pos": [-160, 20 + 20 * slot]}, value


def _port_out(
    name: str, source: Slot, slot: int, port_id: str, nodes: dict[int, Any], links: list[Any]
) -> dict[str, Any]:
    output = nodes[source.node.id]["outputs"][source.index]
    links.append(
        {
            "id": len(links) + 1,
            "origin_id": source.node.id,
            "origin_slot": source.index,
            "target_id": OUTPUT_NODE,
            "target_slot": slot,
            "type": output["type"],
        }
    )
    output["links"].append(len(links))
    return {"id": port_id, "name": name, "type": output["type"], "linkIds": [len(links)], "pos": [0, 20 + 20 * slot]}


def _subgraph_node(
    name: str, kind: str, ports_in: list[tuple[dict[str, Any], Any]], ports_out: list[dict[str, Any]]
) -> dict[str, Any]:
    inputs: list[dict[str, Any]] = []
    for port, value in ports_in:
        entry = {"name": port["name"], "type": port["type"], "link": None}
        inputs.append(entry if value is None else entry | {"widget": {"name": port["name"]}})
    return {
        "id": 1,
        "type": kind,
        "title": name,
        "pos": [0, 0],
        "size": [360, 420],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": sorted(inputs, key=lambda entry: "widget" in entry),
        "outputs": [{"name": port["name"], "type": port["type"], "links": []} for port in ports_out],
        "properties": {"proxyWidgets": [["-1", port["name"]] for port, value in ports_in if value is not None]},
        "widgets_values": [value for _, value in ports_in if value is not None],
    }
