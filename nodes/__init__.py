"""The graph nodes: thin classes that convert the graph's types, call the core and report progress."""

from __future__ import annotations

import importlib
from typing import Any

from . import host

# The families, in the order in which a graph uses them.
_FAMILIES = (
    "loader_nodes",
    "condition_nodes",
    "chat_nodes",
    "sampling_nodes",
    "vae_nodes",
    "mask_nodes",
    "perception_nodes",
    "understand_nodes",
    "text_nodes",
)

NODE_CLASS_MAPPINGS: dict[str, Any] = {}
for _family in _FAMILIES:
    NODE_CLASS_MAPPINGS.update(importlib.import_module(f".{_family}", __name__).NODES)

NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {name: node.DISPLAY_NAME for name, node in NODE_CLASS_MAPPINGS.items()}

host.register_folders()
