"""Editor form is converted to the API form that the editor itself queues; comfy-cli's converter agrees.

The tests use `ours` instead of `both` where comfy-cli differs from the editor:
- comfy-cli ignores top-level links of schema 1.0 (objects);
- after a bypassed node, the editor compares types with the input that is fed. comfy-cli compares them with the bypassed
  output, and finally accepts any linked input;
- when the editor queues a workflow, a primitive writes its value into the widgets that it feeds. comfy-cli takes the
  saved value of the widget, which is the same in any workflow that the editor saved;
- a widget that is wired to a muted node keeps its own value in the editor, and has none in comfy-cli;
- comfy-cli omits the names of packs (`cnr_id`);
- widgets without a declared default, and an upload button before optional widgets, follow the editor's rules.

`tests/browser/test_conversion.py` compares with the editor itself.
"""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from uniworld.nodes.headless.check.validate import validate_prompt
from uniworld.nodes.headless.registry.widgets import input_specs
from uniworld.nodes.headless.workflow.convert import convert
from uniworld.nodes.headless.workflow.saved_values import read_values

_spec = importlib.util.spec_from_file_location("editor", Path(__file__).parents[1] / "editor.py")
editor = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(editor)

# Without those of ComfyUI's own nodes, which only a server's node infos can convert.
SHIPPED = [
    path
    for path in sorted((Path(__file__).resolve().parents[4] / "workflows").glob("*.json"))
    if not path.name.startswith("9 Native")
]


def by_comfy_cli(workflow: dict[str, Any], registry) -> dict[str, Any]:
    module = pytest.importorskip("comfy_cli.workflow_to_api")
    return module.convert_ui_to_api(workflow, json.loads(json.dumps(registry.infos())))


def ours(workflow: dict[str, Any], registry) -> dict[str, Any]:
    before = copy.deepcopy(workflow)
    prompt = convert(workflow, lambda name: registry.info(name) if name in registry.classes else None)
    assert workflow == before, "the graph must not change"
    return prompt


def both(workflow: dict[str, Any], registry) -> dict[str, Any]:
    prompt = ours(workflow, registry)
    titled = {key: {**entry, "_meta": {"title": entry["_meta"]["title"]}} for key, entry in prompt.items()}
    assert by_comfy_cli(workflow, registry) == titled
    return prompt


@pytest.fixture
def graph(registry):
    return editor.Graph(registry)


ALL_OPTIONS = ["t", 7, "randomize", 0.25, False, "b", "y", 5, "fixed", "end"]


def test_widget_values_are_assigned_by_position_skipping_helpers(graph, registry):
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


def test_values_without_helpers_are_assigned_too(registry):
    specs = input_specs(registry.info("Options"))
    without = read_values(specs, ["t", 7, 0.25, False, "b", "y", 5, "end"])
    assert (without.values["tail"], without.positions["strength"]) == ("end", 2)
    assert read_values(specs, ALL_OPTIONS).positions["strength"] == 3


@pytest.mark.parametrize("saved", [None, []])
def test_missing_values_are_the_defaults_of_the_widgets(graph, registry, saved):
    graph.add("Options", saved)
    assert ours(graph.save(), registry)["1"]["inputs"] == {
        "text": "hello", "seed": 0, "strength": 0.5, "on": True, "old_choice": "a", "new_choice": "x", "count": 3,
        "tail": "",
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


def test_the_upload_button_has_a_position(graph, registry):
    graph.add("LoadImage", ["cat.png", "image"])
    graph.add("LoadImageMask", ["cat.png", "red", "image"])
    prompt = both(graph.save(), registry)
    assert prompt["1"]["inputs"] == {"image": "cat.png"}
    assert prompt["2"]["inputs"] == {"image": "cat.png", "channel": "red"}
    assert prompt["2"]["_meta"] == {"title": "Load Image (as Mask)"}


def test_a_link_replaces_the_value_of_its_widget(graph, registry):
    number, total = graph.add("Number", [4]), graph.add("Add", [1, 2, 3])
    graph.link(number, 0, total, "b")
    assert both(graph.save(), registry)["2"]["inputs"] == {"a": 1, "b": ["1", 0], "c": 3}


def test_both_schemas_are_read(graph, registry):
    number, show = graph.add("Number", [4]), graph.add("Show")
    graph.link(number, 0, show, "value")
    assert ours(graph.save(schema=1), registry) == both(graph.save(), registry)


def test_a_list_as_a_value_is_wrapped(graph, registry):
    graph.add("Options", [["a", 0], *ALL_OPTIONS[1:]])
    assert both(graph.save(), registry)["1"]["inputs"]["text"] == {"__value__": ["a", 0]}


def reroute(graph) -> dict[str, Any]:
    return graph.add("Reroute", None, [{"name": "", "type": "*", "link": None}], [{"name": "", "type": "*"}])


def test_reroutes_are_followed(graph, registry):
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


def test_a_loop_of_reroutes_is_an_error(graph, registry):
    first, second, show = reroute(graph), reroute(graph), graph.add("Show")
    graph.link(first, 0, second, 0)
    graph.link(second, 0, first, 0)
    graph.link(second, 0, show, "value")
    with pytest.raises(ValueError, match="form a loop"):
        ours(graph.save(), registry)


def test_a_primitive_writes_its_value_into_all_its_targets(graph, registry):
    primitive = graph.add("PrimitiveNode", [9, "fixed"], [], [{"name": "INT", "type": "INT"}])
    first, second, between = graph.add("Number", [1]), graph.add("Add", [1, 2, 3]), reroute(graph)
    graph.link(primitive, 0, first, "value")
    graph.link(primitive, 0, between, 0)
    graph.link(between, 0, second, "c")
    prompt = ours(graph.save(), registry)
    assert set(prompt) == {"2", "3"}
    assert prompt["2"]["inputs"] == {"value": 9}
    assert prompt["3"]["inputs"] == {"a": 1, "b": 2, "c": 3}, "it does not write through a reroute"
    first["widgets_values"] = [9]
    assert both(graph.save(), registry) == prompt


@pytest.mark.parametrize("mode", [2, 4])
def test_a_muted_or_bypassed_primitive_still_writes_its_value(graph, registry, mode):
    primitive = graph.add("PrimitiveNode", [9, "fixed"], [], [{"name": "INT", "type": "INT"}], mode=mode)
    graph.link(primitive, 0, graph.add("Number", [1]), "value")
    assert ours(graph.save(), registry)["2"]["inputs"] == {"value": 9}


@pytest.mark.parametrize(("value", "name", "held"), [
    (1e308, "strength", 1), (float("inf"), "strength", float("inf")), (2**70 + 1, "count", 2**70 + 1),
    (1e300, "count", int(1e300)), (2.5, "count", 3),
])  # fmt: skip
def test_a_primitive_treats_large_numbers_like_the_editor(graph, registry, value, name, held):
    kind = "FLOAT" if name == "strength" else "INT"
    primitive = graph.add("PrimitiveNode", [value, "fixed"], [], [{"name": kind, "type": kind}])
    graph.link(primitive, 0, graph.add("Options", ALL_OPTIONS), name)
    assert ours(graph.save(), registry)["2"]["inputs"][name] == held


@pytest.mark.parametrize("name", ["count", "strength"])
def test_a_primitive_with_a_number_too_large_for_a_float_is_rejected(graph, registry, name):
    kind = "FLOAT" if name == "strength" else "INT"
    primitive = graph.add("PrimitiveNode", [10**400, "fixed"], [], [{"name": kind, "type": kind}])
    graph.link(primitive, 0, graph.add("Options", ALL_OPTIONS), name)
    with pytest.raises(ValueError, match=r"Node 1 \(PrimitiveNode\): its value 10{70,}\.\.\. is too large"):
        ours(graph.save(), registry)


def test_a_primitive_is_clipped_to_the_range_of_its_target(graph, registry):
    primitive = graph.add("PrimitiveNode", [900, "fixed"], [], [{"name": "INT", "type": "INT"}])
    graph.link(primitive, 0, graph.add("Number", [1]), "value")
    assert ours(graph.save(), registry)["2"]["inputs"] == {"value": 100}


def test_notes_are_dropped(graph, registry):
    graph.add("Note", ["read me"])
    graph.add("MarkdownNote", ["# read me"])
    graph.add("Number", [1])
    assert set(both(graph.save(), registry)) == {"3"}


def test_a_muted_node_is_removed_with_its_links(graph, registry):
    number, total, show = graph.add("Number", [4], mode=2), graph.add("Add", [1, 2, 3]), graph.add("Show")
    graph.link(number, 0, total, "b")
    graph.link(total, 0, show, "value")
    prompt = ours(graph.save(), registry)
    assert set(prompt) == {"2", "3"}
    assert prompt["2"]["inputs"] == {"a": 1, "b": 2, "c": 3}, "a widget falls back to its own value"
    total["inputs"][1]["name"] = "extra"
    del total["inputs"][1]["widget"]
    assert ours(graph.save(), registry)["2"]["inputs"] == {"a": 1, "b": 2, "c": 3}


def test_a_bypassed_node_passes_on_an_input_of_the_same_type(graph, registry):
    source = graph.add("LoadImage", ["cat.png", "image"])
    scale = graph.add("ImageScale", ["area", 8, 8, "center"], mode=4)
    save = graph.add("SaveImage", ["x"])
    graph.link(source, 0, scale, "image")
    graph.link(scale, 0, save, "images")
    prompt = both(graph.save(), registry)
    assert set(prompt) == {"1", "3"}
    assert prompt["3"]["inputs"]["images"] == ["1", 0]


@pytest.mark.parametrize(("wired", "value"), [("b", []), ("a", [["1", 0]])])
def test_bypassed_nodes_in_a_row(graph, registry, wired, value):
    number = graph.add("Number", [4])
    first, between = graph.add("Add", [1, 2, 3], mode=4), reroute(graph)
    second, show = graph.add("Add", [1, 2, 3], mode=4), graph.add("Show")
    graph.link(number, 0, first, wired)
    graph.link(first, 0, between, 0)
    graph.link(between, 0, second, "a")
    graph.link(second, 0, show, "value")
    # Output 0 is replaced by input 0, as their types match; if that input is not wired, the editor passes nothing on.
    assert list(ours(graph.save(), registry)[str(show["id"])]["inputs"].values()) == value


def test_a_bypassed_node_without_a_matching_input_passes_nothing(graph, registry):
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
    inner = editor.Graph(registry, 10)
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
        "1": {"value": 1}, "3": {"value": ["2:12", 0]},
        "2:11": {"value": ["1", 0]}, "2:12": {"a": ["2:11", 0], "b": 20, "c": 30},
    }  # fmt: skip


def test_a_subgraph_used_twice_keeps_two_sets_of_values(graph, registry):
    inner = part(registry)
    for values in ([1, 2], [3, 4]):
        graph.link(graph.add_subgraph(inner, values), 0, graph.add("Show"), "value")
    prompt = both(graph.save(inner), registry)
    assert [prompt[key]["inputs"].get("value", prompt[key]["inputs"].get("b")) for key in ("1:11", "1:12", "3:11", "3:12")] == [
        1, 2, 3, 4,
    ]  # fmt: skip
    assert prompt["2"]["inputs"] == {"value": ["1:12", 0]}


def test_subgraphs_in_subgraphs(graph, registry):
    inner, outer = part(registry), editor.Graph(registry, 20)
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
        "2": {"value": ["1:22", 0]}, "1:22": {"a": ["1:21:12", 0], "b": 8, "c": 3},
        "1:21:11": {"value": 7}, "1:21:12": {"a": ["1:21:11", 0], "b": 6, "c": 30},
    }  # fmt: skip


def test_a_bypassed_subgraph_passes_on_an_input_of_the_same_type(graph, registry):
    inner = part(registry)
    source, use, show = graph.add("Number", [1]), graph.add_subgraph(inner, [], mode=4), graph.add("Show")
    graph.link(source, 0, use, "first")
    graph.link(use, 0, show, "value")
    assert both(graph.save(inner), registry)["3"]["inputs"] == {"value": ["1", 0]}


def test_a_bypassed_subgraph_does_not_pass_on_values_of_its_inputs(graph, registry):
    inner = part(registry)
    use, total = graph.add_subgraph(inner, [5, 6], mode=4), graph.add("Add", [1, 2, 3])
    graph.add_subgraph(inner, [7, 8])
    graph.link(use, 0, total, "b")
    assert ours(graph.save(inner), registry)["2"]["inputs"] == {"a": 1, "b": 2, "c": 3}


def test_a_muted_subgraph_is_removed(graph, registry):
    inner = part(registry)
    graph.link(graph.add_subgraph(inner, [], mode=2), 0, graph.add("Show"), "value")
    assert both(graph.save(inner), registry)["2"]["inputs"] == {}


def test_a_primitive_feeds_a_subgraph(graph, registry):
    inner = part(registry)
    primitive = graph.add("PrimitiveNode", [9, "fixed"], [], [{"name": "INT", "type": "INT"}])
    graph.link(primitive, 0, graph.add_subgraph(inner, [1, 2]), "first")
    prompt = ours(graph.save(inner), registry)
    # The primitive writes into the subgraph's node, but its input is wired, so the value inside does not change.
    assert prompt["2:11"]["inputs"] == {"value": 4}
    assert prompt["2:12"]["inputs"]["b"] == 2


def test_a_subgraph_that_connects_its_input_to_its_output(graph, registry):
    inner = editor.Graph(registry)
    inner.boundary([("in", "INT")], [("out", "INT")])
    inner.link(None, 0, None, 0)
    source, use, show = graph.add("Number", [1]), graph.add_subgraph(inner, []), graph.add("Show")
    graph.link(source, 0, use, "in")
    graph.link(use, 0, show, "value")
    assert ours(graph.save(inner), registry)["3"]["inputs"] == {"value": ["1", 0]}


def test_a_subgraph_that_contains_itself_is_an_error(graph, registry):
    inner = part(registry)
    inner.add_subgraph(inner, [])
    graph.add_subgraph(inner, [])
    with pytest.raises(ValueError, match="'Part' contains itself"):
        ours(graph.save(inner), registry)


def test_nested_subgraphs_with_too_many_nodes_are_rejected(graph, registry):
    levels = [part(registry)]
    for _ in range(30):
        level = editor.Graph(registry)
        level.boundary([], [])
        for _ in range(2):
            level.add_subgraph(levels[-1], [])
        levels.append(level)
    graph.add_subgraph(levels[-1], [])
    with pytest.raises(ValueError, match="expands to more than"):
        ours(graph.save(*levels), registry)


@pytest.mark.parametrize(("proxies", "values"), [
    (None, [7, 8]),
    ([["-1", "first"], ["-1", "second"]], [7, 8]),
    ([["-1", "second"], ["-1", "first"]], [8, 7]),
    ([["11", "value"], ["12", "b"]], [7, 8]),
    ([["12", "c"], ["-1", "second"], ["11", "value"]], [99, 8, 7]),
    ([["-1", "first"], ["12", "c"], ["-1", "second"]], [7, 99, 8]),
    ([["77", "gone"], ["-1", "nothing"], ["-1", "second"], ["-1", "first"]], [0, 0, 8, 7]),
    ([["12", "2: c"], ["-1", "second"], ["-1", "first"]], [99, 8, 7]),
])  # fmt: skip
def test_proxy_widgets_assign_the_values_of_a_subgraph(graph, registry, proxies, values):
    inner = part(registry)
    graph.add_subgraph(inner, values, **({} if proxies is None else {"proxies": proxies}))
    prompt = ours(graph.save(inner), registry)
    assert prompt["1:11"]["inputs"] == {"value": 7}
    assert prompt["1:12"]["inputs"] == {"a": ["1:11", 0], "b": 8, "c": 99 if 99 in values else 30}


def test_proxy_widgets_may_be_saved_as_json_text(graph, registry):
    inner = part(registry)
    proxies = [["12", "c"], ["-1", "second"], ["11", "value"]]
    graph.add_subgraph(inner, [99, 8, 7], proxies=json.dumps(proxies))
    prompt = ours(graph.save(inner), registry)
    assert [prompt["1:11"]["inputs"]["value"], prompt["1:12"]["inputs"]["b"], prompt["1:12"]["inputs"]["c"]] == [
        7,
        8,
        99,
    ]


@pytest.mark.parametrize("proxies", [[[12, "c"], [-1, "first"]], [["12"]], {"12": "c"}, "[['12', 'c']]", 5, ["12"]])
def test_malformed_proxy_widgets_are_rejected_if_there_are_values(graph, registry, proxies):
    inner = part(registry)
    host = graph.add_subgraph(inner, [99, 7], proxies=proxies, title="Mine")
    with pytest.raises(ValueError, match=r"Node 1 'Mine' \(a subgraph\): \"proxyWidgets\" contains the invalid entry"):
        ours(graph.save(inner), registry)
    host["widgets_values"] = []
    assert ours(graph.save(inner), registry)["1:11"]["inputs"] == {"value": 4}


def test_quarantined_values_may_be_saved_as_json_text(graph, registry):
    inner = part(registry)
    aside = [{"originalEntry": ["-1", "second"], "hostValue": 55}]
    graph.add_subgraph(inner, [7, 8], properties={"proxyWidgetErrorQuarantine": json.dumps(aside)})
    prompt = ours(graph.save(inner), registry)
    assert (prompt["1:11"]["inputs"]["value"], prompt["1:12"]["inputs"]["b"]) == (7, 55)


@pytest.mark.parametrize("proxies", [None, [["12", "c"]]])
def test_values_of_a_subgraph_may_be_saved_by_name(graph, registry, proxies):
    inner = part(registry)
    values = {"second": 8, "first": 7} | ({} if proxies is None else {"c": 99})
    graph.add_subgraph(inner, values, **({} if proxies is None else {"proxies": proxies}))
    prompt = ours(graph.save(inner), registry)
    assert prompt["1:11"]["inputs"] == {"value": 7}
    assert prompt["1:12"]["inputs"] == {"a": ["1:11", 0], "b": 8, "c": 30 if proxies is None else 99}


@pytest.mark.parametrize(("values", "proxies", "words"), [
    ([1, 2, 3], None, "3 values are saved, but it has 2 inputs with widgets"),
    ([1, 2, 3], [["-1", "first"]], "3 values are saved, but it has 1 entry in"),
    ({"third": 3}, None, "a value is saved for 'third', which is not an input with a widget. Those are: first, second."),
    ("abc", None, "\"widgets_values\" is 'abc'"),
])  # fmt: skip
def test_values_of_a_subgraph_that_match_no_input_are_rejected(graph, registry, values, proxies, words):
    inner, outer = part(registry), editor.Graph(registry, 20)
    outer.boundary([], [])
    outer.add_subgraph(inner, values, **({} if proxies is None else {"proxies": proxies}))
    graph.add_subgraph(outer)
    with pytest.raises(ValueError, match=r"Node 1:21 'Part' \(a subgraph\): ") as error:
        ours(graph.save(outer, inner), registry)
    assert words in str(error.value)


@pytest.mark.parametrize("values", [[], [1], [1, 2, None]])
def test_a_subgraph_may_have_fewer_values_than_inputs_or_trailing_empty_ones(graph, registry, values):
    inner = part(registry)
    graph.add_subgraph(inner, values)
    assert ours(graph.save(inner), registry)["1:11"]["inputs"]["value"] == (1 if values else 4)


def test_two_nodes_of_a_subgraph_have_separate_promoted_values(graph, registry):
    inner = part(registry)
    for values in ([1, 2], [3, 4]):
        graph.add_subgraph(inner, values, proxies=[["12", "c"], ["-1", "first"]])
    graph.add_subgraph(inner, [5, 6])
    prompt = ours(graph.save(inner), registry)
    found = [(prompt[f"{host}:11"]["inputs"]["value"], prompt[f"{host}:12"]["inputs"]["c"]) for host in (1, 2, 3)]
    assert found == [(2, 1), (4, 3), (5, 30)]


def test_a_promoted_primitive_still_feeds_its_targets(graph, registry):
    inner = part(registry)
    primitive = inner.add("PrimitiveNode", [9, "fixed"], [], [{"name": "INT", "type": "INT"}])
    inner.link(primitive, 0, inner.nodes[1], "c")
    graph.add_subgraph(inner, [55], proxies=[["13", "value"]])
    graph.add_subgraph(inner, [1, 2])
    prompt = ours(graph.save(inner), registry)
    assert [prompt[key]["inputs"]["c"] for key in ("1:12", "2:12")] == [55, 30]


def test_a_nested_subgraph_shows_the_widgets_inside_it(graph, registry):
    inner, outer = part(registry), editor.Graph(registry, 20)
    outer.boundary([], [])
    outer.add_subgraph(inner, [5, 6])
    graph.add_subgraph(outer, [55, 99], proxies=[["21", "second"], ["21", "value"]])
    prompt = ours(graph.save(outer, inner), registry)
    opened = [key for key in prompt if key.count(":") == 2]
    assert [prompt[key]["inputs"].get("b", prompt[key]["inputs"].get("value")) for key in opened] == [99, 55]


@pytest.mark.parametrize("saved_as", [lambda proxies: proxies, json.dumps])
def test_nodes_of_subgraphs_get_unique_ids(graph, registry, saved_as):
    inner = editor.Graph(registry)
    inner.boundary([], [])
    for _ in range(3):
        inner.add("Number", [1])
    graph.add_subgraph(inner, [99], proxies=saved_as([["2", "value"]]))
    graph.add("Number", [1])
    saved = graph.save(inner) | {"last_node_id": 12}
    # Node 3 of the subgraph keeps its id.
    prompt = ours(saved, registry)
    assert list(prompt) == ["2", "1:13", "1:14", "1:3"]
    assert [entry["inputs"]["value"] for entry in prompt.values()] == [1, 1, 99, 1]


def test_a_missing_definition_of_a_subgraph_is_an_error(graph, registry):
    graph.add_subgraph(part(registry), [], title="Upscale")
    with pytest.raises(ValueError, match="Node 1 'Upscale' is a subgraph, but the workflow does not contain its defin"):
        ours(graph.save(), registry)
    graph.nodes[0]["mode"] = 2
    assert ours(graph.save(), registry) == {}


def variable(graph, kind: str, name: str) -> dict[str, Any]:
    """A SetNode or GetNode of KJNodes."""
    side = [{"name": "INT", "type": "INT", "link": None}]
    return graph.add(kind, [name], side if kind == "SetNode" else [], [{"name": "INT", "type": "INT"}])


def test_set_and_get_nodes_are_followed(graph, registry):
    number, total, show = graph.add("Number", [4]), graph.add("Add", [1, 2, 3]), graph.add("Show")
    graph.link(number, 0, variable(graph, "SetNode", "n"), 0)
    graph.link(variable(graph, "GetNode", "n"), 0, variable(graph, "SetNode", "again"), 0)
    graph.link(variable(graph, "GetNode", "again"), 0, show, "value")
    graph.link(variable(graph, "GetNode", "nobody"), 0, total, "b")
    prompt = ours(graph.save(), registry)
    assert {key: entry["inputs"] for key, entry in prompt.items()} == {
        "1": {"value": 4}, "2": {"a": 1, "b": 2, "c": 3}, "3": {"value": ["1", 0]},
    }  # fmt: skip
    graph.links.pop()
    total["inputs"][1]["link"] = None
    assert both(graph.save(), registry) == prompt


def test_a_loop_of_set_and_get_nodes_is_an_error(graph, registry):
    graph.link(variable(graph, "GetNode", "n"), 0, variable(graph, "SetNode", "n"), 0)
    graph.link(graph.nodes[0], 0, graph.add("Show"), "value")
    with pytest.raises(ValueError, match="form a loop"):
        ours(graph.save(), registry)


def test_wires_are_found_by_the_names_of_inputs(graph, registry):
    """The inputs in a file may have another order than those of the class, or include unknown ones."""
    number, total = graph.add("Number", [4]), graph.add("Add", [1, 2, 3])
    graph.link(number, 0, total, "a")
    graph.link(number, 0, total, "c")
    total["inputs"] = [{"name": "x", "type": "INT", "link": None}, *reversed(total["inputs"])]
    for link in graph.links:
        link["target_slot"] = 3 if link["target_slot"] == 0 else 1
    graph.link(number, 0, total, "x")
    assert ours(graph.save(), registry)["2"]["inputs"] == {"a": ["1", 0], "b": 2, "c": ["1", 0], "x": ["1", 0]}
    total["inputs"][0]["widget"] = {"name": "x"}
    assert "x" not in ours(graph.save(), registry)["2"]["inputs"], "the input of a removed widget"


@pytest.mark.parametrize("name", [["x"], {}, 5])
def test_a_widget_whose_name_is_not_text_is_ignored(graph, registry, name):
    number, total = graph.add("Number", [4]), graph.add("Add", [1, 2, 3])
    total["inputs"].append({"name": "x", "type": "INT", "link": None, "widget": {"name": name}})
    graph.link(number, 0, total, "x")
    assert ours(graph.save(), registry)["2"]["inputs"] == {"a": 1, "b": 2, "c": 3, "x": ["1", 0]}


def test_of_two_wires_into_one_input_the_one_that_the_input_refers_to_counts(graph, registry):
    first, second, show = graph.add("Number", [4]), graph.add("Number", [5]), graph.add("Show")
    graph.link(first, 0, show, "value")
    graph.link(second, 0, show, "value")
    assert ours(graph.save(), registry)["3"]["inputs"] == {"value": ["2", 0]}
    show["inputs"][0]["link"] = 1
    assert ours(graph.save(), registry)["3"]["inputs"] == {"value": ["1", 0]}


def test_an_unknown_class_is_kept_so_that_the_check_can_report_it(graph, registry):
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
def test_a_malformed_graph_is_a_clear_error(registry, broken):
    with pytest.raises(ValueError, match=r"Save the workflow again in the editor\."):
        ours(broken, registry)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_workflow_is_converted_as_by_comfy_cli(registry, path):
    prompt = both(json.loads(path.read_text(encoding="utf-8")), registry)
    unknown = [entry["class_type"] for entry in prompt.values() if entry["class_type"] not in registry.classes]
    assert not unknown
