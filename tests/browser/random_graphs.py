"""Random workflows in the editor's form, with every construct that the conversion has rules for.

Excluded are cases with bugs in the editor: forced inputs next to seeds (its issue 3399), and objects as promoted values.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from typing import Any

from uniworld.nodes.headless.registry.widgets import Widget, input_specs

LONE = ("PrimitiveNode", "Note", "MarkdownNote", "Reroute")
WIRES = ("INT", "STRING", "FLOAT", "IMAGE", "BOOLEAN", "COMBO")
DYNAMIC = (["A", "one", 5, "S", "Z"], ["A", "two", 1.25, "Z"], ["A", "none", "Z"])
TEXTS = ("hello", "", "%Seed.seed%", "a/b:c", "%T1.text%_%date:yyyy%", "two\nlines", "a {fox} \\{b // c")
NUMBERS = {"INT": (0, 1, 7, 13, 100, 2049, -4), "FLOAT": (0, 0.25, 1.5, -3.5, 3000.5, 77.37)}
PRIMITIVES = {
    "INT": (77, 3001, 6), "FLOAT": (0.37, 12.5, -2.25), "STRING": ("prim", "p_%Seed.name%", "{p} /* q */"), "BOOLEAN": (True,),
    "COMBO": ("y",),
}  # fmt: skip


class Builder:
    """Builds one workflow; all choices are made by `rng`."""

    def __init__(self, infos: dict[str, dict[str, Any]], seed: int) -> None:
        self.rng = random.Random(seed)
        self.infos = infos
        self.subgraphs: list[Graph] = []
        # Older editors number the nodes and links of every subgraph from 1.
        self.counts_from_one = self.rng.random() < 0.3
        self.ids = {"node": 0, "link": 0}
        self.highest = 0

    def workflow(self) -> dict[str, Any]:
        rng = self.rng
        for _ in range(rng.choice([0, 1, 2])):
            graph = Graph(self, is_subgraph=True)
            graph.fill(rng.randrange(2, 6))
            self.subgraphs.append(graph)
        top = Graph(self)
        top.fill(rng.randrange(4, 12))
        as_objects = rng.random() < 0.3
        return {
            "nodes": top.nodes, "links": top.links if as_objects else [list(link.values()) for link in top.links],
            "version": 1 if as_objects else 0.4, "last_node_id": self.highest,
            "last_link_id": self.highest, "groups": [], "config": {}, "extra": {},
            "state": {"lastNodeId": self.highest, "lastLinkId": self.highest, "lastGroupId": 0, "lastRerouteId": 0},
            "definitions": {"subgraphs": [graph.definition() for graph in self.subgraphs]},
        }  # fmt: skip

    def next(self, what: str) -> int:
        self.ids[what] += 1
        self.highest = max(self.highest, *self.ids.values())
        return self.ids[what]


class Graph:
    def __init__(self, builder: Builder, is_subgraph: bool = False) -> None:
        self.builder, self.rng = builder, builder.rng
        self.nodes: list[dict[str, Any]] = []
        self.links: list[dict[str, Any]] = []
        self.inputs: list[dict[str, Any]] = []
        self.outputs: list[dict[str, Any]] = []
        self.id = str(uuid.UUID(int=self.rng.getrandbits(128)))
        if builder.counts_from_one:
            builder.ids = {"node": 0, "link": 0}
        if is_subgraph:
            self.inputs = [self._slot(f"in{n}", self.rng.choice(WIRES)) for n in range(self.rng.randrange(5))]
            self.outputs = [self._slot(f"out{n}", self.rng.choice(WIRES[:4])) for n in range(self.rng.randrange(1, 3))]

    def _slot(self, name: str, kind: str) -> dict[str, Any]:
        number = self.rng.getrandbits(128)
        return {"id": str(uuid.UUID(int=number)), "name": name, "type": kind, "linkIds": [], "pos": [0, 0]}

    def definition(self) -> dict[str, Any]:
        box = {"bounding": [0, 0, 120, 60]}
        return {
            "id": self.id, "name": f"Sub {self.id[:4]}", "version": 1, "revision": 0, "config": {}, "extra": {},
            "state": {"lastGroupId": 0, "lastNodeId": 0, "lastLinkId": 0, "lastRerouteId": 0}, "groups": [], "widgets": [],
            "inputNode": {"id": -10, **box}, "outputNode": {"id": -20, **box}, "inputs": self.inputs,
            "outputs": self.outputs, "nodes": self.nodes, "links": self.links,
        }  # fmt: skip

    # --- nodes -------------------------------------------------------------------------------------------------------

    def fill(self, count: int) -> None:
        makers: list[Callable[[], Any]] = [self._class_node] * 12 + [self._reroute] * 2 + [self._primitive] * 3
        makers += [self._note] + [self._host] * (4 if self.builder.subgraphs else 0)
        for _ in range(count):
            self.rng.choice(makers)()
        for node in self.nodes:
            for slot in range(len(node["inputs"])):
                self._feed(node, slot)
        for slot, output in enumerate(self.outputs):
            found = self._sources(output["type"], self.nodes)
            if found:
                self._link(*self.rng.choice(found), None, slot)

    def _add(self, kind: str, inputs: list[Any], outputs: list[Any], values: Any = None, **more: Any) -> dict[str, Any]:
        number = self.builder.next("node")
        node = {
            "id": number, "type": kind, "pos": [number * 30, 0], "size": [200, 80], "flags": {}, "order": number,
            "mode": self.rng.choices([0, 2, 4], [10, 1, 1.5])[0], "inputs": inputs, "outputs": outputs,
            "properties": {"Node name for S&R": kind} if self.rng.random() < 0.8 else {},
        }  # fmt: skip
        if self.rng.random() < 0.15:
            node["title"] = f"T{number}"
        if values is not None:
            node["widgets_values"] = values
        self.nodes.append(node | more)
        return self.nodes[-1]

    def _class_node(self) -> None:
        rng = self.rng
        kind = rng.choice(list(self.builder.infos))
        info = self.builder.infos[kind]
        inputs, values = [], []
        for spec in input_specs(info):
            entry: dict[str, Any] = {"name": spec.name, "type": spec.kind, "link": None}
            if spec.has_widget:
                entry["widget"] = {"name": spec.name}
                values += [self._value(widget) for widget in spec.widgets if widget.saved]
            inputs.append(entry)
        if kind == "Dynamic":
            values = list(rng.choice(DYNAMIC))
            inputs += [{"name": "w.image", "type": "IMAGE", "link": None}] * (values[1] == "two")
        if rng.random() < 0.3:
            rng.shuffle(inputs)
        if rng.random() < 0.3:  # as the editor saves a graph that has been queued
            inputs = [entry for entry in inputs if "widget" not in entry or rng.random() < 0.5]
        outputs = [
            {"name": name, "type": kind, "links": None} for name, kind in zip(info["output_name"], info["output"])
        ]
        self._add(kind, inputs, outputs, values if rng.random() < 0.94 else None)

    def _value(self, widget: Widget) -> Any:
        rng = self.rng
        if widget.helper == "control":
            return rng.choice(["fixed", "randomize", "increment"])
        if widget.kind in NUMBERS:
            return rng.choice(NUMBERS[widget.kind])
        if widget.kind in ("STRING", "TEXTAREA", "MARKDOWN"):
            return rng.choice(TEXTS)
        if widget.kind == "BOOLEAN":
            return rng.random() < 0.5
        return (
            rng.choice(widget.choices) if widget.choices and not widget.options.get("multi_select") else widget.default
        )

    def _reroute(self) -> None:
        self._add("Reroute", [{"name": "", "type": "*", "link": None}], [{"name": "", "type": "*", "links": None}])

    def _primitive(self) -> None:
        kind = self.rng.choice(list(PRIMITIVES))
        values = [self.rng.choice(PRIMITIVES[kind]), *(["fixed"] if kind in ("INT", "FLOAT", "COMBO") else [])]
        output = {"name": kind, "type": kind, "links": None, "widget": {"name": "x"}}
        replace = {"Run widget replace on values": kind == "STRING" and self.rng.random() < 0.5}
        self._add("PrimitiveNode", [], [output], values, properties=replace)

    def _note(self) -> None:
        self._add(self.rng.choice(["Note", "MarkdownNote"]), [], [], ["a note"])

    def _host(self) -> None:
        rng = self.rng
        inner = rng.choice(self.builder.subgraphs)
        inputs, values, own = [], [], []
        for slot, declared in enumerate(inner.inputs):
            entry: dict[str, Any] = {"name": declared["name"], "type": declared["type"], "link": None}
            if inner._shows_widget(slot):
                entry["widget"] = {"name": declared["name"]}
                values.append(f"H{slot}")
                own.append(["-1", declared["name"]])
            inputs.append(entry)
        properties: dict[str, Any] = {}
        if rng.random() < 0.4:
            proxies = [entry for entry in own if rng.random() < 0.8] + inner._promotable(rng)
            rng.shuffle(proxies)
            values = [f"P{number}" for number in range(len(proxies))]
            properties = {"proxyWidgets": proxies}
        outputs = [{"name": entry["name"], "type": entry["type"], "links": None} for entry in inner.outputs]
        self._add(inner.id, inputs, outputs, values if rng.random() < 0.8 else [], properties=properties)

    def _shows_widget(self, slot: int) -> bool:
        fed = [link for link in self.links if (link["origin_id"], link["origin_slot"]) == (-10, slot)]
        targets = {node["id"]: node for node in self.nodes}
        return any("widget" in targets[link["target_id"]]["inputs"][link["target_slot"]] for link in fed)

    def _promotable(self, rng: random.Random) -> list[list[str]]:
        found = []
        for node in self.nodes:
            widgets = ["value"] if node["type"] == "PrimitiveNode" else []
            if node["type"] in self.builder.infos:
                specs = input_specs(self.builder.infos[node["type"]])
                widgets = [spec.name for spec in specs if spec.has_widget and spec.widgets[0].saved]
            if widgets and rng.random() < 0.5:
                found.append([str(node["id"]), rng.choice(widgets)])
        return found

    # --- links -------------------------------------------------------------------------------------------------------

    def _feed(self, node: dict[str, Any], slot: int) -> None:
        rng, entry = self.rng, node["inputs"][slot]
        if rng.random() > (0.25 if "widget" in entry else 0.8):
            return
        own = [number for number, declared in enumerate(self.inputs) if _fits(declared["type"], entry["type"])]
        if own and rng.random() < 0.4:
            self._link(None, rng.choice(own), node, slot)
            return
        before = [one for one in self.nodes if one["id"] < node["id"]]
        found = self._sources(entry["type"], before)
        if "widget" not in entry and node["type"] != "Reroute":
            found = [one for one in found if one[0]["type"] != "PrimitiveNode"]
        if found:
            source, number = rng.choice(found)
            self._link(source, number, node, slot)
            if node["type"] == "Reroute":
                node["outputs"][0]["type"] = source["outputs"][number]["type"]

    def _sources(self, kind: str, nodes: list[dict[str, Any]]) -> list[tuple[dict[str, Any], int]]:
        return [
            (node, slot) for node in nodes for slot, output in enumerate(node["outputs"]) if _fits(output["type"], kind)
        ]

    def _link(self, source: Any, source_slot: int, target: Any, slot: int) -> None:
        number = self.builder.next("link")
        if target is None:
            self.outputs[slot]["linkIds"] = [number]
        else:
            target["inputs"][slot]["link"] = number
        if source is None:
            self.inputs[source_slot]["linkIds"].append(number)
        else:
            output = source["outputs"][source_slot]
            output["links"] = [*(output["links"] or []), number]
        kind = self.inputs[source_slot]["type"] if source is None else source["outputs"][source_slot]["type"]
        self.links.append({
            "id": number, "origin_id": -10 if source is None else source["id"], "origin_slot": source_slot,
            "target_id": -20 if target is None else target["id"], "target_slot": slot, "type": kind,
        })  # fmt: skip


def _fits(left: str, right: str) -> bool:
    lefts, rights = set(left.split(",")), set(right.split(","))
    return "*" in lefts | rights or bool(lefts & rights)
