"""The nodes of an editor graph as they are after the editor has opened it, with slots, wires and widgets.

The editor creates a node's inputs from the current declaration of its class and matches saved wires by input name. A
slot number in the file may therefore refer to another input than in the file's own list.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ....uniworld_core.errors import UniWorldError, shown
from ..problems import node_label
from ..registry.widgets import Spec, Widget, input_specs
from .editor_graph import BYPASSED, MUTED, Graph, Link, is_off, slots
from .saved_values import WidgetValues, read_values, shows_pictures

# Returns the object_info of a node class; None for an unknown class.
Infos = Callable[[str], dict[str, object] | None]

NOTES = frozenset({"Note", "MarkdownNote"})
REROUTE, PRIMITIVE, SET, GET = "Reroute", "PrimitiveNode", "SetNode", "GetNode"
# Nodes of the editor and of KJNodes that exist only in the editor. A node class of the same name takes precedence.
VIRTUAL = NOTES | {REROUTE, PRIMITIVE, SET, GET}


@dataclass
class EditorInput:
    """An input of a node.

    Attributes:
        widget: name of its widget, None for a plain socket.
        link: the wire into it.
        promoted: on a subgraph's node, the widget inside that the input represents.
        value: value of that widget for this node.
    """

    name: str
    type: object = "*"
    widget: str | None = None
    link: Link | None = None
    promoted: Widget | None = None
    value: object = None


@dataclass
class EditorNode:
    """A node of a graph. A subgraph that is used several times shares its nodes.

    Attributes:
        type: its class, or the id of the subgraph that it opens.
        inner: the nodes of the subgraph that it opens.
    """

    id: str
    type: str
    saved: dict[str, object]
    info: dict[str, object] | None = None
    inputs: list[EditorInput] = field(default_factory=list)
    outputs: list[object] = field(default_factory=list)
    widgets: WidgetValues = field(default_factory=WidgetValues)
    inner: EditorNodes | None = None

    @property
    def muted(self) -> bool:
        return bool(self.saved.get("mode") == MUTED)

    @property
    def bypassed(self) -> bool:
        return bool(self.saved.get("mode") == BYPASSED)

    @property
    def virtual(self) -> bool:
        return self.info is None and self.type in VIRTUAL

    @property
    def title(self) -> str:
        title = self.saved.get("title")
        if isinstance(title, str) and title:
            return title
        if self.inner is not None:
            return str(self.inner.graph.definition.get("name", self.type))
        return str((self.info or {}).get("display_name") or self.type)

    @property
    def properties(self) -> dict[str, object]:
        found = self.saved.get("properties")
        return found if isinstance(found, dict) else {}

    def input(self, name: str) -> EditorInput | None:
        return next((entry for entry in self.inputs if entry.name == name), None)


@dataclass
class EditorNodes:
    """The nodes of one graph.

    Attributes:
        inputs: name and type of the inputs, for a subgraph.
        hosts: the nodes that open the subgraph.
    """

    graph: Graph
    by_id: dict[str, EditorNode] = field(default_factory=dict)
    inputs: list[tuple[str, object]] = field(default_factory=list)
    hosts: list[EditorNode] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._fed: dict[tuple[str, int], list[tuple[EditorNode, EditorInput]]] | None = None

    def fed_by(self, node_id: str, slot: int) -> list[tuple[EditorNode, EditorInput]]:
        """Return the inputs wired to an output, or to an input of the subgraph itself, oldest wire first."""
        if self._fed is None:
            self._fed = {}
            wired = [(node, entry) for node in self.by_id.values() for entry in node.inputs if entry.link is not None]
            for node, entry in sorted(wired, key=_age):
                assert entry.link is not None
                self._fed.setdefault((entry.link.origin_id, entry.link.origin_slot), []).append((node, entry))
        return self._fed.get((node_id, slot), [])

    def rewire(self, entry: EditorInput, link: Link) -> None:
        entry.link, self._fed = link, None


def _age(wired: tuple[EditorNode, EditorInput]) -> tuple[bool, object]:
    link_id = wired[1].link.id if wired[1].link is not None else 0
    return isinstance(link_id, str), link_id


def read_nodes(
    graph: Graph, infos: Infos, full_id: Callable[[str], str], inner: Callable[[str], EditorNodes | None]
) -> EditorNodes:
    """Read the nodes of a graph.

    Args:
        full_id: returns the id of a node for error messages.
        inner: returns the nodes of a subgraph by its id; None if there is no such subgraph.

    Raises:
        UniWorldError: the saved values of a node match no known layout.
    """
    found = EditorNodes(graph)
    specs: dict[str, list[Spec]] = {}
    problems: list[str] = []
    found.inputs = [(str(entry.get("name")), entry.get("type", "*")) for entry in slots(graph.definition, "inputs")]
    for node_id, saved in graph.nodes.items():
        kind = saved["type"]
        node = EditorNode(node_id, kind, saved, infos(kind))
        # A muted or bypassed subgraph is not opened; only its slots matter.
        node.inner = inner(kind)
        if node.inner is not None:
            node.info = None
            node.inner.hosts.append(node)
            _lay_out_subgraph(node, node.inner)
        elif node.info is not None:
            if kind not in specs:
                specs[kind] = input_specs(node.info)
            try:
                _lay_out_class(node, node.info, specs[kind])
            except UniWorldError as error:
                problems.append(f"{node_label(full_id(node_id), kind)}: {error}")
        else:
            _lay_out_saved(node)
        _connect(graph, node)
        found.by_id[node_id] = node
    if problems:
        raise UniWorldError("\n".join(problems))
    return found


def _lay_out_class(node: EditorNode, info: dict[str, Any], specs: list[Spec]) -> None:
    saved_values = node.saved.get("widgets_values")
    if saved_values is not None and not isinstance(saved_values, (list, dict)):
        if not is_off(node.saved):
            raise UniWorldError(
                f'"widgets_values" is {shown(saved_values)}; it must be a list of values. '
                "Save the workflow again in the editor."
            )
        saved_values = None
    try:
        named = node.saved.get("widgets_values_named")
        node.widgets = read_values(specs, saved_values, named, shows_pictures(info, specs))
    except UniWorldError:
        if not is_off(node.saved):
            raise
        node.widgets = read_values(specs, None)
    node.inputs = class_inputs(specs, node.widgets)
    known = {entry.name for entry in node.inputs}
    for saved in slots(node.saved, "inputs"):
        name, widget = saved.get("name"), saved.get("widget")
        if not isinstance(name, str) or name in known:
            continue
        widget_name = widget.get("name") if isinstance(widget, dict) else None
        widget_name = widget_name if isinstance(widget_name, str) else None
        # An input of a removed widget is dropped. Any other unknown input was added by a program and is kept.
        if widget_name is None or widget_name in node.widgets.widgets:
            node.inputs.append(EditorInput(name, saved.get("type", "*"), widget_name))
    outputs = slots(node.saved, "outputs")
    declared = ["COMBO" if isinstance(kind, list) else kind for kind in info.get("output", ())]
    node.outputs = declared + [entry.get("type", "*") for entry in outputs[len(declared) :]]


def class_inputs(specs: list[Spec], values: WidgetValues) -> list[EditorInput]:
    """Return the inputs in the order in which the editor adds them to a new node: sockets first, then widgets."""
    sockets: list[EditorInput] = []
    with_widgets: list[EditorInput] = []
    pending = list(reversed(specs))
    while pending:
        spec = pending.pop()
        if spec.has_widget:
            with_widgets.append(EditorInput(spec.name, spec.kind, spec.name))
            pending += reversed(spec.nested_inputs(values.values.get(spec.name)))
        else:
            sockets.append(EditorInput(spec.name, spec.kind))
    return sockets + with_widgets


def _lay_out_subgraph(node: EditorNode, inner: EditorNodes) -> None:
    node.inputs = [EditorInput(name, kind) for name, kind in inner.inputs]
    node.outputs = [entry.get("type", "*") for entry in slots(inner.graph.definition, "outputs")]


def _lay_out_saved(node: EditorNode) -> None:
    """Lay out a node without a class: one of the editor's own, or one of a missing pack."""
    for saved in slots(node.saved, "inputs"):
        widget = saved.get("widget")
        name = widget.get("name") if isinstance(widget, dict) else None
        node.inputs.append(EditorInput(str(saved.get("name", "")), saved.get("type", "*"), name))
    node.outputs = [entry.get("type", "*") for entry in slots(node.saved, "outputs")]
    if node.type == REROUTE and not node.inputs:
        node.inputs = [EditorInput("")]


def _connect(graph: Graph, node: EditorNode) -> None:
    """Assign the wires into a node to its inputs: by the name of the saved input if it has one, else by slot number."""
    into = {link.target_slot: link for link in graph.links_into.get(node.id, ())}
    named: dict[int, tuple[Link, list[str]]] = {}
    for saved in slots(node.saved, "inputs"):
        link = graph.link(saved.get("link"))
        if link is not None and link.target_id == node.id:
            named.setdefault(id(link), (link, []))[1].append(str(saved.get("name", "")))
    placed: dict[int, Link] = {}
    for link, names in named.values():
        places = [slot for slot, entry in enumerate(node.inputs) if entry.name in names]
        if places:
            placed.setdefault(link.target_slot if link.target_slot in places else places[0], link)
    for slot, link in into.items():
        # If the saved input of this wire has been removed from the class, the wire is dropped with it.
        removed = id(link) in named and node.info is not None
        if not removed and link not in placed.values() and 0 <= slot < len(node.inputs):
            placed.setdefault(slot, link)
    for slot, link in placed.items():
        node.inputs[slot].link = link
