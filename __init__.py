"""UniWorld for ComfyUI: UniWorld-V1 (arXiv 2506.03147) as workflow nodes.

ComfyUI imports this folder from `custom_nodes/`; pip installs it as the package `uniworld`. Both find the nodes here;
the model itself is imported when a node first runs.
"""

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__version__ = "0.1.0"

# Help pages (docs/NODE.md) and browser files.
WEB_DIRECTORY = "./nodes/web"

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY", "__version__"]
