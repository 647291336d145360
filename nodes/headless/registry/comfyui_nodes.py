"""Names of nodes that only ComfyUI has, for messages."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path


@cache
def comfyui_nodes() -> frozenset[str]:
    """Return the node classes in the shipped workflows that the editor marks as ComfyUI's own."""
    marked = set()
    for file in (Path(__file__).parents[3] / "workflows").glob("*.json"):
        graph = json.loads(file.read_text(encoding="utf-8"))
        subgraphs = graph.get("definitions", {}).get("subgraphs", [])
        for node in [*graph["nodes"], *(inner for one in subgraphs for inner in one["nodes"])]:
            if node.get("properties", {}).get("cnr_id") == "comfy-core":
                marked.add(node["type"])
    return frozenset(marked)
