"""New ids for nodes of subgraphs whose ids are not unique in the workflow, assigned as the editor does on opening it."""

from __future__ import annotations

from typing import Any

from ....uniworld_core.json_text import BadJson, loads

_ENDS = ("origin_id", "target_id")


def with_unique_ids(
    workflow: dict[str, object], definitions: dict[str, dict[str, object]]
) -> tuple[dict[str, object], dict[str, dict[str, object]]]:
    """Return the workflow and its subgraphs with unique node ids; parts that do not change are not copied.

    Args:
        definitions: the subgraphs by id, in the order of the file, each before those nested in it.
    """
    ids = _Ids(workflow)
    new_ids = {key: ids.renumbered(definition) for key, definition in definitions.items()}
    if not any(new_ids.values()):
        return workflow, definitions
    changed = {key: _renumbered(definition, new_ids[key]) for key, definition in definitions.items()}
    return _patched(workflow, new_ids), {key: _patched(definition, new_ids) for key, definition in changed.items()}


class _Ids:
    """The ids in use, and the highest one that the editor has assigned."""

    def __init__(self, workflow: dict[str, object]) -> None:
        self.taken = {str(node["id"]) for node in _nodes(workflow)}
        state = workflow.get("state")
        last = [workflow.get("last_node_id"), state.get("lastNodeId") if isinstance(state, dict) else None]
        self.last = max([0, *(value for value in last if isinstance(value, int))])

    def renumbered(self, definition: dict[str, object]) -> dict[str, int]:
        """Return the new ids of a subgraph's nodes by their old ones."""
        found: dict[str, int] = {}
        for node in _nodes(definition):
            key = str(node["id"])
            if key not in self.taken:
                self.last = max(self.last, int(key)) if key.isdecimal() and len(key) < 16 else self.last
                self.taken.add(key)
                continue
            self.last += 1
            while str(self.last) in self.taken:
                self.last += 1
            found[key] = self.last
            self.taken.add(str(self.last))
        return found


def _nodes(graph: dict[str, object]) -> list[dict[str, object]]:
    entries = graph.get("nodes")
    nodes = entries if isinstance(entries, list) else []
    return [node for node in nodes if isinstance(node, dict) and isinstance(node.get("id"), (int, str))]


def _renumbered(definition: dict[str, Any], new_ids: dict[str, int]) -> dict[str, object]:
    if not new_ids:
        return definition
    nodes = [
        {**node, "id": new_ids.get(str(node.get("id")), node.get("id"))} if isinstance(node, dict) else node
        for node in definition["nodes"]
    ]
    entries = definition.get("links")
    links = [_link(entry, new_ids) for entry in entries] if isinstance(entries, list) else entries
    return {**definition, "nodes": nodes, "links": links}


def _link(entry: object, new_ids: dict[str, int]) -> object:
    if isinstance(entry, dict):
        return {**entry, **{key: new_ids.get(str(entry[key]), entry[key]) for key in _ENDS if key in entry}}
    if isinstance(entry, list) and len(entry) >= 5:
        changed = list(entry)
        changed[1], changed[3] = (new_ids.get(str(entry[place]), entry[place]) for place in (1, 3))
        return changed
    return entry


def _patched(graph: dict[str, object], new_ids: dict[str, dict[str, int]]) -> dict[str, object]:
    """Return the graph with the new ids in the `proxyWidgets` of nodes that open renumbered subgraphs."""
    entries = graph.get("nodes")
    if not isinstance(entries, list):
        return graph
    return {**graph, "nodes": [_with_new_proxies(node, new_ids) for node in entries]}


def parsed_property(value: object) -> Any:
    """Return a property of a node, parsed if it is JSON text: editors save some lists as text."""
    if not isinstance(value, str):
        return value
    try:
        return loads(value, allow_nan=True, allow_duplicates=True)
    except BadJson:
        return value


def _with_new_proxies(node: object, new_ids: dict[str, dict[str, int]]) -> object:
    if not isinstance(node, dict) or not isinstance(node.get("type"), str):
        return node
    properties, ids = node.get("properties"), new_ids.get(node["type"])
    proxies = parsed_property(properties.get("proxyWidgets")) if isinstance(properties, dict) else None
    if not ids or not isinstance(properties, dict) or not isinstance(proxies, list):
        return node
    # Other entries are kept unchanged, even malformed ones.
    changed = [
        [str(ids[str(entry[0])]), *entry[1:]] if isinstance(entry, list) and entry and str(entry[0]) in ids else entry
        for entry in proxies
    ]
    return {**node, "properties": {**properties, "proxyWidgets": changed}}
