"""A graph in both of ComfyUI's forms, from one description: nodes in columns, each column a group.

Used by `build.py`, which writes the shared workflows.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

COLUMN_GAP, NODE_GAP, TITLE, SLOT, WIDGET, MARGIN = 60, 60, 34, 22, 26, 20
GROUP_TITLE = 50
COLOURS = ("#3f789e", "#8A8", "#b58b2a", "#a1309b", "#b06634")
# Pictures and texts that a node shows below its widgets, in pixels.
SHOWN = {"LoadImage": 260, "SaveImage": 300, "PreviewImage": 240, "PreviewAny": 110, "UniWorldSampler": 240}
MULTILINE = 130


@dataclass
class Slot:
    """One output of a node."""

    node: Node
    index: int


@dataclass
class Node:
    """One node, its inputs by name: values, or slots of other nodes."""

    id: int
    kind: str
    title: str
    column: int
    inputs: dict[str, Any]
    schema: type

    def __getitem__(self, index: int) -> Slot:
        return Slot(self, index)


@dataclass
class Graph:
    """A workflow.

    Args:
        classes: {class name: (node class, display name)}.
        columns: titles of the groups, left to right.
        note: what stands in the note beside the graph, Markdown.
    """

    name: str
    classes: dict[str, tuple[type, str]]
    columns: list[str]
    note: str
    nodes: list[Node] = field(default_factory=list)

    def add(self, kind: str, column: int, title: str = "", **inputs: Any) -> Node:
        schema, display = self.classes[kind]
        node = Node(len(self.nodes) + 1, kind, title or display, column, inputs, schema)
        known = {name for name, _ in declared(schema)}
        assert set(inputs) <= known, f"{kind} has no inputs {set(inputs) - known}"
        self.nodes.append(node)
        return node

    def api(self) -> dict[str, Any]:
        """The form that programs send."""
        return {
            str(node.id): {
                "class_type": node.kind,
                "inputs": {
                    name: self._api_value(node, name, spec)
                    for name, spec in declared(node.schema)
                    if self._given(node, name, spec)
                },
                "_meta": {"title": node.title},
            }
            for node in self.nodes
        }

    def _given(self, node: Node, name: str, spec: Any) -> bool:
        return name in node.inputs or is_widget(spec)

    def _api_value(self, node: Node, name: str, spec: Any) -> Any:
        value = node.inputs.get(name, default(spec))
        return [str(value.node.id), value.index] if isinstance(value, Slot) else value

    def editor(self) -> dict[str, Any]:
        """The form that the editor saves (schema 0.4)."""
        links: list[list[Any]] = []
        made = {node.id: self._editor_node(node, links) for node in self.nodes}
        for link_id, source, slot, *_ in links:
            made[source]["outputs"][slot]["links"].append(link_id)
        groups = self._place(made)
        note = self._note(len(self.nodes) + 1)
        nodes = [note, *made.values()]
        for order, node in enumerate(nodes):
            node["order"] = order
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"uniworld/{self.name}")),
            "revision": 0,
            "last_node_id": len(nodes),
            "last_link_id": len(links),
            "nodes": nodes,
            "links": links,
            "groups": groups,
            "config": {},
            "extra": {"ds": {"scale": 0.7, "offset": [420, 120]}},
            "version": 0.4,
        }

    def _editor_node(self, node: Node, links: list[list[Any]]) -> dict[str, Any]:
        sockets, widgets, values = [], [], []
        # Sockets come before widgets, as the editor orders them.
        for name, spec in sorted(declared(node.schema), key=lambda item: is_widget(item[1])):
            value = node.inputs.get(name, default(spec))
            entry: dict[str, Any] = {"name": name, "type": type_name(spec), "link": None}
            if name in optional(node.schema):
                entry["shape"] = 7
            if isinstance(value, Slot):
                entry["link"] = len(links) + 1
                links.append(
                    [len(links) + 1, value.node.id, value.index, node.id, len(sockets) + len(widgets), type_name(spec)]
                )
            if is_widget(spec):
                entry["widget"] = {"name": name}
                widgets.append(entry)
                values.append(default(spec) if isinstance(value, Slot) else value)
                if options(spec).get("control_after_generate"):
                    values.append("fixed")  # so that everybody sees the picture of the thumbnail
                if options(spec).get("image_upload"):
                    values.append("image")
            else:
                sockets.append(entry)
        kinds = getattr(node.schema, "RETURN_TYPES", ())
        names = getattr(node.schema, "RETURN_NAMES", kinds)
        return {
            "id": node.id,
            "type": node.kind,
            "pos": [0, 0],
            "size": self._size(node, sockets, values, len(kinds)),
            "flags": {},
            "order": 0,
            "mode": 0,
            "inputs": sockets + widgets,
            "outputs": [
                {"name": n, "type": t, "links": [], "slot_index": i} for i, (n, t) in enumerate(zip(names, kinds))
            ],
            # A node without a title of its own has the editor's, in the editor's language.
            **({"title": node.title} if node.title != self.classes[node.kind][1] else {}),
            "properties": {"Node name for S&R": node.kind}
            | ({"cnr_id": "uniworld"} if node.kind.startswith("UniWorld") else {"cnr_id": "comfy-core"}),
            "widgets_values": values,
        }

    def _size(self, node: Node, sockets: list[Any], values: list[Any], outputs: int) -> list[int]:
        text = sum(MULTILINE for _, spec in declared(node.schema) if options(spec).get("multiline"))
        height = SLOT * max(len(sockets), outputs, 1) + WIDGET * len(values) + text + SHOWN.get(node.kind, 0) + 10
        return [340 if node.kind in SHOWN or text else 300, height]

    def _place(self, made: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
        groups, x = [], 0
        for column, title in enumerate(self.columns):
            inside = [made[node.id] for node in self.nodes if node.column == column]
            width = max(node["size"][0] for node in inside)
            y = 0
            for node in inside:
                node["pos"] = [x, y]
                node["size"][0] = width
                y += node["size"][1] + TITLE + NODE_GAP - TITLE
            height = y - NODE_GAP + TITLE + GROUP_TITLE + MARGIN
            groups.append(
                {
                    "id": column + 1,
                    "title": title,
                    "bounding": [x - MARGIN, -TITLE - GROUP_TITLE, width + 2 * MARGIN, height],
                    "color": COLOURS[column % len(COLOURS)],
                    "font_size": 24,
                    "flags": {},
                }
            )
            x += width + 2 * MARGIN + COLUMN_GAP
        return groups

    def _note(self, node_id: int) -> dict[str, Any]:
        return {
            "id": node_id,
            "type": "MarkdownNote",
            "pos": [-400, -TITLE - GROUP_TITLE + 34],
            "size": [340, 300],
            "flags": {},
            "order": 0,
            "mode": 0,
            "inputs": [],
            "outputs": [],
            "title": "About this workflow",
            "properties": {},
            "widgets_values": [self.note],
            "color": "#432",
            "bgcolor": "#653",
        }


def declared(schema: type) -> list[tuple[str, Any]]:
    """(name, specification) of a node class's required and optional inputs."""
    types = schema.INPUT_TYPES()
    return [*types.get("required", {}).items(), *types.get("optional", {}).items()]


def optional(schema: type) -> set[str]:
    return set(schema.INPUT_TYPES().get("optional", {}))


def options(spec: Any) -> dict[str, Any]:
    return spec[1] if len(spec) > 1 else {}


def type_name(spec: Any) -> str:
    return "COMBO" if isinstance(spec[0], list) else str(spec[0])


def is_widget(spec: Any) -> bool:
    return type_name(spec) in ("COMBO", "INT", "FLOAT", "STRING", "BOOLEAN") and not options(spec).get("forceInput")


def default(spec: Any) -> Any:
    if isinstance(spec[0], list):
        return options(spec).get("default", spec[0][0] if spec[0] else "")
    return options(spec).get("default", {"STRING": "", "BOOLEAN": False}.get(str(spec[0]), 0))
