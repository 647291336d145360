"""Class ids that nodes of this pack had before, so that older graphs still open.

Our own host reads the table when it reads a workflow or a prompt. The editor gets it through `/node_replacements`, from
our host and from any ComfyUI that has such a register; older ones cannot be told.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

# Old id -> the id of the node that took its place, with the same inputs and outputs under the same names.
RENAMED = {
    "UniWorldLatentByAspect": "UniWorldEmptyLatent",
    # judian17/ComfyUI-UniWorld-jd17 registers this id too.
    "UniWorldScheduler": "UniWorldFlowScheduler",
}


def current_id(name: Any, known: Container[str]) -> Any:
    """The id by which a node is registered now: `name` itself wherever that is known, so that no other pack's node of an
    old id is ever replaced.

    Args:
        name: a class id as a graph has it; anything that is no text comes back as it is.
        known: the ids that are registered.
    """
    return RENAMED[name] if isinstance(name, str) and name not in known and name in RENAMED else name


def replacements() -> dict[str, list[dict[str, Any]]]:
    """The table in the form of ComfyUI's `/node_replacements`. Without a mapping, inputs and outputs keep their names."""
    unchanged = {"old_widget_ids": None, "input_mapping": None, "output_mapping": None}
    return {old: [{"new_node_id": new, "old_node_id": old, **unchanged}] for old, new in RENAMED.items()}
