"""One thing that is wrong with a workflow, as ComfyUI's error object and as a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Problem:
    """A problem of one node; `node_id` is empty when the workflow as a whole is meant."""

    node_id: str
    class_type: str
    error: dict[str, Any]
    sentence: str


def node_label(node_id: str, class_type: str) -> str:
    return f"Node {node_id} ({class_type})" if class_type else f"Node {node_id}"


def node_title(node: dict[str, object]) -> str | None:
    """The title the editor left in a node of an API-form workflow."""
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
        """A problem of this node; the sentence is put behind the node's name.

        Args:
            kind: ComfyUI's word for this sort of error, such as "value_not_in_list".
        """
        error = {"type": kind, "message": message, "details": details, "extra_info": extra or {}}
        return Problem(self.node_id, self.class_type, error, f"{node_label(self.node_id, self.class_type)}: {sentence}")


def one_of(names: list[str]) -> str:
    """Names as a sentence lists them: "A", "A or B", "A, B or C"."""
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else ""
