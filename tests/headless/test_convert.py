"""Editor form becomes the API form that the editor itself would queue, and comfy-cli's converter agrees.

Where the two cannot agree, the test says so:
- comfy-cli reads top-level links of schema 1.0 (objects) as no links at all;
- behind a bypassed node, the editor looks at the type of the input that is fed, comfy-cli at the bypassed output's, and
  as a last resort it takes any linked input, which the editor does not;
- a primitive's value goes into the widgets it feeds when the editor queues, while comfy-cli takes the saved value of the
  widget, which is the same in any workflow that the editor saved;
- widgets without a declared default, and the upload button before optional widgets, are filled in by the editor's rules.
"""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from uniworld.nodes.headless.convert import convert
from uniworld.nodes.headless.validate import validate_prompt
from uniworld.nodes.headless.widgets import widget_position, widget_values

_spec = importlib.util.spec_from_file_location("editor", Path(__file__).parent / "editor.py")
editor = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(editor)

SHIPPED = sorted((Path(__file__).resolve().parents[2] / "workflows").glob("*.json"))


def by_comfy_cli(workflow: dict[str, Any], registry) -> dict[str, Any]:
    module = pytest.importorskip("comfy_cli.workflow_to_api")
    return module.convert_ui_to_api(workflow, json.loads(json.dumps(registry.infos())))


def ours(workflow: dict[str, Any], registry) -> dict[str, Any]:
    before = copy.deepcopy(workflow)
    prompt = convert(workflow, lambda name: registry.info(name) if name in registry.classes else None)
    assert workflow == before, "the graph is left as it was"
    return prompt


def both(workflow: dict[str, Any], registry) -> dict[str, Any]:
    prompt = ours(workflow, registry)
    assert by_comfy_cli(workflow, registry) == prompt
    return prompt


@pytest.fixture
def graph(registry):
    return editor.Graph(registry)


ALL_OPTIONS = ["t", 7, "randomize", 0.25, False, "b", "y", 5, "fixed", "end"]


def test_widget_values_go_by_position_past_the_helpers(graph, registry):
    graph.add("Options", ALL_OPTIONS, title="Mine")
    assert both(graph.save(), registry) == {
        "1": {
            "class_type": "Options",
            "_meta": {"title": "Mine"},
            "inputs": {
                "text": "t", "seed": 7, "strength": 0.25, "on": False, "old_choice": "b", "new_choice": "y",
                "count": 5, "tail": "end",
            },
        }
    }  # fmt: skip


def test_values_without_the_helpers_are_understood_too(registry):
    info = registry.info("Options")
    assert widget_values(info, ["t", 7, 0.25, False, "b", "y", 5, "end"])["tail"] == "end"
    assert widget_position(info, ["t", 7, 0.25], "strength") == 2
    assert widget_position(info, ALL_OPTIONS, "strength") == 3
    assert widget_position(info, ["t"], "strength") is None


def test_values_that_were_not_saved_are_the_widgets_defaults(graph, registry):
    graph.add("Options", ["t"])
    assert ours(graph.save(), registry)["1"]["inputs"] == {
        "text": "t", "seed": 0, "strength": 0.5, "on": True, "old_choice": "a", "new_choice": "x", "count": 3, "tail": "",
    }  # fmt: skip


def test_values_saved_by_name(graph, registry):
    values = {
        "text": "t",
        "seed": 7,
        "strength": 0.25,
        "on": False,
        "old_choice": "b",
        "new_choice": "y",
        "count": 5,
        "tail": "e",
    }
    graph.add("Options", {**values, "videopreview": {"hidden": True}})
    assert ours(graph.save(), registry)["1"]["inputs"] == values


def test_the_upload_button_takes_a_place(graph, registry):
    graph.add("LoadImage", ["cat.png", "image"])
    graph.add("LoadImageMask", ["cat.png", "red", "image"])
    prompt = both(graph.save(), registry)
    assert prompt["1"]["inputs"] == {"image": "cat.png"}
    assert prompt["2"]["inputs"] == {"image": "cat.png", "channel": "red"}
    assert prompt["2"]["_meta"] == {"title": "Load Image (as Mask)"}


def test_a_link_takes_the_place_of_its_widgets_value(graph, registry):
    number, total = graph.add("Number", [4]), graph.add("Add", [1, 2, 3])
    graph.link(number, 0, total, "b")
    assert both(graph.save(), registry)["2"]["inputs"] == {"a": 1, "b": ["1", 0], "c": 3}


def test_both_schemas_are_read(graph, registry):
    number, show = graph.add("Number", [4]), graph.add("Show")
    graph.link(number, 0, show, "value")
    assert ours(graph.save(schema=1), registry) == both(graph.save(), registry)


def test_a_list_as_a_value_is_no_link(graph, registry):
    graph.add("Options", [["a", 0], *ALL_OPTIONS[1:]])
    assert both(graph.save(), registry)["1"]["inputs"]["text"] == {"__value__": ["a", 0]}


def reroute(graph) -> dict[str, Any]:
    return graph.add("Reroute", None, [{"name": "", "type": "*", "link": None}], [{"name": "", "type": "*"}])


def test_reroutes_are_seen_through(graph, registry):
    number, first, second, show = graph.add("Number", [4]), reroute(graph), reroute(graph), graph.add("Show")
    graph.link(number, 0, first, 0)
    graph.link(first, 0, second, 0)
    graph.link(second, 0, show, "value")
    assert both(graph.save(), registry)["4"]["inputs"] == {"value": ["1", 0]}


def test_long_chains_of_reroutes_do_not_exhaust_the_stack(graph, registry):
    before = graph.add("Number", [4])
    for _ in range(3000):
        after = reroute(graph)
        graph.link(before, 0, after, 0)
        before = after
    show = graph.add("Show")
    graph.link(before, 0, show, "value")
    assert ours(graph.save(), registry)[str(show["id"])]["inputs"] == {"value": ["1", 0]}


def test_a_circle_of_reroutes_is_named(graph, registry):
    first, second, show = reroute(graph), reroute(graph), graph.add("Show")
    graph.link(first, 0, second, 0)
    graph.link(second, 0, first, 0)
    graph.link(second, 0, show, "value")
    with pytest.raises(ValueError, match="run in a circle"):
        ours(graph.save(), registry)


def test_a_primitive_gives_its_value_to_all_it_feeds(graph, registry):
    primitive = graph.add("PrimitiveNode", [9, "fixed"], [], [{"name": "INT", "type": "INT"}])
    first, second, between = graph.add("Number", [1]), graph.add("Add", [1, 2, 3]), reroute(graph)
    graph.link(primitive, 0, first, "value")
    graph.link(primitive, 0, between, 0)
    graph.link(between, 0, second, "c")
    prompt = ours(graph.save(), registry)
    assert set(prompt) == {"2", "3"}
    assert prompt["2"]["inputs"] == {"value": 9}
    assert prompt["3"]["inputs"] == {"a": 1, "b": 2, "c": 9}
    first["widgets_values"], second["widgets_values"] = [9], [1, 2, 9]
    assert both(graph.save(), registry) == prompt


def test_notes_are_dropped(graph, registry):
    graph.add("Note", ["read me"])
    graph.add("MarkdownNote", ["# read me"])
    graph.add("Number", [1])
    assert set(both(graph.save(), registry)) == {"3"}


def test_a_muted_node_goes_and_takes_its_links_along(graph, registry):
    number, total, show = graph.add("Number", [4], mode=2), graph.add("Add", [1, 2, 3]), graph.add("Show")
    graph.link(number, 0, total, "b")
    graph.link(total, 0, show, "value")
    prompt = both(graph.save(), registry)
    assert set(prompt) == {"2", "3"}
    assert prompt["2"]["inputs"] == {"a": 1, "c": 3}


def test_a_bypassed_node_passes_on_what_fits(graph, registry):
    source = graph.add("LoadImage", ["cat.png", "image"])
    scale = graph.add("ImageScale", ["area", 8, 8, "center"], mode=4)
    save = graph.add("SaveImage", ["x"])
    graph.link(source, 0, scale, "image")
    graph.link(scale, 0, save, "images")
    prompt = both(graph.save(), registry)
    assert set(prompt) == {"1", "3"}
    assert prompt["3"]["inputs"]["images"] == ["1", 0]


def test_bypassed_nodes_in_a_row(graph, registry):
    number = graph.add("Number", [4])
    first, second, between, show = (
        (graph.add("Add", [1, 2, 3], mode=4) for _ in "ab"),
        None,
        reroute(graph),
        graph.add("Show"),
    )
    first, second = first
    graph.link(number, 0, first, "b")
    graph.link(first, 0, between, 0)
    graph.link(between, 0, second, "a")
    graph.link(second, 0, show, "value")
    # By slot, output 0 meets input 0, which is not wired in the first node: the editor then passes nothing on.
    assert ours(graph.save(), registry)[str(show["id"])]["inputs"] == {}
    graph.links.pop(0)
    graph.link(number, 0, first, "a")
    assert ours(graph.save(), registry)[str(show["id"])]["inputs"] == {"value": ["1", 0]}


def test_a_bypassed_node_without_a_fitting_input_passes_nothing(graph, registry):
    number, mask = graph.add("Number", [4]), graph.add("Options", ALL_OPTIONS, mode=4)
    image = graph.add("MaskToImage", mode=4)
    show, total = graph.add("SaveImage", ["x"]), graph.add("Add", [1, 2, 3])
    graph.link(number, 0, mask, "count")
    graph.link(image, 0, show, "images")
    graph.link(image, 0, total, "b")
    prompt = ours(graph.save(), registry)
    assert prompt[str(show["id"])]["inputs"] == {"filename_prefix": "x"}
    assert prompt[str(total["id"])]["inputs"] == {"a": 1, "b": 2, "c": 3}, "a widget keeps its value"


def part(registry) -> Any:
    """A subgraph of two nodes: (INT wired to a widget, INT wired to a widget) → INT."""
    inner = editor.Graph(registry)
    inner.boundary([("first", "INT"), ("second", "INT")], [("sum", "INT")])
    number, total = inner.add("Number", [4]), inner.add("Add", [10, 20, 30])
    inner.link(None, 0, number, "value")
    inner.link(number, 0, total, "a")
    inner.link(None, 1, total, "b")
    inner.link(total, 0, None, 0)
    return inner


def test_a_subgraph_is_opened_where_it_is_used(graph, registry):
    inner = part(registry)
    source, use, show = graph.add("Number", [1]), graph.add_subgraph(inner, []), graph.add("Show")
    graph.link(source, 0, use, "first")
    graph.link(use, 0, show, "value")
    prompt = both(graph.save(inner), registry)
    assert {key: entry["inputs"] for key, entry in prompt.items()} == {
        "1": {"value": 1}, "3": {"value": ["2:2", 0]},
        "2:1": {"value": ["1", 0]}, "2:2": {"a": ["2:1", 0], "b": 20, "c": 30},
    }  # fmt: skip


def test_a_subgraph_used_twice_keeps_two_sets_of_values(graph, registry):
    inner = part(registry)
    for values in ([1, 2], [3, 4]):
        graph.link(graph.add_subgraph(inner, values), 0, graph.add("Show"), "value")
    prompt = both(graph.save(inner), registry)
    assert [prompt[key]["inputs"].get("value", prompt[key]["inputs"].get("b")) for key in ("1:1", "1:2", "3:1", "3:2")] == [
        1, 2, 3, 4,
    ]  # fmt: skip
    assert prompt["2"]["inputs"] == {"value": ["1:2", 0]}


def test_subgraphs_in_subgraphs(graph, registry):
    inner, outer = part(registry), editor.Graph(registry)
    outer.boundary([("deep", "INT"), ("other", "INT")], [("sum", "INT")])
    use, after = outer.add_subgraph(inner, [5, 6]), outer.add("Add", [1, 2, 3])
    for entry in use["inputs"]:
        entry["widget"] = {"name": entry["name"]}
    outer.link(None, 0, use, "first")
    outer.link(use, 0, after, "a")
    outer.link(None, 1, after, "b")
    outer.link(after, 0, None, 0)
    top = graph.add_subgraph(outer, [7, 8])
    graph.link(top, 0, graph.add("Show"), "value")
    prompt = both(graph.save(outer, inner), registry)
    assert {key: entry["inputs"] for key, entry in prompt.items()} == {
        "2": {"value": ["1:2", 0]}, "1:2": {"a": ["1:1:2", 0], "b": 8, "c": 3},
        "1:1:1": {"value": 7}, "1:1:2": {"a": ["1:1:1", 0], "b": 6, "c": 30},
    }  # fmt: skip


def test_a_bypassed_subgraph_passes_on_what_fits(graph, registry):
    inner = part(registry)
    source, use, show = graph.add("Number", [1]), graph.add_subgraph(inner, [], mode=4), graph.add("Show")
    graph.link(source, 0, use, "first")
    graph.link(use, 0, show, "value")
    assert both(graph.save(inner), registry)["3"]["inputs"] == {"value": ["1", 0]}


def test_a_muted_subgraph_goes(graph, registry):
    inner = part(registry)
    graph.link(graph.add_subgraph(inner, [], mode=2), 0, graph.add("Show"), "value")
    assert both(graph.save(inner), registry)["2"]["inputs"] == {}


def test_a_primitive_feeds_a_subgraph(graph, registry):
    inner = part(registry)
    primitive = graph.add("PrimitiveNode", [9, "fixed"], [], [{"name": "INT", "type": "INT"}])
    graph.link(primitive, 0, graph.add_subgraph(inner, [1, 2]), "first")
    prompt = ours(graph.save(inner), registry)
    assert prompt["2:1"]["inputs"] == {"value": 9}
    assert prompt["2:2"]["inputs"]["b"] == 2


def test_a_subgraph_that_only_passes_on(graph, registry):
    inner = editor.Graph(registry)
    inner.boundary([("in", "INT")], [("out", "INT")])
    inner.link(None, 0, None, 0)
    source, use, show = graph.add("Number", [1]), graph.add_subgraph(inner, []), graph.add("Show")
    graph.link(source, 0, use, "in")
    graph.link(use, 0, show, "value")
    assert ours(graph.save(inner), registry)["3"]["inputs"] == {"value": ["1", 0]}


def test_a_subgraph_that_contains_itself_is_named(graph, registry):
    inner = part(registry)
    inner.add_subgraph(inner, [])
    graph.add_subgraph(inner, [])
    with pytest.raises(ValueError, match="'Part' contains itself"):
        ours(graph.save(inner), registry)


def test_subgraphs_that_multiply_without_end_are_refused(graph, registry):
    levels = [part(registry)]
    for _ in range(30):
        level = editor.Graph(registry)
        level.boundary([], [])
        for _ in range(2):
            level.add_subgraph(levels[-1], [])
        levels.append(level)
    graph.add_subgraph(levels[-1], [])
    with pytest.raises(ValueError, match="opens into more than"):
        ours(graph.save(*levels), registry)


def test_a_group_node_of_old_editors_is_refused_by_name(graph, registry):
    graph.add("workflow>mine")
    with pytest.raises(ValueError, match="Node 1 is a group node"):
        ours(graph.save(), registry)


def test_an_unknown_class_is_kept_for_the_check_to_name(graph, registry):
    number, unknown, show = (
        graph.add("Number", [1]),
        graph.add("Nobody", [1], [{"name": "x", "type": "INT"}]),
        graph.add("Show"),
    )
    graph.link(number, 0, unknown, "x")
    unknown["outputs"].append({"name": "y", "type": "INT", "links": []})
    graph.link(unknown, 0, show, "value")
    prompt = ours(graph.save(), registry)
    assert prompt["2"]["inputs"] == {"x": ["1", 0]}
    assert "no node class 'Nobody'" in validate_prompt(prompt, registry).sentences[0]


@pytest.mark.parametrize("broken", [
    {"nodes": [5]}, {"nodes": [{"type": "Show"}]}, {"nodes": [{"id": 1}]}, {"nodes": [{"id": 1, "type": ["x"]}]},
    {"nodes": [{"id": 1, "type": "Show"}, {"id": 1, "type": "Show"}]}, {"nodes": [], "links": [[1, 2]]},
    {"nodes": [], "links": [[1, 2, "x", 3, 0]]}, {"nodes": [], "links": [None]}, {"nodes": [], "links": [[[], 1, 0, 2, 0]]},
])  # fmt: skip
def test_what_is_no_graph_gets_a_sentence(registry, broken):
    with pytest.raises(ValueError, match="Save it anew in the editor"):
        ours(broken, registry)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_workflow_is_converted_as_comfy_cli_does(registry, path):
    prompt = both(json.loads(path.read_text(encoding="utf-8")), registry)
    unknown = [entry["class_type"] for entry in prompt.values() if entry["class_type"] not in registry.classes]
    assert not unknown
