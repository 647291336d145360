"""A graph in editor form and API form, from one description: nodes in columns, and groups of columns.

Used by `build.py`, which writes the shared workflows. Each workflow sets the heights of its nodes, so that no link runs
behind another node (`layout.py` measures this).
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from workflows.layout import GROUP, TITLE, Box, around, node_size, row_width, view

COLORS = ("#3f789e", "#8A8", "#b58b2a", "#a1309b", "#b06634")
MARGIN = 10
# Space for images and text that a node shows below its widgets, in pixels.
SHOWN = {
    "LoadImage": 224,
    "SaveImage": 224,
    "PreviewImage": 224,
    "PreviewAny": 110,
    "UniWorldSampler": 224,
    "UniWorldUniPicSampler": 224,
}
# Minimum widths in the editor: Load Image also has a button, and Preview Any a switch that the editor adds.
LEAST = {"LoadImage": 224, "PreviewAny": 210}
BADGE = 8  # the pack's name above a node extends this far beyond the margin
UNFOLDED = 210  # width that a collapsed node has when it is expanded
FLOAT_DIGITS = 2  # maximum number of decimals in the declarations
PROMPT = 60  # height of a text field in addition to its minimum


@dataclass
class Slot:
    """One output of a node."""

    node: Node
    index: int


@dataclass
class Node:
    """One node. Its inputs are values or slots of other nodes, by name.

    Attributes:
        top: y coordinate of its upper edge, below the title, in graph pixels.
        room: height for content in addition to slots and widgets, in pixels.
        width: in pixels; None for the width of its column.
        collapsed: whether only the title is shown.
    """

    id: int
    kind: str
    title: str
    column: int
    top: int
    room: int
    width: int | None
    collapsed: bool
    inputs: dict[str, Any]
    schema: type

    def __getitem__(self, index: int) -> Slot:
        return Slot(self, index)


@dataclass(frozen=True)
class Note:
    """A Markdown note with its own position and size."""

    title: str
    text: str
    column: int
    top: int
    size: tuple[int | None, int]


@dataclass
class Graph:
    """A workflow.

    Args:
        classes: {class name: (node class, display name)}.
        columns: (left gap, minimum width) of each column, from left to right. A column is as wide as its longest row.
        groups: (title, first column, last column).
        about: metadata stored in the file: short name, title and description.
    """

    name: str
    classes: dict[str, tuple[type, str]]
    columns: tuple[tuple[int, int], ...]
    groups: tuple[tuple[str, int, int], ...] = ()
    about: dict[str, Any] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)

    def add(
        self,
        kind: str,
        column: int,
        top: int,
        title: str = "",
        room: int | None = None,
        width: int | None = None,
        collapsed: bool = False,
        **inputs: Any,
    ) -> Node:
        schema, display = self.classes[kind]
        if room is None:
            texts = sum(bool(options(spec).get("multiline")) for _, spec in declared(schema))
            room = SHOWN.get(kind, 0) + PROMPT * texts
        title = title or display
        node = Node(len(self.nodes) + 1, kind, title, column, top, room, width, collapsed, inputs, schema)
        known = {name for name, _ in declared(schema)}
        assert set(inputs) <= known, f"{kind} has no inputs {set(inputs) - known}"
        self.nodes.append(node)
        return node

    def note(self, title: str, text: str, column: int, top: int, size: tuple[int | None, int]) -> Note:
        """Add a note of the given width and height. A width of None is that of its column."""
        self.notes.append(Note(title, text, column, top, size))
        return self.notes[-1]

    def below(self, above: Node | Note, gap: int = 20) -> int:
        """Return the top of a node whose title starts `gap` pixels below another node or a note."""
        height = above.size[1] if isinstance(above, Note) else self._editor_node(above, [])["size"][1]
        return above.top + (0 if isinstance(above, Node) and above.collapsed else height) + gap + TITLE

    def width(self, column: int) -> int:
        """Return the width of a column: that of its widest node, except nodes with an explicit width."""
        nodes = [one for one in self.nodes if one.column == column and not one.collapsed and one.width is None]
        return max(self.columns[column][1], *map(self.least_width, nodes), 0)

    def left(self, column: int) -> int:
        """Return the x coordinate of a column."""
        return sum(gap for gap, _ in self.columns[: column + 1]) + sum(self.width(one) for one in range(column))

    def least_width(self, node: Node) -> int:
        """Return the minimum width at which no text of the node is cut off."""
        rows = [row_width("title", node.title), LEAST.get(node.kind, 0)]
        sockets = [name for name, spec in declared(node.schema) if not is_widget(spec)]
        outputs = getattr(node.schema, "RETURN_NAMES", getattr(node.schema, "RETURN_TYPES", ()))
        rows += [row_width("slots", *pair) for pair in zip(sockets, outputs)]
        for name, spec in declared(node.schema):
            if is_widget(spec):
                rows.append(UNFOLDED)
                rows += [row_width(kind, *texts) for kind, *texts in self._widget_rows(node, name, spec)]
        return math.ceil(max(rows))

    def _widget_rows(self, node: Node, name: str, spec: Any) -> Iterator[tuple[str, str, str]]:
        """Yield kind, label and value of a widget and of those that the editor adds. Multiline text wraps, so it has none."""
        if options(spec).get("multiline"):
            return
        value = node.inputs.get(name, default(spec))
        value = default(spec) if isinstance(value, Slot) else value
        if type_name(spec) == "FLOAT":
            value = f"{value:.{FLOAT_DIGITS}f}"
        kind = {"STRING": "text", "BOOLEAN": "switch"}.get(type_name(spec), "stepped")
        shown = options(spec).get("label_on" if value else "label_off", value) if kind == "switch" else value
        yield kind, name, str(shown)
        if options(spec).get("control_after_generate"):
            yield "stepped", "control after generate", "fixed"

    def api(self) -> dict[str, Any]:
        """Return the API form, which clients send."""
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
        """Return the editor form, which the editor saves (schema 0.4)."""
        links: list[list[Any]] = []
        made = {node.id: self._editor_node(node, links) for node in self.nodes}
        for link_id, source, slot, *_ in links:
            made[source]["outputs"][slot]["links"].append(link_id)
        notes = [self._note(note, len(made) + number) for number, note in enumerate(self.notes, 1)]
        nodes = [*notes, *made.values()]
        for order, node in enumerate(nodes):
            node["order"] = order
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"uniworld/{self.name}")),
            "revision": 0,
            "last_node_id": len(nodes),
            "last_link_id": len(links),
            "nodes": nodes,
            "links": links,
            "groups": self._groups(nodes),
            "config": {},
            "extra": {"ds": view([around(node) for node in nodes]), **({"uniworld": self.about} if self.about else {})},
            "version": 0.4,
        }

    def _editor_node(self, node: Node, links: list[list[Any]]) -> dict[str, Any]:
        sockets, widgets, values = [], [], []
        # Sockets come before widgets, in the editor's order.
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
                    values.append("fixed")  # so that the first run gives the image of the thumbnail
                if options(spec).get("image_upload"):
                    values.append("image")
            else:
                sockets.append(entry)
        kinds = getattr(node.schema, "RETURN_TYPES", ())
        names = getattr(node.schema, "RETURN_NAMES", kinds)
        return {
            "id": node.id,
            "type": node.kind,
            "pos": [self.left(node.column), node.top],
            "size": self._size(node, sockets, values, len(kinds)),
            "flags": {"collapsed": True} if node.collapsed else {},
            "order": 0,
            "mode": 0,
            "inputs": sockets + widgets,
            "outputs": [
                {"name": n, "type": t, "links": [], "slot_index": i} for i, (n, t) in enumerate(zip(names, kinds))
            ],
            # Without a title, the editor shows the node's name in the user's language.
            **({"title": node.title} if node.title != self.classes[node.kind][1] else {}),
            "properties": {"Node name for S&R": node.kind}
            | ({"cnr_id": "uniworld"} if node.kind.startswith("UniWorld") else {"cnr_id": "comfy-core"}),
            "widgets_values": values,
        }

    def _size(self, node: Node, sockets: list[Any], values: list[Any], outputs: int) -> list[int]:
        texts = sum(bool(options(spec).get("multiline")) for _, spec in declared(node.schema))
        height = node_size(max(len(sockets), outputs), len(values), texts) + node.room
        width = node.width or self.width(node.column)
        return [max(width, UNFOLDED) if node.collapsed else width, height]

    def _groups(self, nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return frames around the columns of each stage.

        All of them start above the highest node. Links stay between the heights of their two ends, so none crosses a title.
        """
        made = []
        top = min(around(node).top for node in nodes)
        for number, (title, first, last) in enumerate(self.groups):
            left, right = self.left(first), self.left(last) + self.width(last)
            inside = [around(node) for node in nodes if left <= node["pos"][0] < right]
            bottom = max(box.bottom for box in inside)
            frame = Box(left - MARGIN, top - GROUP - MARGIN - BADGE, right + MARGIN, bottom + MARGIN)
            made.append(
                {
                    "id": number + 1,
                    "title": title,
                    "bounding": [frame.left, frame.top, frame.right - frame.left, frame.bottom - frame.top],
                    "color": COLORS[number % len(COLORS)],
                    "font_size": 24,
                    "flags": {},
                }
            )
        return made

    def _note(self, note: Note, node_id: int) -> dict[str, Any]:
        return {
            "id": node_id,
            "type": "MarkdownNote",
            "pos": [self.left(note.column), note.top],
            "size": [note.size[0] or self.width(note.column), note.size[1]],
            "flags": {},
            "order": 0,
            "mode": 0,
            "inputs": [],
            "outputs": [],
            "title": note.title,
            "properties": {},
            "widgets_values": [note.text],
            "color": "#432",
            "bgcolor": "#653",
        }


def declared(schema: type) -> list[tuple[str, Any]]:
    """Return (name, specification) of a node class's required and optional inputs."""
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
