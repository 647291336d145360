"""The graph of a run: the nodes of the workflow, and nodes that are added while it runs ("expand" in ComfyUI)."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from ....uniworld_core.errors import UniWorldError, shown

MAX_ADDED = 100_000  # an endless loop must not exhaust the system RAM


class DynamicPrompt:
    """The nodes of a run by id.

    Nodes receive it as the hidden input DYNPROMPT, so it has the methods of ComfyUI's class of the same name.

    Attributes:
        children: ids of the nodes that each node added.
    """

    def __init__(self, prompt: dict[str, Any], original: dict[str, object]) -> None:
        self._workflow, self._original = prompt, original
        self._added: dict[str, dict[str, object]] = {}
        self._parents: dict[str, str] = {}
        self._real: dict[str, str] = {}
        self._display: dict[str, str] = {}
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
        """Return the workflow as the user wrote it."""
        return self._original

    def get_parent_node_id(self, node_id: str) -> str | None:
        """Return the node that added this one; None for a node of the workflow."""
        return self._parents.get(node_id)

    def get_real_node_id(self, node_id: str) -> str:
        """Return the workflow node that this one was added on behalf of; the node itself if it is in the workflow."""
        return self._real.get(node_id, node_id)

    def get_display_node_id(self, node_id: str) -> str:
        """Return the node at which the editor shows the progress and results of this one."""
        return self._display.get(node_id, node_id)

    def ancestors(self, node_id: str) -> list[str]:
        """Return the node that added this one, the node that added that one, and so on."""
        found = []
        while (parent := self._parents.get(node_id)) is not None:
            found.append(parent)
            node_id = parent
        return found

    def expand(self, parent: str, graph: object, classes: Container[str]) -> list[str]:
        """Add the nodes that the node `parent` returned under "expand", and return their ids.

        Raises:
            UniWorldError: the graph is not in API form, uses an unknown node class, or uses an id that exists already.
        """
        if not isinstance(graph, dict):
            raise UniWorldError(f'The node returned {shown(graph)} as "expand"; it must map node ids to nodes.')
        if len(self._added) + len(graph) > MAX_ADDED:
            raise UniWorldError(
                f"The nodes of this run added more than {MAX_ADDED} nodes. Check the workflow for an endless loop."
            )
        for node_id, node in graph.items():
            self._add(parent, node_id, node, classes)
        self.children.setdefault(parent, []).extend(graph)
        return list(graph)

    def _add(self, parent: str, node_id: object, node: object, classes: Container[str]) -> None:
        if not isinstance(node, dict) or not isinstance(node.get("inputs", {}), dict) or not isinstance(node_id, str):
            raise UniWorldError(f"The node added {shown(node_id)}: {shown(node)}, which is not a node in API form.")
        if self.has_node(node_id):
            raise UniWorldError(
                f"The node added a node with the id {shown(node_id)}, which already exists. Ids must be unique."
            )
        if not isinstance(node.get("class_type"), str) or node["class_type"] not in classes:
            raise UniWorldError(
                f"The node added a node of the unknown class {shown(node.get('class_type'))}. Load its pack with --pack."
            )
        override = node.get("override_display_id")
        display = override if isinstance(override, str) and self.has_node(override) else parent
        self._added[node_id] = {**node, "inputs": dict(node.get("inputs", {}))}
        self._parents[node_id] = parent
        self._real[node_id] = self.get_real_node_id(parent)
        self._display[node_id] = self.get_display_node_id(display)
