"""Nodes may add nodes to the graph while it runs, as in ComfyUI ("expand")."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
from uniworld.nodes.headless.run.executor import Executor


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


class Grow:
    """Adds and returns whatever `grow` returns for its value."""

    RETURN_TYPES = ("INT",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("INT", {})}, "hidden": {"me": "UNIQUE_ID", "graph": "DYNPROMPT"}}

    def run(self, value: int, me: str, graph: Any) -> Any:
        return type(self).grow(value, me, graph)

    @staticmethod
    def grow(value: int, me: str, graph: Any) -> Any:
        raise NotImplementedError


@pytest.fixture
def grows(registry, monkeypatch):
    """A function that sets `Grow.grow`, and returns a workflow that shows the output of Grow."""
    monkeypatch.setitem(registry.classes, "Grow", Grow)

    def grows(grow: Any) -> dict[str, Any]:
        monkeypatch.setattr(Grow, "grow", staticmethod(grow))
        return {"1": node("Number", value=4), "2": node("Grow", value=["1", 0]), "3": node("Show", value=["2", 0])}

    return grows


def plus_one(value: int, me: str, _graph: Any) -> dict[str, Any]:
    return {"expand": {f"{me}.a": node("Add", a=value, b=1)}, "result": ([f"{me}.a", 0],)}


def test_the_output_of_an_added_node_becomes_the_output_of_the_node(run, grows, toys):
    events: list[Any] = []
    assert run(grows(plus_one), events).ui["3"]["text"] == ["5"]
    assert toys.calls == ["Number 4", "Add", "Show"]
    started = [data for name, data in events if name == "executing"]
    assert [data["node"] for data in started] == ["1", "2", "2.a", "3"]
    assert (started[2]["display_node"], started[2]["parent_node"], started[2]["real_node"]) == ("2", "2", "2")
    assert [data["node"] for name, data in events if name == "node_finished"] == ["1", "2.a", "2", "3"]


def test_results_may_mix_values_links_and_blockers(run, grows, toys):
    from uniworld.nodes.headless.registry.calls import ExecutionBlocker

    def grow(value: int, me: str, _graph: Any) -> Any:
        if value == 0:
            return (10,)
        if value == 1:
            return {"expand": {f"{me}.0": node("Spread", count=2)}, "result": ([f"{me}.0", 0],)}
        if value == 2:
            return {"expand": {f"{me}.1": node("Show", value="aside")}, "result": ExecutionBlocker()}
        return {"result": (13,)}

    prompt = grows(grow)
    prompt["1"] = node("Spread", count=4)
    assert run(prompt).ui["3"]["text"] == ["10", "0", "1", "13"]


def test_added_nodes_may_use_any_node_and_any_object(run, grows):
    marker = object()

    def grow(value: int, me: str, _graph: Any) -> Any:
        return {"expand": {"x": node("Show", value=marker), "y": node("Add", a=["1", 0], b=1)}, "result": (["y", 0],)}

    result = run(grows(grow))
    assert result.ui["3"]["text"] == ["5"]
    assert result.ui["x"]["text"] == [str(marker)]


def test_lazy_inputs_of_an_added_node_run_only_on_request(run, grows, toys):
    def grow(value: int, me: str, _graph: Any) -> Any:
        added = {"s": node("Switch", which=True, yes=["a", 0], no=["b", 0]), "a": node("Number", value=1)}
        return {"expand": {**added, "b": node("Number", value=2)}, "result": (["s", 0],)}

    assert run(grows(grow)).ui["3"]["text"] == ["1"]
    assert toys.calls == ["Number 4", "Number 1", "Show"]


def test_a_loop_adds_itself_until_it_is_done(run, grows):
    def grow(value: int, me: str, graph: Any) -> Any:
        assert graph.get_node(me)["class_type"] == "Grow"
        assert (graph.get_real_node_id(me), graph.get_display_node_id(me)) == ("2", "2")
        assert graph.get_original_prompt()["2"]["class_type"] == "Grow"
        if value >= 300:
            return (value,)
        again = node("Grow", value=value + 1)
        return {"expand": {f"{me}.": {**again, "override_display_id": me}}, "result": ([f"{me}.", 0],)}

    assert run(grows(grow)).ui["3"]["text"] == ["300"]


def test_a_second_run_uses_the_cache_and_repeats_the_ui_of_added_nodes(run, grows, toys):
    def grow(value: int, me: str, _graph: Any) -> Any:
        added = {"g": node("Grow", value=0), "w": node("Show", value="shown by an added node")}
        return plus_one(value, me, None) if me == "g" else {"expand": added, "result": (["g", 0],)}

    prompt = grows(grow)
    first = run(prompt)
    toys.calls.clear()
    events: list[Any] = []
    second = run(prompt, events)
    assert toys.calls == []
    assert second.ui == first.ui
    assert second.ui["w"]["text"] == ["shown by an added node"]
    assert [data["display_node"] for name, data in events if name == "executed" and data["node"] == "w"] == ["2"]


def test_when_a_node_adds_the_same_nodes_again_their_results_are_cached(run, grows, toys, monkeypatch):
    monkeypatch.setattr(Grow, "IS_CHANGED", lambda value: float("nan"), raising=False)
    prompt = grows(plus_one)
    for _ in range(3):
        toys.calls.clear()
        run(prompt)
    assert toys.calls == ["Show"]
    other = {"1": node("Number", value=4), "2": node("Show", value=["1", 0])}
    run(other)
    toys.calls.clear()
    run(prompt)
    assert "Add" in toys.calls, "results that a workflow cannot use are dropped"


@pytest.mark.parametrize(("graph", "word"), [
    ([], "must map node ids"), ({"a": 3}, "not a node in API form"), ({"a": {"class_type": "Add", "inputs": []}}, "API form"),
    ({"1": {"class_type": "Number", "inputs": {"value": 1}}}, "already exists"), ({"a": {"class_type": "Nobody"}}, "'Nobody'"),
    ({"a": {"class_type": ["Add"]}}, "unknown"),
    ({"a": {"class_type": "Add", "inputs": {"a": ["b", 0], "b": 1}}, "b": {"class_type": "Add", "inputs": {"a": ["a", 0]}}},
     "cycle"),
    ({"a": {"class_type": "Add", "inputs": {"a": ["gone", 0], "b": 1}}}, "'gone'"),
    ({"a": {"class_type": "Show", "inputs": {"value": ["1", 0]}}}, "returned 0 outputs"),
    ({"a": {"class_type": "Add", "inputs": {"a": ["2", 0], "b": 1}}}, "waits for"),
])  # fmt: skip
def test_an_invalid_added_node_is_an_error_of_the_node_that_adds_it(run, grows, graph, word):
    result = run(grows(lambda *_: {"expand": graph, "result": (["a", 0],)}))
    assert result.status == "error"
    assert result.error["node_id"] == "2"
    assert word in result.sentence


def test_an_error_of_an_added_node_names_the_node_of_the_workflow(run, grows):
    def grow(value: int, me: str, _graph: Any) -> Any:
        return {"expand": {"bad": node("Failing", value=1)}, "result": (["bad", 0],)}

    result = run(grows(grow))
    assert result.sentence == "Node 2 (Grow) failed: The oven is cold. Light it."
    assert (result.error["node_id"], result.error["node_type"]) == ("2", "Grow")


def test_a_loop_that_never_ends_is_an_error(run, grows, monkeypatch):
    monkeypatch.setattr("uniworld.nodes.headless.run.expansion.MAX_ADDED", 50)

    def grow(value: int, me: str, _graph: Any) -> Any:
        return {"expand": {f"{me}.": node("Grow", value=value)}, "result": ([f"{me}.", 0],)}

    assert "more than 50 nodes" in run(grows(grow)).sentence


def test_an_interrupt_ends_a_loop(run, grows, plain):
    def grow(value: int, me: str, _graph: Any) -> Any:
        if value == 20:
            plain.interrupted.set()
        return {"expand": {f"{me}.": node("Grow", value=value + 1)}, "result": ([f"{me}.", 0],)}

    assert run(grows(grow)).status == "interrupted"


def test_comfyuis_graph_builder_gets_the_prefix_of_the_running_node(run, grows, monkeypatch):
    prefixes: list[Any] = []

    class GraphBuilder:
        @classmethod
        def set_default_prefix(cls, root: str, call: int, graph: int = 0) -> None:
            prefixes.append((root, call, graph))

    module = types.ModuleType("comfy_execution.graph_utils")
    module.GraphBuilder = GraphBuilder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "comfy_execution.graph_utils", module)
    prompt = grows(lambda value, *_: (value,))
    prompt["1"] = node("Spread", count=2)
    run(prompt)
    assert [prefix for prefix in prefixes if prefix[0] == "2"] == [("2", 0, 0), ("2", 1, 0)]


def test_the_users_workflow_is_unchanged(executor: Executor, run, grows):
    prompt = grows(plus_one)
    before = {key: {**value, "inputs": dict(value["inputs"])} for key, value in prompt.items()}
    run(prompt)
    assert prompt == before
