"""Build workflows in the editor's form for the tests, as the editor saves them."""

from __future__ import annotations

import uuid
from typing import Any

from uniworld.nodes.headless.registry.registry import Registry
from uniworld.nodes.headless.registry.widgets import input_specs


class Graph:
    """A workflow or a subgraph under construction."""

    def __init__(self, registry: Registry, before: int = 0) -> None:
        """Create an empty graph.

        Args:
            before: the first node has the next id. The editor assigns every id only once per workflow.
        """
        self.registry, self.before = registry, before
        self.nodes: list[dict[str, Any]] = []
        self.links: list[dict[str, Any]] = []
        self.inputs: list[dict[str, Any]] = []
        self.outputs: list[dict[str, Any]] = []
        self.id = str(uuid.UUID(int=len(registry.classes) + id(self) % 2**64))

    def add(
        self, kind: str, values: Any = None, inputs: Any = None, outputs: Any = None, **more: Any
    ) -> dict[str, Any]:
        """Add a node. Its slots come from its class, or from `inputs` and `outputs` if `kind` is not a class."""
        if kind in self.registry.classes:
            info = self.registry.info(kind)
            declared = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
            widgets = {spec.name for spec in input_specs(info) if spec.has_widget}
            inputs = [
                {"name": name, "type": entry[0] if isinstance(entry[0], str) else "COMBO", "link": None}
                | ({"widget": {"name": name}} if name in widgets else {})
                for name, entry in declared.items()
            ]
            outputs = [{"name": name, "type": t} for name, t in zip(info["output_name"], info["output"])]
        node = {
            "id": self.before + len(self.nodes) + 1, "type": kind, "pos": [0, 0], "size": [1, 1], "flags": {}, "order": 0, "mode": 0,
            "inputs": inputs or [], "outputs": [{**entry, "links": []} for entry in outputs or []], "properties": {},
            **({} if values is None else {"widgets_values": values}), **more,
        }  # fmt: skip
        self.nodes.append(node)
        return node

    def link(self, source: Any, source_slot: int, target: Any, target_input: str | int) -> None:
        """Add a wire; `source` and `target` are nodes, or None for the boundary of a subgraph."""
        link_id = len(self.links) + 1
        if target is None:
            slot = int(target_input)
            self.outputs[slot]["linkIds"].append(link_id)
        else:
            names = [entry["name"] for entry in target["inputs"]]
            slot = target_input if isinstance(target_input, int) else names.index(target_input)
            target["inputs"][slot]["link"] = link_id
        if source is None:
            self.inputs[source_slot]["linkIds"].append(link_id)
        else:
            source["outputs"][source_slot]["links"].append(link_id)
        self.links.append({
            "id": link_id, "origin_id": -10 if source is None else source["id"], "origin_slot": source_slot,
            "target_id": -20 if target is None else target["id"], "target_slot": slot, "type": "*",
        })  # fmt: skip

    def boundary(self, inputs: list[tuple[str, str]], outputs: list[tuple[str, str]]) -> None:
        """Declare the inputs and outputs of a subgraph, as (name, type)."""
        self.inputs = [
            {"id": f"i{n}", "name": name, "type": kind, "linkIds": []} for n, (name, kind) in enumerate(inputs)
        ]
        self.outputs = [
            {"id": f"o{n}", "name": name, "type": kind, "linkIds": []} for n, (name, kind) in enumerate(outputs)
        ]

    def add_subgraph(self, inner: Graph, values: Any = None, **more: Any) -> dict[str, Any]:
        """Add a node that opens a subgraph; `proxies` becomes its `properties.proxyWidgets`."""
        if "proxies" in more:
            more["properties"] = {"proxyWidgets": more.pop("proxies")}
        inputs = [{"name": entry["name"], "type": entry["type"], "link": None} for entry in inner.inputs]
        outputs = [{"name": entry["name"], "type": entry["type"]} for entry in inner.outputs]
        return self.add(inner.id, values, inputs, outputs, **more)

    def definition(self) -> dict[str, Any]:
        return {
            "id": self.id, "name": "Part", "version": 1, "nodes": self.nodes, "links": self.links,
            "inputs": self.inputs, "outputs": self.outputs, "inputNode": {"id": -10}, "outputNode": {"id": -20},
        }  # fmt: skip

    def save(self, *subgraphs: Graph, schema: float = 0.4) -> dict[str, Any]:
        """Return the workflow in schema 0.4 (links as lists) or 1.0 (links as objects)."""
        keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
        links = self.links if schema == 1 else [[link[key] for key in keys] for link in self.links]
        saved: dict[str, Any] = {"version": schema, "nodes": self.nodes, "links": links, "groups": [], "extra": {}}
        if subgraphs:
            saved["definitions"] = {"subgraphs": [inner.definition() for inner in subgraphs]}
        return saved
