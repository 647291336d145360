"""The graph nodes: thin classes that convert the graph's types, call the core and report progress."""

from __future__ import annotations

import importlib
from typing import Any

from . import host

# The families, in the order in which a graph uses them.
_FAMILIES = (
    "loaders",
    "conditioning",
    "chat",
    "sampling",
    "vae",
    "masks",
    "perception",
    "understanding",
    "text",
)

NODE_CLASS_MAPPINGS: dict[str, Any] = {}
for _family in _FAMILIES:
    NODE_CLASS_MAPPINGS.update(importlib.import_module(f".pack.{_family}", __name__).NODES)

NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {name: node.DISPLAY_NAME for name, node in NODE_CLASS_MAPPINGS.items()}

host.register_folders()
