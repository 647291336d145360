"""Former class ids of this pack's nodes, so that older graphs still open.

The headless host applies the table when it reads a workflow or a prompt. The editor gets it through
`/node_replacements`, from the headless host and from versions of ComfyUI that have this endpoint (0.3.64 has not).
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

# Old id -> id of the node that replaces it, with the same names of inputs and outputs.
RENAMED = {
    "UniWorldLatentByAspect": "UniWorldEmptyLatent",
    # judian17/ComfyUI-UniWorld-jd17 registers this id too.
    "UniWorldScheduler": "UniWorldFlowScheduler",
}


def current_id(name: Any, known: Container[str]) -> Any:
    """Return the id under which a node is registered now.

    A registered id is returned unchanged, so a node of another pack that uses one of the old ids is never replaced.

    Args:
        name: a class id from a graph; a value that is not a string is returned unchanged.
        known: the registered ids.
    """
    return RENAMED[name] if isinstance(name, str) and name not in known and name in RENAMED else name


def replacements() -> dict[str, list[dict[str, Any]]]:
    """Return the table as ComfyUI's `/node_replacements` sends it.

    A mapping of None means that inputs and outputs keep their names.
    """
    unchanged = {"old_widget_ids": None, "input_mapping": None, "output_mapping": None}
    return {old: [{"new_node_id": new, "old_node_id": old, **unchanged}] for old, new in RENAMED.items()}
