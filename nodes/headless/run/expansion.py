"""The graph of a run: the workflow, and the nodes that its nodes add to it while it runs (`expand`)."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from ....uniworld_core.errors import UniWorldError, shown

MAX_ADDED = 100_000  # a loop that never ends must not fill the memory


class DynamicPrompt:
    """The nodes of a run by id.

    Nodes may ask for it as their hidden input DYNPROMPT, so its methods are those of ComfyUI's class of this name.

    Attributes:
        children: the nodes that each node added.
    """

    def __init__(self, prompt: dict[str, Any], original: dict[str, object]) -> None:
        self._workflow, self._original = prompt, original
        self._added: dict[str, dict[str, object]] = {}
        self._parents: dict[str, str] = {}
        self._real: dict[str, str] = {}
        self._shown_as: dict[str, str] = {}
        self.children: dict[str, list[str]] = {}

    def get_node(self, node_id: str) -> dict[str, Any]:
        node = self._added.get(node_id) or self._workflow.get(node_id)
        if node is None:
            raise LookupError(f"There is no node {shown(node_id)} in this run.")
        return node

    def has_node(self, node_id: str) -> bool:
        return node_id in self._added or node_id in self._workflow

    def all_node_ids(self) -> set[str]:
        return {*self._workflow, *self._added}

    def get_original_prompt(self) -> dict[str, object]:
        """The workflow as the user gave it."""
        return self._original

    def get_parent_node_id(self, node_id: str) -> str | None:
        """The node that added this one; None for a node of the workflow."""
        return self._parents.get(node_id)

    def get_real_node_id(self, node_id: str) -> str:
        """The node of the workflow through which this one came into the graph; itself if it is of the workflow."""
        return self._real.get(node_id, node_id)

    def get_display_node_id(self, node_id: str) -> str:
        """The node at which the editor shows what this one does."""
        return self._shown_as.get(node_id, node_id)

    def ancestors(self, node_id: str) -> list[str]:
        """The node that added this one, the one that added that, and so on."""
        found = []
        while (parent := self._parents.get(node_id)) is not None:
            found.append(parent)
            node_id = parent
        return found

    def expand(self, parent: str, graph: object, classes: Container[str]) -> list[str]:
        """Add the nodes that the node `parent` returned under "expand", and return their ids.

        Raises:
            UniWorldError: it is no graph in API form, names an unknown node class, or has an id that is taken.
        """
        if not isinstance(graph, dict):
            raise UniWorldError(f'The node gave {shown(graph)} as "expand"; it must map node ids to nodes.')
        if len(self._added) + len(graph) > MAX_ADDED:
            raise UniWorldError(f"The nodes of this run added more than {MAX_ADDED} nodes. Does a loop never end?")
        for node_id, node in graph.items():
            self._add(parent, node_id, node, classes)
        self.children.setdefault(parent, []).extend(graph)
        return list(graph)

    def _add(self, parent: str, node_id: object, node: object, classes: Container[str]) -> None:
        if not isinstance(node, dict) or not isinstance(node.get("inputs", {}), dict) or not isinstance(node_id, str):
            raise UniWorldError(f"The node added {shown(node_id)}: {shown(node)}, which is no node in API form.")
        if self.has_node(node_id):
            raise UniWorldError(
                f"The node added a node with the id {shown(node_id)}, which is taken. Ids must be unique."
            )
        if not isinstance(node.get("class_type"), str) or node["class_type"] not in classes:
            raise UniWorldError(
                f"The node added a node of the class {shown(node.get('class_type'))}, which is unknown."
            )
        override = node.get("override_display_id")
        shown_as = override if isinstance(override, str) and self.has_node(override) else parent
        self._added[node_id] = {**node, "inputs": dict(node.get("inputs", {}))}
        self._parents[node_id] = parent
        self._real[node_id] = self.get_real_node_id(parent)
        self._shown_as[node_id] = self.get_display_node_id(shown_as)
