"""The class of a group node of old editors: its inputs, widgets and outputs, which are those of the nodes inside.

Source: `GroupNodeConfig` of comfyui-frontend-package 1.58.1. This differs in one place: the editor has no widget for a
primitive of a list of choices, although older editors saved its value.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ....uniworld_core.errors import UniWorldError
from ..registry.widgets import input_specs, read_spec
from .editor_graph import slots
from .editor_nodes import PRIMITIVE, REROUTE, Infos

PREFIXES = ("workflow>", "workflow/")
_SEEDS = ("seed", "noise_seed")

# An input's type or choices, and its options, as in object_info.
Entry = list[Any]


@dataclass(frozen=True)
class GroupClass:
    """What a group node shows of the nodes inside.

    Attributes:
        nodes: the nodes inside. Links and places refer to them by index.
        links: the links inside, as (origin node, output, target node, input).
        info: its object_info.
        inputs: for each of its inputs, the node inside and the name of that node's input.
        outputs: for each of its outputs, the node inside and the number of that node's output.
    """

    nodes: list[dict[str, Any]]
    links: list[tuple[int, int, int, int]]
    info: dict[str, Any]
    inputs: dict[str, tuple[int, str]]
    outputs: list[tuple[int, int]]


def read_group(name: str, definition: object, infos: Infos) -> GroupClass:
    """Read a definition in `extra.groupNodes`.

    Raises:
        UniWorldError: the definition is malformed.
    """
    again = "Save the workflow again in the editor."
    if not isinstance(definition, dict) or not isinstance(definition.get("nodes"), list):
        raise UniWorldError(f"The definition of the group node '{name}' has no list of nodes. {again}")
    for index, node in enumerate(definition["nodes"]):
        if not isinstance(node, dict) or not isinstance(node.get("type"), str):
            raise UniWorldError(f"Node {index} of the group node '{name}' has no node class. {again}")
        if node["type"].startswith(PREFIXES):
            raise UniWorldError(f"The group node '{name}' contains a group node, '{node['type']}': ungroup it.")
    return _Reader(definition, infos).read()


def _links(definition: dict[str, Any]) -> list[list[Any]]:
    """Return the links between nodes of a group. Those from other nodes have no origin, and are not needed."""
    entries = definition.get("links")
    count = len(definition["nodes"])
    return [
        entry
        for entry in (entries if isinstance(entries, list) else ())
        if isinstance(entry, list)
        and len(entry) >= 4
        and all(isinstance(part, int) and part >= 0 for part in entry[:4])
        and max(entry[0], entry[2]) < count
    ]


@dataclass
class _Reader:
    definition: dict[str, Any]
    infos: Infos
    required: dict[str, Entry] = field(default_factory=dict)
    inputs: dict[str, tuple[int, str]] = field(default_factory=dict)
    outputs: list[tuple[int, int]] = field(default_factory=list)
    types: list[object] = field(default_factory=list)
    used: dict[str, int] = field(default_factory=dict)  # names of inputs, and how often each was wanted
    primitives: dict[int, Entry] = field(default_factory=dict)
    # Widgets that have become sockets: node inside, socket, name and entry. The editor adds them after all others.
    converted: list[tuple[int, int, str, Entry]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.nodes: list[dict[str, Any]] = self.definition["nodes"]
        self.links = _links(self.definition)
        self.into = {(entry[2], entry[3]): entry for entry in self.links}
        self.out_of: dict[tuple[int, int], list[list[Any]]] = {}
        for entry in self.links:
            self.out_of.setdefault((entry[0], entry[1]), []).append(entry)
        external = self.definition.get("external")
        self.external = {
            (entry[0], entry[1]): entry[2]
            for entry in (external if isinstance(external, list) else ())
            if isinstance(entry, list) and len(entry) >= 3 and all(isinstance(part, int) for part in entry[:2])
            if entry[2] is not None
        }

    def read(self) -> GroupClass:
        for index, node in enumerate(self.nodes):
            declared = self._declared(index, node)
            if declared is not None:
                self._read_inputs(index, node, declared[0])
                self._read_outputs(index, declared[1])
        for place in self.converted:
            self._add_or_feed(*place)
        info = {"input": {"required": self.required}, "output": self.types, "display_name": "group node"}
        links = [(entry[0], entry[1], entry[2], entry[3]) for entry in self.links]
        return GroupClass(self.nodes, links, info, self.inputs, self.outputs)

    def _declared(self, index: int, node: dict[str, Any]) -> tuple[dict[str, Entry], list[object]] | None:
        """Return the inputs and outputs of a node inside; None if the group shows none of them."""
        info = self.infos(node["type"])
        if info is not None:
            return _declared_inputs(info), list(info.get("output", ()))  # type: ignore[call-overload]
        if node["type"] == PRIMITIVE:
            return self._declared_primitive(index, node)
        if node["type"] == REROUTE:
            return self._declared_reroute(index)
        return None

    def _declared_primitive(self, index: int, node: dict[str, Any]) -> tuple[dict[str, Entry], list[object]] | None:
        fed = self.out_of.get((index, 0))
        if not fed:
            return None
        kind = fed[0][5] if len(fed[0]) > 5 else None
        if kind == "COMBO":
            widget = next(iter(slots(node, "outputs")), {}).get("widget")
            target = self.infos(self.nodes[fed[0][2]]["type"])
            wanted = widget.get("name") if isinstance(widget, dict) else None
            kind = _declared_inputs(target).get(str(wanted), [kind])[0] if target is not None else kind
        entry = self.primitives[index] = [kind, {}]
        return {"value": entry}, [kind]

    def _declared_reroute(self, index: int) -> tuple[dict[str, Entry], list[object]] | None:
        fed, source = self.out_of.get((index, 0)), self.into.get((index, 0))
        if source is not None and fed and (index, 0) not in self.external:
            return None
        kind: object = "*"
        if fed:
            kind = next((self._slot_type(entry[2], "inputs", entry[3]) for entry in fed), "*")
        elif source is not None:
            kind = self._slot_type(source[0], "outputs", source[1])
        elif (index, 0) in self.external:
            kind = self.external[index, 0]
        return {str(kind): [kind, {"forceInput": True}]}, [kind]

    def _slot_type(self, index: int, side: str, slot: int) -> object:
        entries = slots(self.nodes[index], side)
        return entries[slot].get("type", "*") if slot < len(entries) else "*"

    def _read_inputs(self, index: int, node: dict[str, Any], declared: dict[str, Entry]) -> None:
        saved = slots(node, "inputs")
        converted: dict[int, str] = {}
        sockets = []
        for name, entry in declared.items():
            if not _has_widget(name, entry):
                sockets.append(name)
                continue
            slot = next((n for n, one in enumerate(saved) if one.get("name") == name == _widget_of(one)), None)
            if slot is None:
                self._add(index, name, entry)
            else:
                converted[slot] = name
        for position, name in enumerate(sockets):
            slot = next((n for n, one in enumerate(saved) if one.get("name") == name), position)
            self._add_or_feed(index, slot, name, declared[name])
        self.converted += [(index, slot, name, declared[name]) for slot, name in sorted(converted.items())]

    def _add_or_feed(self, index: int, slot: int, name: str, entry: Entry) -> None:
        if (index, slot) in self.into:
            self._feed(self.into[index, slot][0], entry)
        else:
            self._add(index, name, entry)

    def _add(self, index: int, name: str, entry: Entry) -> None:
        """Add an input to the group node, under a name that no other one has."""
        node, config = self.nodes[index], self._config(index, "input", name)
        label = next((one.get("label") for one in slots(node, "inputs") if one.get("name") == name), None)
        shown, prefix = str(config.get("name") or label or name), ""
        first = shown
        if (node["type"] == PRIMITIVE and node.get("title")) or shown in self.used:
            prefix = f"{node.get('title') or node['type']} "
            first = shown = prefix + name
            if shown in self.used:
                shown = f"{prefix}{self.used[shown]} {name}"
        self.used[first] = self.used.get(first, 1) + 1
        if not _has_widget(name, entry) and config.get("visible") is False:
            return
        if name in _SEEDS:
            entry = [entry[0], {**_options(entry), "control_after_generate": f"{prefix}control_after_generate"}]
        self.required[shown] = entry
        self.inputs[shown] = (index, "" if node["type"] == REROUTE else name)

    def _feed(self, origin: int, target: Entry) -> None:
        """Give the widget of a primitive, which has been read already, the options of the input that it feeds."""
        if origin in self.primitives:
            own = any(place == (origin, "value") for place in self.inputs.values())
            self.primitives[origin][1:] = [{**_options(target), **({"control_after_generate": True} if own else {})}]

    def _read_outputs(self, index: int, types: list[object]) -> None:
        for slot, kind in enumerate(types):
            visible = self._config(index, "output", slot).get("visible")
            inside = (index, slot) in self.out_of and (index, slot) not in self.external
            if not inside if visible is None else visible:
                self.outputs.append((index, slot))
                self.types.append(kind)

    def _config(self, index: int, side: str, key: object) -> dict[str, Any]:
        """Return what the user has set for an input or an output inside: a name, and whether it is visible."""
        found = _get(_get(_get(self.definition.get("config"), index), side), key)
        return found if isinstance(found, dict) else {}


def _get(holder: object, key: object) -> object:
    if isinstance(holder, list) and isinstance(key, int):
        return holder[key] if key < len(holder) else None
    return holder.get(str(key)) if isinstance(holder, dict) else None


def _widget_of(saved: dict[str, object]) -> object:
    widget = saved.get("widget")
    return widget.get("name") if isinstance(widget, dict) else None


def _has_widget(name: str, entry: Entry) -> bool:
    return isinstance(entry[0], (str, list, tuple)) and read_spec(name, entry).has_widget


def _options(entry: Entry) -> dict[str, Any]:
    return entry[1] if len(entry) > 1 and isinstance(entry[1], dict) else {}


def _declared_inputs(info: dict[str, Any]) -> dict[str, Entry]:
    """Return the inputs of a class in the order of its declaration. An upload button follows the required ones."""
    required, optional = (info["input"].get(section) or {} for section in ("required", "optional"))
    button = next((spec for spec in input_specs(info) if spec.name == "upload" and spec.name not in required), None)
    buttons = {"upload": [button.widget_kind, {}]} if button is not None and "upload" not in optional else {}
    return {name: list(entry) for name, entry in {**required, **buttons, **optional}.items()}
