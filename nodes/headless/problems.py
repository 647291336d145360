"""A problem of a workflow, as ComfyUI's error object and as a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Problem:
    """A problem of one node, or of the workflow itself if `node_id` is empty."""

    node_id: str
    class_type: str
    error: dict[str, Any]
    sentence: str


def node_label(node_id: str, class_type: str) -> str:
    return f"Node {node_id} ({class_type})" if class_type else f"Node {node_id}"


def node_title(node: dict[str, object]) -> str | None:
    """Return the title that the editor wrote into a node of an API-form workflow, if any."""
    meta = node.get("_meta")
    title = meta.get("title") if isinstance(meta, dict) else None
    return title if isinstance(title, str) else None


@dataclass(frozen=True)
class NodeRef:
    """A node of the workflow that problems are reported about."""

    node_id: str
    class_type: str
    node_class: Any = None

    def problem(
        self, kind: str, message: str, details: str, sentence: str, extra: dict[str, Any] | None = None
    ) -> Problem:
        """Return a problem of this node.

        Args:
            kind: ComfyUI's error type, such as "value_not_in_list".
            message: ComfyUI's short message for this type.
            details: ComfyUI's details, such as the name of the input.
            sentence: the sentence for the user; the node's label is put in front.
            extra: ComfyUI's `extra_info`.
        """
        error = {"type": kind, "message": message, "details": details, "extra_info": extra or {}}
        return Problem(self.node_id, self.class_type, error, f"{node_label(self.node_id, self.class_type)}: {sentence}")


def join_with_or(names: list[str]) -> str:
    """Join names for a sentence: "A", "A or B", "A, B or C"."""
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else ""
