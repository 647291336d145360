"""Geometry of nodes, slots and links in the editor, in graph pixels.

Sizes are those of the editor's `computeSize()` (the same from 1.27 to 1.58). Links are its default splines.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

TITLE, SLOT, WIDGET, TEXT, GROUP = 30, 20, 24, 30, 34
NOTE_WIDTH = 210  # minimum width of a note
PREVIEW = 220  # height that the editor gives a picture in a node: it enlarges a node with less when the picture arrives
# The window that the workflows are laid out for, and the area that older editors leave free in it: left, top, right, bottom.
WINDOW = (1400, 900)
_FREE = (16, 84, 1344, 800)
_LETTER = 7.6  # mean width of a letter of a title
# Widths of the characters from " " to "~" in the font of widgets and slots (Inter at 12 pixels), in tenths of a pixel.
_WIDTHS = (
    34, 35, 56, 76, 77, 118, 78, 36, 44, 44, 61, 80, 35, 56, 35, 44, 76, 49, 74, 75, 78, 72, 75, 68, 75, 75, 35, 37, 80, 80, 80,
    62, 116, 83, 79, 88, 87, 73, 71, 90, 90, 33, 69, 81, 68, 109, 91, 92, 77, 92, 78, 77, 78, 90, 83, 119, 82, 82, 76, 44, 44,
    44, 57, 55, 39, 68, 74, 69, 74, 70, 45, 74, 71, 30, 30, 66, 30, 106, 71, 72, 74, 74, 46, 64, 40, 71, 68, 99, 66, 68, 67, 52,
    40, 52, 80,
)  # fmt: skip
# Width of a row in addition to its text, by kind: margins, arrows or a switch, and the gap between label and value.
_BESIDE = {"stepped": 90, "text": 65, "switch": 75, "slots": 50, "title": 74}


@dataclass(frozen=True)
class Box:
    """An upright rectangle."""

    left: float
    top: float
    right: float
    bottom: float

    def holds(self, point: tuple[float, float], margin: float = 0) -> bool:
        x, y = point
        return self.left - margin < x < self.right + margin and self.top - margin < y < self.bottom + margin

    def meets(self, other: Box, margin: float = 0) -> bool:
        return (
            self.left < other.right + margin
            and other.left < self.right + margin
            and self.top < other.bottom + margin
            and other.top < self.bottom + margin
        )


def node_size(slots: int, widgets: int, texts: int) -> int:
    """Return the minimum height of a node without its title. `texts` is the number of multiline widgets."""
    return SLOT * max(slots, 1) + (14 + WIDGET * widgets + TEXT * texts if widgets else 6)


def text_width(text: str, size: int = 12) -> float:
    """Return the width of a text in the editor, in pixels. Characters that are not in the table count as the widest."""
    return sum(_WIDTHS[ord(letter) - 32] if " " <= letter <= "~" else max(_WIDTHS) for letter in text) / 10 * size / 12


def row_width(kind: str, *texts: str) -> float:
    """Return the node width that a row needs to show its text in full: label and value, two slots, or the title."""
    return sum(text_width(text, 14 if kind == "title" else 12) for text in texts) + _BESIDE[kind]


def collapsed_width(node: dict[str, Any]) -> float:
    return min(node["size"][0], len(node.get("title", "")) * _LETTER + 2 * TITLE)


def around(node: dict[str, Any]) -> Box:
    """Return the bounding box of a node in editor form, including its title."""
    (x, y), (width, height) = node["pos"], node["size"]
    if node["type"] == "MarkdownNote":
        width = max(width, NOTE_WIDTH)  # the editor widens it when it opens the workflow
    if node["flags"].get("collapsed"):
        return Box(x, y - TITLE, x + collapsed_width(node), y)
    return Box(x, y - TITLE, x + width, y + height)


def view(boxes: list[Box]) -> dict[str, Any]:
    """Return scale and offset at which the graph fits into the window. Newer editors compute their own."""
    left, top = min(box.left for box in boxes), min(box.top for box in boxes) - GROUP
    width, height = max(box.right for box in boxes) - left, max(box.bottom for box in boxes) - top
    free_width, free_height = _FREE[2] - _FREE[0], _FREE[3] - _FREE[1]
    scale = math.floor(100 * min(free_width / width, free_height / height, 1)) / 100
    # Aligned left, because the minimap covers the lower right corner.
    at = (_FREE[0], _FREE[1] + (free_height - scale * height) / 2)
    return {"scale": scale, "offset": [round(at[0] / scale - left), round(at[1] / scale - top)]}


def opened_scale(boxes: list[Box]) -> float:
    """Return the scale at which newer editors open a template: it fills three quarters of the window."""
    padding = 2 * 10
    width = max(box.right for box in boxes) - min(box.left for box in boxes) + padding
    height = max(box.bottom for box in boxes) - min(box.top for box in boxes) + padding
    return 0.75 * min(WINDOW[0] / width, WINDOW[1] / height)


def slot_place(node: dict[str, Any], index: int, is_input: bool) -> tuple[float, float]:
    """Return the point where a link meets a node."""
    box = around(node)
    x = box.left if is_input else box.right
    if node["flags"].get("collapsed"):
        return x, (box.top + box.bottom) / 2
    y = node["pos"][1]
    entry = node["inputs"][index] if is_input else {}
    if "widget" not in entry:
        return x, y + (index + 0.7) * SLOT
    sockets = [one for one in node["inputs"] if "widget" not in one]
    above = index - len(sockets)  # in these workflows, the widgets above a linked one have one line each
    return x, y + SLOT * max(len(sockets), len(node["outputs"]), 1) + 8 + WIDGET * above + 10


def wire(start: tuple[float, float], end: tuple[float, float], points: int = 200) -> Iterator[tuple[float, float]]:
    """Yield points of the editor's spline from an output to an input. It is horizontal at both ends."""
    (x0, y0), (x3, y3) = start, end
    reach = 0.25 * math.dist(start, end)
    for step in range(points + 1):
        t = step / points
        a, b, c, d = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3
        yield a * x0 + b * (x0 + reach) + c * (x3 - reach) + d * x3, (a + b) * y0 + (c + d) * y3


def crossings(workflow: dict[str, Any], margin: float = 4) -> list[str]:
    """Describe every node that a link runs behind."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    found = []
    for _, source, output, target, entry, _ in workflow["links"]:
        start, end = slot_place(nodes[source], output, False), slot_place(nodes[target], entry, True)
        path = list(wire(start, end))
        for node in nodes.values():
            near = 0 if node["id"] in (source, target) else margin
            hits = [point for point in path[1:-1] if around(node).holds(point, near - 0.5)]
            if hits:
                names = [_named(nodes[one]) for one in (source, target)]
                at = f"({hits[0][0]:.0f}, {hits[0][1]:.0f})"
                found.append(f"{names[0]}.{output} -> {names[1]}.{entry} crosses {_named(node)} at {at}")
    return found


def covered_titles(workflow: dict[str, Any], margin: float = 3) -> list[str]:
    """Describe every group title that a link crosses."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    found = []
    for group in workflow["groups"]:
        left, top, _, _ = group["bounding"]
        title = Box(left, top, left + 12 + text_width(group["title"], 24), top + GROUP)
        for _, source, output, target, entry, _ in workflow["links"]:
            path = wire(slot_place(nodes[source], output, False), slot_place(nodes[target], entry, True))
            if any(title.holds(point, margin) for point in path):
                found.append(f"{_named(nodes[source])}.{output} -> {_named(nodes[target])} crosses {group['title']!r}")
    return found


def _named(node: dict[str, Any]) -> str:
    return str(node.get("title") or node["type"])
