"""Replace renamed class ids in workflows and prompts by the current ones."""

from __future__ import annotations

from typing import Any

from ...renamed import RENAMED, current_id
from ..registry.registry import Registry


def rename_in_prompt(prompt: object, registry: Registry) -> Any:
    """Return a prompt (API form) with current class ids; the same object if nothing changes or it is not a dict."""
    if not isinstance(prompt, dict) or not any(_has_old(node, "class_type") for node in prompt.values()):
        return prompt
    return {node_id: _renamed(node, "class_type", registry) for node_id, node in prompt.items()}


def rename_in_graph(graph: dict[str, object], registry: Registry) -> dict[str, object]:
    """Return a graph (editor form) with current class ids, including those in subgraphs, nested definitions and groups."""
    renamed = _with_nodes(graph, registry)
    extra = graph.get("extra")
    if isinstance(extra, dict) and isinstance(extra.get("groupNodes"), dict):
        groups = {
            key: _with_nodes(one, registry) if isinstance(one, dict) else one
            for key, one in extra["groupNodes"].items()
        }
        renamed = {**renamed, "extra": {**extra, "groupNodes": groups}}
    definitions = graph.get("definitions")
    if not isinstance(definitions, dict) or not isinstance(definitions.get("subgraphs"), list):
        return renamed
    inner = [rename_in_graph(one, registry) if isinstance(one, dict) else one for one in definitions["subgraphs"]]
    return {**renamed, "definitions": {**definitions, "subgraphs": inner}}


def _with_nodes(graph: dict[str, object], registry: Registry) -> dict[str, object]:
    nodes = graph.get("nodes")
    if not isinstance(nodes, list):
        return graph
    return {**graph, "nodes": [_renamed(node, "type", registry) for node in nodes]}


def _has_old(node: object, key: str) -> bool:
    name = node.get(key) if isinstance(node, dict) else None
    return isinstance(name, str) and name in RENAMED


def _renamed(node: Any, key: str, registry: Registry) -> object:
    return {**node, key: current_id(node[key], registry.classes)} if _has_old(node, key) else node
