"""Random workflows with group nodes, as old editors saved them.

Excluded is what the current editor loses when it opens a group: values of primitives, wires inside it into former widgets,
and the mode of the group node.
"""

from __future__ import annotations

import random
from typing import Any

from uniworld.nodes.headless.registry.widgets import Spec, Widget, input_specs
from uniworld.nodes.headless.workflow.group_classes import read_group

CLASSES = (
    "Source", "Pass", "Seed", "SeedNamed", "SeedOff", "Stepped", "Choice", "ChoiceNew", "ChoiceControl", "Upload",
    "UploadOptional", "Text", "Sink", "Swap",
)  # fmt: skip
VALUES = {
    "INT": (0, 1, 7, 2049),
    "FLOAT": (0, 0.25, 1.5, -3.5),
    "BOOLEAN": (True, False),
    "STRING": ("hello", "two\nlines"),
}


class Groups:
    """Builds one workflow with a node or two of one group; all choices are made by `rng`."""

    def __init__(self, infos: dict[str, dict[str, Any]], seed: int) -> None:
        self.rng, self.infos = random.Random(seed), infos
        self.nodes: list[dict[str, Any]] = []
        self.links: list[list[Any]] = []

    def workflow(self) -> dict[str, Any]:
        group = self._group()
        kind = read_group("mine", group, self.infos.get)
        specs = input_specs(kind.info)
        source = self._add("Source", [], self.infos["Source"]["output"], ["a"])
        for _ in range(self.rng.choice([1, 1, 2])):
            sockets = [self._socket(spec) for spec in specs if not spec.has_widget]
            name = self.rng.choice(["workflow>mine", "workflow/mine"])
            node = self._add(name, sockets, kind.info["output"], self._values(specs))
            for slot in range(len(sockets)):
                self._wire(source, node, slot, 0.7)
            for slot in range(2):
                self._wire(
                    node,
                    self._add("Sink", [_slot("image", "IMAGE"), _slot("any", "*")], ["STRING"], ["t", 5]),
                    slot,
                    0.8,
                )
        extra = {"groupNodes": {"mine": group}}
        return {
            "nodes": self.nodes, "links": self.links, "version": 0.4, "last_node_id": len(self.nodes),
            "last_link_id": len(self.links), "groups": [], "config": {}, "extra": extra,
        }  # fmt: skip

    def _group(self) -> dict[str, Any]:
        rng = self.rng
        nodes = [self._inside(index, rng.choice(CLASSES)) for index in range(rng.randrange(1, 5))]
        links, config = [], {}
        for index, node in enumerate(nodes):
            for slot, entry in enumerate(node["inputs"]):
                sources = [
                    (one["index"], output, made["type"])
                    for one in nodes[:index]
                    for output, made in enumerate(one["outputs"])
                    if made["type"] == entry["type"]
                ]
                if sources and rng.random() < 0.5:
                    origin, output, kind = rng.choice(sources)
                    links.append([origin, output, index, slot, 1, kind])
            if rng.random() < 0.3:
                changed = rng.choice(node["inputs"])["name"] if node["inputs"] else "s"
                config[str(index)] = {
                    "input": {changed: rng.choice([{"name": f"renamed {index}"}, {"visible": False}])},
                    "output": {"0": {"visible": rng.random() < 0.5}},
                }
        external = [[link[0], link[1], link[5]] for link in links if rng.random() < 0.4]
        return {"nodes": nodes, "links": links, "external": external, "config": config}

    def _inside(self, index: int, name: str) -> dict[str, Any]:
        info = self.infos[name]
        specs = input_specs(info)
        sockets = [self._socket(spec) for spec in specs if not spec.has_widget]
        node = _node(0, name, sockets, info["output"], self._values(specs)) | {"index": index}
        del node["id"]
        return node | ({"title": self.rng.choice(["One", "Same"])} if self.rng.random() < 0.3 else {})

    def _add(self, name: str, inputs: list[dict[str, Any]], outputs: Any, values: Any) -> dict[str, Any]:
        self.nodes.append(_node(len(self.nodes) + 1, name, inputs, outputs, values))
        return self.nodes[-1]

    def _socket(self, spec: Spec) -> dict[str, Any]:
        return _slot(spec.name, spec.kind)

    def _values(self, specs: list[Spec]) -> list[object]:
        widgets = [widget for spec in specs if spec.has_widget for widget in spec.widgets if widget.saved]
        return [self._value(widget) for widget in widgets]

    def _value(self, widget: Widget) -> object:
        if widget.helper == "control":
            return self.rng.choice(["fixed", "randomize", "increment"])
        choices = widget.choices or VALUES.get(widget.kind)
        return self.rng.choice(choices) if choices else widget.default

    def _wire(self, source: dict[str, Any], target: dict[str, Any], slot: int, chance: float) -> None:
        wanted = target["inputs"][slot]["type"]
        fitting = [
            n for n, made in enumerate(source["outputs"]) if wanted in (made["type"], "*") and made["type"] != "*"
        ]
        if fitting and self.rng.random() < chance:
            output, number = self.rng.choice(fitting), len(self.links) + 1
            self.links.append([number, source["id"], output, target["id"], slot, wanted])
            target["inputs"][slot]["link"] = number
            source["outputs"][output]["links"].append(number)


def _slot(name: str, kind: str) -> dict[str, Any]:
    return {"name": name, "type": kind, "link": None}


def _node(number: int, name: str, inputs: list[dict[str, Any]], outputs: Any, values: Any) -> dict[str, Any]:
    made = [{"name": str(kind), "type": kind, "links": []} for kind in outputs]
    shape = {"pos": [0, 0], "size": [10, 10], "flags": {}, "order": 0, "mode": 0, "properties": {}}
    return {"id": number, "type": name, "inputs": inputs, "outputs": made, "widgets_values": values, **shape}
