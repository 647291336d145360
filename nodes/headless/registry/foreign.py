"""What packs bring from ComfyUI's own packages, where those can be imported: blockers, graph builder, progress bars.

Nothing is imported here; a pack that uses them has done so.
"""

from __future__ import annotations

import sys

from ...host import ExecutionBlocker, running_node

_MODULES = ("comfy_execution.graph_utils", "comfy_execution.graph")  # the class moved from one to the other


def is_blocker(value: object) -> bool:
    """Whether a value is an ExecutionBlocker: ours, or the one of ComfyUI's `comfy_execution`."""
    if isinstance(value, ExecutionBlocker):
        return True
    theirs = (getattr(sys.modules.get(name), "ExecutionBlocker", None) for name in _MODULES)
    return any(isinstance(one, type) and isinstance(value, one) for one in theirs)


def set_graph_prefix(node_id: str, call: int) -> None:
    """Let ComfyUI's GraphBuilder name the nodes that a node adds after it, so that they have the same ids each time.

    Args:
        call: which of the node's calls is next, over the items of its input lists.
    """
    builder = getattr(sys.modules.get("comfy_execution.graph_utils"), "GraphBuilder", None)
    if builder is not None:
        builder.set_default_prefix(node_id, call, 0)


def take_progress() -> None:
    """Let the bars of ComfyUI's `comfy.utils.ProgressBar` tell the node that runs how far it is."""
    utils = sys.modules.get("comfy.utils")
    if hasattr(utils, "PROGRESS_BAR_HOOK"):
        utils.PROGRESS_BAR_HOOK = _progress  # type: ignore[union-attr]


def _progress(value: float, total: float, preview: object = None, **_: object) -> None:
    hooks = running_node.get()
    if hooks is not None and hooks.progress is not None:
        # A preview is a format, a Pillow image and a size.
        hooks.progress(value, total, preview[1] if isinstance(preview, tuple) else None)  # type: ignore[arg-type]
