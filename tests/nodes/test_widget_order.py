"""Existing widgets and outputs keep their positions, by which saved workflows refer to them; new ones come last.

`python tests/nodes/test_widget_order.py` appends new widgets and outputs to the stored list. It never moves any.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data" / "widget_order.json"
FILES = [*sorted((ROOT / "workflows").glob("*.json")), *sorted((ROOT / "subgraphs").glob("*.json"))]

Order = dict[str, list[str]]


def order_of(node: Any) -> Order:
    """Return the names of a node's widgets and outputs in file order, including the helper widgets that the editor adds."""
    from uniworld.nodes.headless.registry.schema import object_info
    from uniworld.nodes.headless.registry.widgets import input_specs

    specs = input_specs(object_info(node.ID, node))
    return {
        "widgets": [one.name for spec in specs if spec.has_widget for one in spec.widgets if one.saved],
        "outputs": list(node.RETURN_NAMES),
    }


def current() -> dict[str, Order]:
    from uniworld.nodes import NODE_CLASS_MAPPINGS

    return {name: order_of(node) for name, node in NODE_CLASS_MAPPINGS.items()}


def misplaced(kept: Order, now: Order) -> list[str]:
    """Describe the widgets and outputs that are no longer at the position that saved workflows expect."""
    return [
        f"{part}: {name} was at place {place}, where {now[part][place : place + 1]} is"
        for part, names in kept.items()
        for place, name in enumerate(names)
        if now[part][place : place + 1] != [name]
    ]


def kept_order() -> dict[str, Order]:
    return json.loads(DATA.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", current())
def test_new_widgets_and_outputs_are_appended_last(name: str) -> None:
    kept, now = kept_order().get(name, {}), current()[name]
    assert not misplaced(kept, now), "append it instead: values in saved workflows would go to other widgets"
    assert kept == now, f"run {Path(__file__).name} to keep the new order"


def test_no_node_of_saved_workflows_is_gone() -> None:
    assert set(kept_order()) <= set(current())


def test_an_inserted_widget_is_found() -> None:
    from uniworld.nodes.declare import Input, Inputs
    from uniworld.nodes.pack.sampling import Sampler

    class Inserted(Sampler):
        @classmethod
        def inputs(cls) -> Inputs:
            first, *others = super().inputs()
            return first, Input.integer("skipped", "Steps left out.", default=0, min=0, max=10), *others

    kept = kept_order()["UniWorldSampler"]
    assert misplaced(kept, order_of(Inserted))
    appended = {"widgets": [*kept["widgets"], "skipped"], "outputs": [*kept["outputs"], "sigmas"]}
    assert not misplaced(kept, appended)
    # An output that is gone, or at another place.
    assert misplaced(kept, {"widgets": kept["widgets"], "outputs": []})


# --- the files in the repository --------------------------------------------------------------------------------------


def saved_nodes(file: Path) -> Iterator[dict[str, Any]]:
    graph = json.loads(file.read_text(encoding="utf-8"))
    for part in (graph, *graph.get("definitions", {}).get("subgraphs", ())):
        yield from (node for node in part["nodes"] if node["type"].startswith("UniWorld"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_saved_file_finds_its_widgets_where_they_were(file: Path) -> None:
    from uniworld.nodes import NODE_CLASS_MAPPINGS
    from uniworld.nodes.headless.registry.schema import object_info
    from uniworld.nodes.headless.registry.widgets import input_specs

    for node in saved_nodes(file):
        specs = input_specs(object_info(node["type"], NODE_CLASS_MAPPINGS[node["type"]]))
        widgets = [one for spec in specs if spec.has_widget for one in spec.widgets if one.saved]
        named = [entry["name"] for entry in node["inputs"] if entry.get("widget")]
        assert named == [one.name for one in widgets if not one.helper][: len(named)], node["type"]
        values = node.get("widgets_values", [])
        assert len(values) <= len(widgets), node["type"]
        for widget, value in zip(widgets, values):
            assert widget.accepts(value), (node["type"], widget.name, value)
        outputs = [output["name"] for output in node["outputs"]]
        assert outputs == list(NODE_CLASS_MAPPINGS[node["type"]].RETURN_NAMES)[: len(outputs)], node["type"]


if __name__ == "__main__":
    orders = kept_order() if DATA.is_file() else {}
    for node_name, now_order in current().items():
        moved = misplaced(orders.get(node_name, {}), now_order)
        if moved:
            sys.exit(f"{node_name} has moved what saved workflows count on:\n" + "\n".join(moved))
        orders[node_name] = now_order
    DATA.write_text(json.dumps(orders, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"{DATA}\n")
