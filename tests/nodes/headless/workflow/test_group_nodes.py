"""Group nodes of old editors become subgraphs, as the current editor opens them; the expected prompts were seen there.

Where the editor loses a muted node's mode, a primitive's value or a wire, the expected prompt is what old editors queued.
`tests/browser/test_conversion.py` compares random groups with the editor itself.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
from uniworld.nodes.headless.registry.registry import Registry
from uniworld.nodes.headless.workflow.convert import convert
from uniworld.nodes.headless.workflow.group_nodes import with_groups_opened
from uniworld.nodes.headless.workflow.renaming import rename_in_graph
from uniworld.nodes.renamed import RENAMED
from uniworld.uniworld_core.errors import UniWorldError

WIDGET = {"name": "a", "type": "INT", "link": None, "widget": {"name": "a"}}


def inside(kind: str, values: Any, inputs: Any = (), outputs: Any = ("INT",), **more: Any) -> dict[str, Any]:
    """Return a node of a group, as in its definition."""
    slots = [{"name": kind, "type": kind, "links": []} for kind in outputs]
    return {
        "type": kind,
        "mode": 0,
        "inputs": list(inputs),
        "outputs": slots,
        "properties": {},
        "widgets_values": values,
        **more,
    }


def workflow(
    group: Any,
    values: Any,
    inputs: Any = (),
    links: Any = (),
    kind: str = "workflow/mine",
    mode: int = 0,
    shows: Any = (),
) -> dict[str, Any]:
    """Return a workflow: Number 1 with the value 5, the group node 2, and a Show for each of its outputs in `shows`."""
    nodes = [
        {
            "id": 1,
            "type": "Number",
            "mode": 0,
            "inputs": [],
            "outputs": [{"name": "INT", "type": "INT"}],
            "widgets_values": [5],
        },
        {"id": 2, "type": kind, "mode": mode, "inputs": list(inputs), "outputs": [], "widgets_values": values},
    ]
    wires = [list(link) for link in links]
    for number, slot in enumerate(shows):
        show = {"id": 3 + number, "type": "Show", "mode": 0, "outputs": [], "widgets_values": []}
        nodes.append({**show, "inputs": [{"name": "value", "type": "*", "link": 20 + number}]})
        wires.append([20 + number, 2, slot, 3 + number, 0, "INT"])
    return {
        "last_node_id": 10,
        "version": 0.4,
        "nodes": nodes,
        "links": wires,
        "extra": {"groupNodes": {"mine": group}},
    }


def queued(workflow: dict[str, Any], registry: Registry) -> dict[str, Any]:
    """Return class and inputs of the nodes of the prompt; the graph must not change."""
    before = copy.deepcopy(workflow)
    prompt = convert(workflow, lambda name: registry.info(name) if name in registry.classes else None)
    assert workflow == before
    return {node_id: (node["class_type"], node["inputs"]) for node_id, node in prompt.items()}  # type: ignore[index]


def sum_of(first: int = 1) -> dict[str, Any]:
    """Return a group: a Number that feeds input `a` of an Add, whose `c` was a socket and is left open."""
    third = {"name": "c", "type": "INT", "link": None, "widget": {"name": "c"}}
    nodes = [inside("Number", [first]), inside("Add", [0, 2, 3], [WIDGET, third])]
    return {"nodes": nodes, "links": [[0, 0, 1, 0, 7, "INT"]], "external": []}


@pytest.mark.parametrize("kind", ["workflow/mine", "workflow>mine"])
def test_a_group_node_is_opened_with_its_values_and_wires(registry, kind):
    into = [{"name": "c", "type": "INT", "link": 9, "widget": {"name": "c"}}]
    prompt = queued(workflow(sum_of(), [40, 2, 3], into, [[9, 1, 0, 2, 0, "INT"]], kind, shows=[0]), registry)
    assert prompt == {
        "1": ("Number", {"value": 5}),
        "3": ("Show", {"value": ["13:12", 0]}),
        "13:11": ("Number", {"value": 40}),
        "13:12": ("Add", {"a": ["13:11", 0], "b": 2, "c": ["1", 0]}),
    }


def test_two_nodes_of_a_group_have_their_own_values_and_ids(registry):
    graph = workflow(sum_of(), [40, 2, 3], shows=[0])
    graph["nodes"].append({**graph["nodes"][1], "id": 8, "widgets_values": [50, 6, 7]})
    prompt = queued(graph, registry)
    assert prompt["13:12"] == ("Add", {"a": ["13:11", 0], "b": 2, "c": 3})
    assert prompt["16:15"] == ("Add", {"a": ["16:14", 0], "b": 6, "c": 7})
    assert prompt["16:14"] == ("Number", {"value": 50})


@pytest.mark.parametrize(("state", "host"), [({}, "54:53"), ({"state": {"lastNodeId": 60}}, "63:62")])
def test_new_ids_follow_those_of_subgraphs_which_are_made_unique_first(registry, state, host):
    nested = {"id": "inner", "name": "inner", "nodes": [{**inside("Number", [8]), "id": 1}], "links": []}
    outer = {**nested, "id": "outer", "nodes": [{"id": 50, "type": "inner"}], "definitions": {"subgraphs": [nested]}}
    graph = workflow(sum_of(), [40, 2, 3], shows=[0])
    graph["nodes"].append({"id": 9, "type": "outer"})
    graph["definitions"] = {"subgraphs": [outer | state]}
    prompt = queued(graph, registry)
    assert prompt["3"] == ("Show", {"value": [host, 0]})
    assert prompt["9:50:51"] == ("Number", {"value": 8})


def test_outputs_that_are_used_outside_or_made_visible_are_counted(registry):
    for change in ({"external": [[0, 0, "INT"]]}, {"config": {"0": {"output": {"0": {"visible": True}}}}}):
        prompt = queued(workflow({**sum_of(), **change}, [1, 2, 3], shows=[0, 1]), registry)
        assert [prompt["3"][1]["value"], prompt["4"][1]["value"]] == [["13:11", 0], ["13:12", 0]]
    hidden = {**sum_of(), "config": {"1": {"output": {"0": {"visible": False}}}}}
    assert queued(workflow(hidden, [1, 2, 3], shows=[0]), registry)["3"] == ("Show", {})


def test_names_that_the_user_gave_and_names_that_are_taken(registry):
    group = {
        "nodes": [inside("Show", None, [{"name": "value", "type": "*"}], title="One"), inside("Show", None)],
        "links": [],
    }
    group["nodes"].append(inside("Show", None, [{"name": "value", "type": "*", "label": "Labeled"}]))
    group["nodes"].append(inside("Show", None))
    group["config"] = [None, None, None, {"input": {"value": {"name": "Given"}}}]
    for name, target in {"value": "15:11", "Show value": "15:12", "Labeled": "15:13", "Given": "15:14"}.items():
        into = [{"name": name, "type": "*", "link": 9}]
        prompt = queued(workflow(group, [], into, [[9, 1, 0, 2, 0, "INT"]]), registry)
        assert {place for place, (_, inputs) in prompt.items() if inputs == {"value": ["1", 0]}} == {target}, name


def test_a_seed_and_its_control_occupy_two_places(registry):
    group = {"nodes": [inside("Options", None), inside("Options", None)], "links": []}
    one = ["t", 7, "randomize", 0.25, False, "b", "y", 5, "fixed", "end"]
    two = ["u", 8, "fixed", 0.75, True, "a", "x", 6, "randomize", "tail"]
    prompt = queued(workflow(group, one + two), registry)
    assert [prompt[place][1]["seed"] for place in ("13:11", "13:12")] == [7, 8]
    assert [prompt[place][1]["tail"] for place in ("13:11", "13:12")] == ["end", "tail"]
    with pytest.raises(
        UniWorldError, match=r"Node 2 \(workflow/mine\): 19 values are saved, but the node has 20 widgets"
    ):
        queued(workflow(group, (one + two)[:-1]), registry)


@pytest.mark.parametrize("first", [True, False])
def test_the_value_of_a_primitive_is_the_group_nodes(registry, first):
    primitive = inside("PrimitiveNode", [77, "fixed"])
    primitive["outputs"] = [{"name": "INT", "type": "INT", "widget": {"name": "a"}, "links": []}]
    add = inside("Add", [0, 2, 3], [WIDGET])
    group = {"nodes": [primitive, add], "links": [[0, 0, 1, 0, 7, "INT"]]}
    values = [42, "fixed", 20, 30]
    if not first:
        group, values = {"nodes": [add, primitive], "links": [[1, 0, 0, 0, 7, "INT"]]}, [20, 30, 42, "fixed"]
    prompt = queued(workflow(group, values), registry)
    assert prompt["13:12" if first else "13:11"] == ("Add", {"a": 42, "b": 20, "c": 30})


def test_a_primitive_of_choices_keeps_its_place(registry):
    primitive = inside("PrimitiveNode", ["a", "fixed", ""])
    primitive["outputs"] = [{"name": "COMBO", "type": "COMBO", "widget": {"name": "old_choice"}, "links": []}]
    choice = {"name": "old_choice", "type": "COMBO", "link": None, "widget": {"name": "old_choice"}}
    group = {"nodes": [primitive, inside("Options", None, [choice])], "links": [[0, 0, 1, 0, 7, "COMBO"]]}
    values = ["b", "fixed", "", "t", 7, "randomize", 0.25, False, "y", 5, "fixed", "end"]
    prompt = queued(workflow(group, values), registry)
    assert (prompt["13:12"][1]["old_choice"], prompt["13:12"][1]["tail"]) == ("b", "end")


def test_reroutes_of_a_group_connect_both_sides(registry):
    reroute = inside("Reroute", None, [{"name": "", "type": "*", "link": None}], ["*"])
    group = {
        "nodes": [reroute, inside("Show", None, [{"name": "value", "type": "*"}])],
        "links": [[0, 0, 1, 0, 7, "*"]],
    }
    into = [{"name": "*", "type": "*", "link": 9}]
    prompt = queued(workflow(group, [], into, [[9, 1, 0, 2, 0, "INT"]]), registry)
    assert prompt["13:12"] == ("Show", {"value": ["1", 0]})
    through = {"nodes": [*sum_of()["nodes"], reroute], "links": [[0, 0, 2, 0, 7, "INT"], [2, 0, 1, 0, 8, "INT"]]}
    assert queued(workflow(through, [40, 2, 3]), registry)["14:12"] == ("Add", {"a": ["14:11", 0], "b": 2, "c": 3})


def test_muted_and_bypassed_group_nodes_do_not_run(registry):
    into = [{"name": "value", "type": "*", "link": 9}]
    group = {
        "nodes": [inside("Show", None, [{"name": "value", "type": "*"}], outputs=()), inside("Number", [4])],
        "links": [],
    }
    links = [[9, 1, 0, 2, 0, "INT"]]
    muted, bypassed = (queued(workflow(group, [4], into, links, mode=mode, shows=[0]), registry) for mode in (2, 4))
    assert muted == {"1": ("Number", {"value": 5}), "3": ("Show", {})}
    assert bypassed == {"1": ("Number", {"value": 5}), "3": ("Show", {"value": ["1", 0]})}


def test_a_muted_node_of_a_group_does_not_run(registry):
    group = sum_of()
    group["nodes"][0]["mode"] = 2
    prompt = queued(workflow(group, [40, 2, 3]), registry)
    assert set(prompt) == {"1", "13:12"}


def test_an_unknown_class_in_a_group_is_kept_so_that_the_check_can_report_it(registry):
    group = {"nodes": [inside("Nobody", [1]), inside("Number", [4])], "links": []}
    assert queued(workflow(group, [9]), registry)["13:11"] == ("Nobody", {})


def test_values_that_do_not_fit_because_of_an_unknown_class_are_an_error_that_names_it(registry):
    group = {"nodes": [inside("Nobody", [1]), inside("Number", [4])], "links": []}
    with pytest.raises(UniWorldError, match=r"2 values are saved(.|\n)* unknown classes 'Nobody'"):
        queued(workflow(group, [1, 4]), registry)


def test_without_saved_values_the_group_node_has_the_defaults_of_its_classes(registry):
    defaults = {entry[1].get("default", 0) for entry in registry.info("Number")["input"]["required"].values()}
    group = {"nodes": [inside("Number", [4])], "links": []}
    for values in (None, []):
        (value,) = queued(workflow(group, values), registry)["12:11"][1].values()
        assert {value} == defaults


def test_a_wire_into_an_input_that_the_group_lacks_is_dropped(registry):
    group = {"nodes": [inside("Number", [4])], "links": [], "external": [[[], {}, "INT"]]}
    into = [{"name": "gone", "type": "INT", "link": 9}]
    graph = workflow(group, [6], into, [[9, 1, 0, 2, 0, "INT"]])
    assert queued(graph, registry)["12:11"] == ("Number", {"value": 6})


def test_renamed_classes_in_a_group_are_replaced(registry):
    old, new = next((old, new) for old, new in RENAMED.items() if new in registry.classes)
    graph = rename_in_graph(workflow({"nodes": [inside(old, [])], "links": []}, []), registry)
    assert graph["extra"]["groupNodes"]["mine"]["nodes"][0]["type"] == new


def test_a_graph_without_group_nodes_is_returned_unchanged(registry):
    graph = {"nodes": [], "links": [], "extra": {"groupNodes": {"mine": sum_of()}}}
    assert with_groups_opened(graph, registry.info) is graph


@pytest.mark.parametrize(("group", "message"), [
    (None, r"Node 2 is a group node \('workflow/mine'\) of an old editor, and has no definition in the workflow"),
    ([], "The definition of the group node 'mine' has no list of nodes"),
    ({"nodes": 5}, "The definition of the group node 'mine' has no list of nodes"),
    ({"nodes": [{"type": "Number"}, {"id": 3}]}, "Node 1 of the group node 'mine' has no node class"),
    ({"nodes": [{"type": "workflow>mine"}]}, "The group node 'mine' contains a group node, 'workflow>mine': ungroup it"),
    ({"nodes": [inside("Number", [1, 2, 3])]}, r"Node 12:11 \(Number\), of the group node 2: 3 values are saved"),
])  # fmt: skip
def test_a_damaged_definition_is_an_error_that_names_it(registry, group, message):
    graph = workflow(group, [4])
    if group is None:
        graph["extra"]["groupNodes"].clear()
    with pytest.raises(UniWorldError, match=message):
        queued(graph, registry)


@pytest.mark.parametrize(
    "links", [None, 7, [5], [[0, 0]], [[9, 0, 0, 0, 1, "INT"]], [[0, -1, 1, 0]], [[None, 0, 1, 0]]]
)
@pytest.mark.parametrize("config", [None, 7, {"1": 5}, [5, {"input": []}], {"1": {"input": {"b": 3}}}])
def test_parts_of_a_definition_that_are_not_in_the_editors_form_are_ignored(registry, links, config):
    group = {**sum_of(), "links": links, "config": config, "external": config}
    assert set(queued(workflow(group, None), registry)) == {"1", "13:11", "13:12"}


def test_a_group_node_in_a_subgraph_is_named(registry):
    key = "0" * 8 + "-0000" * 3 + "-" + "0" * 12
    inner = {
        "id": key,
        "name": "s",
        "nodes": [{"id": 4, "type": "workflow>mine"}],
        "links": [],
        "inputs": [],
        "outputs": [],
    }
    graph = {"nodes": [{"id": 1, "type": key}], "links": [], "definitions": {"subgraphs": [inner]}}
    with pytest.raises(UniWorldError, match=r"Node 1:4 is a group node .* and is in a subgraph"):
        queued(graph, registry)
