"""Objects of ComfyUI's own packages that node packs may use: blockers, the graph builder and progress bars.

They are looked up in `sys.modules` and never imported here: only a pack that uses them has imported them.
"""

from __future__ import annotations

import sys

from ...host import ExecutionBlocker, running_node

_MODULES = ("comfy_execution.graph_utils", "comfy_execution.graph")  # the class moved from one to the other


def is_blocker(value: object) -> bool:
    """Return whether a value is an ExecutionBlocker: ours, or that of ComfyUI's `comfy_execution`."""
    if isinstance(value, ExecutionBlocker):
        return True
    theirs = (getattr(sys.modules.get(name), "ExecutionBlocker", None) for name in _MODULES)
    return any(isinstance(one, type) and isinstance(value, one) for one in theirs)


def set_graph_prefix(node_id: str, call: int) -> None:
    """Make ComfyUI's GraphBuilder derive ids of new nodes from the running node, so that they are deterministic.

    Args:
        node_id: the running node.
        call: index of the node's next call, over the items of its input lists.
    """
    builder = getattr(sys.modules.get("comfy_execution.graph_utils"), "GraphBuilder", None)
    if builder is not None:
        builder.set_default_prefix(node_id, call, 0)


def hook_progress() -> None:
    """Report the progress of ComfyUI's `comfy.utils.ProgressBar` as that of the running node."""
    utils = sys.modules.get("comfy.utils")
    if hasattr(utils, "PROGRESS_BAR_HOOK"):
        utils.PROGRESS_BAR_HOOK = _progress  # type: ignore[union-attr]


def _progress(value: float, total: float, preview: object = None, **_: object) -> None:
    hooks = running_node.get()
    if hooks is not None and hooks.progress is not None:
        # ComfyUI's preview is a tuple of format, Pillow image and maximum size.
        hooks.progress(value, total, preview[1] if isinstance(preview, tuple) else None)  # type: ignore[arg-type]
