"""Tokens in file names, such as `%Sampler.seed%` and `%date:yyyy-MM-dd%`, replaced as the editor does on queueing.

A node is found by its property "Node name for S&R" or, if no node has that name, by its title. All nodes of the graph
count, including muted ones, primitives, notes, and those in subgraphs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ..registry.widgets import as_text
from ..storage.name_tokens import format_date, without_separators
from .editor_nodes import NOTES, EditorNode, EditorNodes

NAME_PROPERTY = "Node name for S&R"
PREFIX_INPUT = "filename_prefix"
# The classes in whose `filename_prefix` the editor replaces tokens.
SAVE_CLASSES = frozenset(
    {
        "SaveImage", "SaveImageAdvanced", "SaveSVGNode", "SaveVideo", "SaveAnimatedWEBP", "SaveWEBM", "SaveAudio",
        "SaveAudioMP3", "SaveAudioOpus", "SaveAudioAdvanced", "SaveGLB", "Save3DAdvanced", "SaveGaussianSplat",
        "SavePointCloud", "SaveAnimatedPNG", "CLIPSave", "VAESave", "ModelSave", "LoraSave", "SaveLatent",
    }
)  # fmt: skip
_TOKEN = re.compile(r"%([^%]+)%")


@dataclass
class NamedNode:
    """A node that a token may refer to.

    Attributes:
        name: its property "Node name for S&R".
        values: values of its widgets by name.
    """

    name: str | None
    title: str
    values: dict[str, object]


@dataclass
class Replacements:
    """The values of the tokens of a workflow.

    Attributes:
        nodes: in the editor's order; a token refers to the first node that matches.
        by_id: the same nodes by id in API form. A node in a subgraph that is used several times has several ids.
        prefixes: ids of the nodes whose file names contain tokens to replace.
    """

    nodes: list[NamedNode] = field(default_factory=list)
    by_id: dict[str, NamedNode] = field(default_factory=dict)
    prefixes: set[str] = field(default_factory=set)

    def copied(self) -> Replacements:
        """Return a copy whose values can be set independently."""
        copies = {id(node): NamedNode(node.name, node.title, dict(node.values)) for node in self.nodes}
        nodes = [copies[id(node)] for node in self.nodes]
        return Replacements(nodes, {key: copies[id(node)] for key, node in self.by_id.items()}, set(self.prefixes))

    def set(self, full_id: str, name: str, value: object) -> None:
        """Set the value of a node's widget, if the node is known."""
        if full_id in self.by_id:
            self.by_id[full_id].values[name] = value

    def apply(self, prompt: dict[str, Any], now: datetime) -> None:
        """Replace the tokens in the file names of a workflow in API form, in place."""
        for full_id in self.prefixes:
            inputs = prompt[full_id]["inputs"]
            if isinstance(inputs.get(PREFIX_INPUT), str):
                inputs[PREFIX_INPUT] = replace_tokens(inputs[PREFIX_INPUT], self.nodes, now)


def named_nodes(nodes: EditorNodes) -> Iterator[tuple[EditorNode, NamedNode]]:
    """Yield the nodes of a graph and of its subgraphs; nodes inside a subgraph come before the node that opens it."""
    pending: list[tuple[Iterator[EditorNode], EditorNode | None]] = [(iter(nodes.by_id.values()), None)]
    while pending:
        here, host = pending[-1]
        node = next(here, None)
        if node is None:
            pending.pop()
            if host is not None:
                yield host, _named(host)
        elif node.inner is not None:
            pending.append((iter(node.inner.by_id.values()), node))
        else:
            yield node, _named(node)


def _named(node: EditorNode) -> NamedNode:
    name = node.properties.get(NAME_PROPERTY)
    if NAME_PROPERTY not in node.properties and node.info is not None and node.type not in SAVE_CLASSES:
        name = node.type
    return NamedNode(name if isinstance(name, str) else None, node.title, _values(node))


def _values(node: EditorNode) -> dict[str, object]:
    if node.inner is not None:
        return {entry.name: entry.value for entry in node.inputs if entry.promoted is not None}
    if node.virtual and node.type in NOTES:
        saved = node.saved.get("widgets_values")
        return {"text": saved[0]} if isinstance(saved, list) and saved else {"text": ""}
    return node.widgets.values


def replace_tokens(text: str, nodes: list[NamedNode], now: datetime) -> str:
    """Replace the tokens of a text; unknown ones are kept."""

    def fill(match: re.Match[str]) -> str:
        name, *rest = match[1].split(".")
        if len(rest) != 1:
            return format_date(name[5:], now) if name.startswith("date:") else match[0]
        node = next((one for one in nodes if one.name == name), None)
        node = node or next((one for one in nodes if one.title == name), None)
        if node is None or rest[0] not in node.values:
            return match[0]
        return without_separators(as_text(node.values[rest[0]]))

    return _TOKEN.sub(fill, text)
