"""The graph nodes: thin classes that convert between graph types and the core, and report progress."""

from __future__ import annotations

from . import host
from .declare import Node
from .pack import chat, conditioning, loaders, lora, masks, perception, sampling, text, understanding, unipic, vae
from .pack.native import nodes as native

# In the order in which a graph uses them; the editor's node list keeps it.
_FILES = (loaders, lora, conditioning, chat, sampling, unipic, vae, masks, perception, understanding, text, native)

NODE_CLASS_MAPPINGS: dict[str, type[Node]] = {name: node for file in _FILES for name, node in file.NODES.items()}

NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {name: node.DISPLAY_NAME for name, node in NODE_CLASS_MAPPINGS.items()}

host.register_folders()
