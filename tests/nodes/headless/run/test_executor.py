"""The executor follows ComfyUI's rules for V1 nodes."""

from __future__ import annotations

import functools
import io
import itertools
import json
import sys
import threading
import types
from typing import Any

import pytest
from uniworld.nodes import host
from uniworld.nodes.headless.check.validate import validate_prompt
from uniworld.nodes.headless.run.executor import Executor
from uniworld.nodes.headless.run.report import JsonRunReport, RunReport
from uniworld.nodes.headless.run.stopping import StopRequest


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def texts(result: Any) -> list[str]:
    assert result.status == "success", result.sentence
    return [text for ui in result.ui.values() for text in ui["text"]]


def test_links_carry_values(run):
    prompt = {"1": node("Number", value=4), "2": node("Add", a=["1", 0], b=5), "3": node("Show", value=["2", 0])}
    assert texts(run(prompt)) == ["9"]


def test_a_node_that_no_output_needs_does_not_run(run, toys):
    run({"1": node("Number", value=4), "2": node("Number", value=7), "3": node("Show", value=["1", 0])})
    assert toys.calls == ["Number 4", "Show"]


def test_a_shared_source_runs_once(run, toys):
    run({"1": node("Number", value=4), "2": node("Add", a=["1", 0], b=["1", 0]), "3": node("Show", value=["2", 0])})
    assert toys.calls.count("Number 4") == 1


def test_a_chain_of_thousands_runs(run):
    prompt = {"0": node("Number", value=0)}
    prompt.update({str(i): node("Add", a=[str(i - 1), 0], b=1) for i in range(1, 3001)})
    prompt["end"] = node("Show", value=["3000", 0])
    assert texts(run(prompt)) == ["3000"]


def test_a_second_run_takes_everything_from_the_cache(run, toys):
    prompt = {"1": node("Number", value=4), "2": node("Show", value=["1", 0])}
    run(prompt)
    toys.calls.clear()
    events: list[Any] = []
    assert texts(run(prompt, events)) == ["4"]
    assert toys.calls == []
    assert dict(events)["execution_cached"]["nodes"] == ["1", "2"]
    assert [name for name, _ in events] == ["execution_start", "execution_cached", "executed", "execution_success"]


def test_only_what_depends_on_a_change_runs_again(run, toys):
    prompt = {"1": node("Number", value=4), "2": node("Add", a=["1", 0], b=1), "3": node("Show", value=["2", 0])}
    run(prompt)
    toys.calls.clear()
    prompt["2"]["inputs"]["b"] = 2
    assert texts(run(prompt)) == ["6"]
    assert toys.calls == ["Add", "Show"]


def test_the_cache_identifies_a_node_by_its_inputs_not_its_id(run, toys):
    run({"1": node("Number", value=4), "2": node("Show", value=["1", 0])})
    toys.calls.clear()
    run({"9": node("Number", value=4), "8": node("Show", value=["9", 0])})
    assert toys.calls == []


def test_a_cached_result_is_valid_for_one_salt_only(registry, plain, toys):
    prompt = {"1": node("Number", value=4), "2": node("Show", value=["1", 0])}
    executor = Executor(registry, plain, kept_results=10)
    for salts in (None, {"2": "a"}, {"2": "b"}, {"2": "a"}, {"1": "a"}):
        executor.run(prompt, ["2"], salts=salts)
    assert toys.calls == ["Number 4", "Show", "Show", "Show", "Number 4", "Show"]
    assert prompt["2"]["inputs"] == {"value": ["1", 0]}


def test_is_changed_makes_a_node_run_again(run, toys):
    prompt = {"1": node("Changing", value=4), "2": node("Show", value=["1", 0])}
    run(prompt)
    run(prompt)
    assert toys.calls.count("Number 4") == 1
    toys.Changing.state += 1
    run(prompt)
    assert toys.calls.count("Number 4") == 2


def test_is_changed_nan_means_always(run, toys):
    prompt = {"1": node("Changing", value=0), "2": node("Show", value=["1", 0])}
    run(prompt)
    run(prompt)
    assert toys.calls.count("Number 0") == 2


def test_the_most_recently_used_results_of_other_workflows_are_kept(registry, plain, toys):
    executor = Executor(registry, plain, kept_results=4)

    def ran(value: int) -> bool:
        toys.calls.clear()
        prompt = {"1": node("Number", value=value), "2": node("Show", value=["1", 0])}
        checked = validate_prompt(prompt, registry)
        executor.run(checked.prompt, checked.outputs)
        return f"Number {value}" in toys.calls

    assert [ran(value) for value in (1, 2, 1, 2)] == [True, True, False, False]
    assert [ran(value) for value in (1, 3, 1, 2, 3)] == [False, True, False, True, True]
    executor.forget()
    assert ran(3)


def test_a_node_that_receives_its_id_is_cached_for_that_id_only(run, toys):
    run({"1": node("Knowing", value=4)})
    run({"1": node("Knowing", value=4)})
    assert toys.calls == ["Number 4"]
    run({"2": node("Knowing", value=4)})
    assert toys.calls == ["Number 4", "Number 4"]


def test_a_failed_node_is_not_cached_but_nodes_before_it_are(run, toys):
    prompt = {"1": node("Number", value=4), "2": node("Failing", value=["1", 0]), "3": node("Show", value=["2", 0])}
    assert run(prompt).status == "error"
    assert run(prompt).status == "error"
    assert toys.calls == ["Number 4"]


@pytest.mark.parametrize(("which", "called"), [(True, "Number 1"), (False, "Number 2")])
def test_only_the_requested_lazy_input_runs(run, toys, which, called):
    prompt = {
        "1": node("Number", value=1),
        "2": node("Number", value=2),
        "3": node("Switch", which=which, yes=["1", 0], no=["2", 0]),
        "4": node("Show", value=["3", 0]),
    }
    assert texts(run(prompt)) == [called[-1]]
    assert toys.calls == [called, "Show"]


def test_lists_are_mapped_item_by_item_and_short_ones_repeat_their_last(run):
    prompt = {"1": node("Spread", count=3), "2": node("Add", a=["1", 0], b=10), "3": node("Show", value=["2", 0])}
    assert texts(run(prompt)) == ["10", "11", "12"]


def test_input_is_list_gets_the_whole_list(run):
    prompt = {
        "1": node("Spread", count=4),
        "2": node("Sum", values=["1", 0], times=2),
        "3": node("Show", value=["2", 0]),
    }
    assert texts(run(prompt)) == ["12"]


def test_an_empty_list_is_a_clear_error(run):
    prompt = {"1": node("Spread", count=0), "2": node("Add", a=["1", 0], b=1), "3": node("Show", value=["2", 0])}
    assert "empty" in run(prompt).sentence


def test_hidden_inputs_are_passed(run):
    prompt = {"7": node("Hidden", value="3")}
    result = run(prompt, extra_pnginfo={"workflow": {"nodes": []}})
    assert result.ui["7"]["seen"] == [{"prompt": prompt, "png": {"workflow": {"nodes": []}}, "me": "7"}]
    assert prompt["7"]["inputs"]["value"] == "3", "the user's workflow must not change"


def test_links_that_a_node_does_not_declare_go_to_its_kwargs(run, registry, toys, monkeypatch):
    class Variadic(toys.Number):
        def run(self, value, **others):
            return (f"{value} {others}",)

        @classmethod
        def VALIDATE_INPUTS(cls, **values):
            return True if values == {"value": 1, "more": None, "most": None} else f"{values}"

        @classmethod
        def IS_CHANGED(cls, **values):
            assert values == {"value": 1, "more": None, "most": None}
            return False

    monkeypatch.setitem(registry.classes, "Variadic", Variadic)
    prompt = {
        "1": node("Number", value=4),
        "2": node("Variadic", value=1, more=["1", 0], most=["1", 0], constant=3),
        "3": node("Show", value=["2", 0]),
    }
    assert texts(run(prompt)) == ["1 {'more': 4, 'most': 4}"], "constants that it does not declare are dropped"
    assert texts(run(prompt)) == ["1 {'more': 4, 'most': 4}"]
    prompt["1"]["inputs"]["value"] = 5
    assert texts(run(prompt)) == ["1 {'more': 5, 'most': 5}"]


def test_no_link_replaces_the_self_argument(run, toys, registry, monkeypatch):
    class Plain(toys.Number):
        pass

    class Variadic(toys.Number):
        def run(this, value, **others):
            return (f"{value} {others}",)

    class Decorated(toys.Number):
        @functools.wraps(toys.Number.run)
        def run(*values, **named):
            return toys.Number.run(*values, **named)

    class Static(toys.Number):
        @staticmethod
        def run(self, value):
            return (f"{self} {value}",)

    cases = [
        (Plain, "self", "1"),
        (Variadic, "this", "1 {}"),
        (Variadic, "self", "1 {'self': 4}"),
        (Decorated, "self", "1"),
        (Static, "self", "4 1"),
    ]
    for number, (node_class, name, given) in enumerate(cases):
        monkeypatch.setitem(registry.classes, f"Odd{number}", node_class)
        prompt = {
            "1": node("Number", value=4),
            "2": node(f"Odd{number}", value=1, **{name: ["1", 0]}),
            "3": node("Show", value=["2", 0]),
        }
        assert texts(run(prompt)) == [given]
        assert any(f"no input '{name}'" in note for note in validate_prompt(prompt, registry).notes) == (
            "4" not in given
        )


def test_a_link_that_a_node_cannot_take_is_ignored_with_a_note(run, toys, registry):
    prompt = {
        "1": node("Failing", value=4),
        "2": node("Number", value=1, other=["1", 0]),
        "3": node("Show", value=["2", 0]),
    }
    assert "no input 'other'" in validate_prompt(prompt, registry).notes[0]
    assert texts(run(prompt)) == ["1"]
    del prompt["1"]
    assert texts(run(prompt)) == ["1"]


def test_a_bad_link_that_goes_to_kwargs_is_found_before_the_run(registry, toys, monkeypatch):
    monkeypatch.setattr(toys.Number, "run", lambda self, value, **others: (value,))
    for link in (["nowhere", 0], ["1", 7]):
        prompt = {
            "1": node("Number", value=4),
            "2": node("Number", value=1, more=link),
            "3": node("Show", value=["2", 0]),
        }
        assert "'more'" in validate_prompt(prompt, registry).sentences[0]


@pytest.mark.parametrize("linked", [True, False])
def test_hidden_inputs_of_other_kinds_are_passed_if_another_node_sets_them(run, registry, toys, monkeypatch, linked):
    class Started(toys.Number):
        @classmethod
        def INPUT_TYPES(cls):
            return {**super().INPUT_TYPES(), "hidden": {"start": ("*",), "key": "API_KEY_COMFY_ORG"}}

        def run(self, value, **hidden):
            return (f"{hidden}",)

    monkeypatch.setitem(registry.classes, "Started", Started)
    prompt = {"1": node("Number", value=4), "2": node("Started", value=1), "3": node("Show", value=["2", 0])}
    assert texts(run(prompt)) == ["{'key': None}"]
    prompt["2"]["inputs"].update(start=["1", 0] if linked else 4, key="a client may not set this")
    assert texts(run(prompt)) == ["{'start': 4, 'key': None}"]


def test_a_raw_link_is_passed_unresolved(run, registry, toys, monkeypatch):
    class Raw(toys.Number):
        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {"value": ("INT", {"rawLink": True})}}

        def run(self, value):
            return (f"{value}",)

    monkeypatch.setitem(registry.classes, "Raw", Raw)
    prompt = {"1": node("Number", value=4), "2": node("Raw", value=["1", 0]), "3": node("Show", value=["2", 0])}
    assert texts(run(prompt)) == ["['1', 0]"]
    assert toys.calls == ["Number 4", "Show"]


def test_a_blocker_of_comfyuis_own_modules_works_too(run, registry, toys, monkeypatch):
    class ExecutionBlocker:
        def __init__(self, message):
            self.message = message

    module = types.ModuleType("comfy_execution.graph_utils")
    module.ExecutionBlocker = ExecutionBlocker
    monkeypatch.setitem(sys.modules, "comfy_execution.graph_utils", module)
    monkeypatch.setattr(toys.Blocker, "run", lambda self, message: ExecutionBlocker(None))
    result = run({"1": node("Blocker", message=""), "2": node("Show", value=["1", 0])})
    assert (result.status, result.ui) == ("success", {})


def test_a_coroutine_node_is_awaited(run):
    assert texts(run({"1": node("Coroutine", value=4), "2": node("Show", value=["1", 0])})) == ["5"]


def test_ui_and_result_are_both_used(run):
    prompt = {
        "1": node("Options", text="t", seed=1, strength=0.5, on=True, old_choice="a", new_choice="y"),
        "2": node("Show", value=["1", 0]),
    }
    result = run(prompt)
    assert result.ui["1"]["text"] == result.ui["2"]["text"]


def test_events_carry_comfyuis_fields(run):
    events: list[Any] = []
    run({"1": node("Slow", steps=2), "2": node("Show", value=["1", 0])}, events, prompt_id="p")
    names = [name for name, _ in events]
    assert names == [
        "execution_start", "execution_cached", "executing", "progress", "progress", "node_finished",
        "executing", "executed", "node_finished", "execution_success",
    ]  # fmt: skip
    assert all(data["prompt_id"] == "p" for _, data in events)
    progress = [data for name, data in events if name == "progress"]
    assert [(data["node"], data["value"], data["max"]) for data in progress] == [("1", 1, 2), ("1", 2, 2)]
    executed = dict(events)["executed"]
    assert (executed["node"], executed["display_node"], executed["output"]) == ("2", "2", {"text": ["2"]})


def test_an_error_names_node_class_and_reason(run):
    events: list[Any] = []
    result = run({"1": node("Failing", value=4), "2": node("Show", value=["1", 0])}, events)
    assert result.status == "error"
    assert result.sentence == "Node 1 (Failing) failed: The oven is cold. Light it."
    data = dict(events)["execution_error"]
    assert (data["node_id"], data["node_type"], data["exception_type"]) == ("1", "Failing", "ValueError")
    assert data["current_inputs"] == {"value": [4]}
    assert data["traceback"]


@pytest.mark.parametrize(("error", "ending"), [
    (ValueError("Line one.\n  Line two."), "failed: Line one. Line two."),
    (RuntimeError("size mismatch\ntensor([[0.1, 0.2]])"), "failed: RuntimeError: size mismatch"),
    (KeyError("samples"), "failed: KeyError: 'samples'"),
    (AssertionError(), "failed: AssertionError"),
    (ValueError(), "failed: ValueError"),
    (SystemExit(0), "failed: SystemExit: 0"),
])  # fmt: skip
def test_a_failed_node_is_one_sentence_that_ends_with_the_reason(run, toys, monkeypatch, error, ending):
    def fail(self, **_):
        raise error

    monkeypatch.setattr(toys.Sum, "run", fail)
    result = run({"2": node("Sum", values=5, times=1), "3": node("Show", value=["2", 0])})
    assert result.status == "error"
    assert result.sentence == f"Node 2 (Sum) {ending}"


def test_the_data_of_an_error_has_types_instead_of_large_values(run, toys, monkeypatch):
    monkeypatch.setattr(toys.Spread, "run", lambda self, count: ([{"samples": [1] * 500}, object(), "t" * 500, 7],))
    monkeypatch.setattr(toys.Sum, "run", lambda self, values, times: 1 / 0)
    prompt = {
        "1": node("Spread", count=1),
        "2": node("Sum", values=["1", 0], times=2),
        "3": node("Show", value=["2", 0]),
    }
    result = run(prompt)
    assert result.sentence == "Node 2 (Sum) failed: ZeroDivisionError: division by zero"
    assert result.error["current_inputs"] == {"values": ["dict", "object", "t" * 197 + "...", 7], "times": [2]}


@pytest.mark.parametrize(("how", "word"), [("none", "NoneType"), ("number", "int"), ("short", "0 outputs")])
def test_an_invalid_return_value_is_reported(run, how, word):
    result = run({"1": node("Strange", how=how), "2": node("Show", value=["1", 0])})
    assert result.status == "error"
    assert word in result.sentence


def test_a_blocker_stops_the_nodes_after_it_and_no_others(run):
    prompt = {
        "1": node("Blocker", message=""),
        "2": node("Show", value=["1", 0]),
        "3": node("Number", value=3),
        "4": node("Show", value=["3", 0]),
    }
    result = run(prompt)
    assert result.status == "success"
    assert result.ui == {"4": {"text": ["3"]}}


def test_a_blockers_message_is_reported_once(run):
    events: list[Any] = []
    prompt = {"1": node("Blocker", message="no."), "2": node("Add", a=["1", 0], b=1), "3": node("Show", value=["2", 0])}
    assert run(prompt, events).status == "success"
    errors = [data for name, data in events if name == "execution_error"]
    assert [data["exception_message"] for data in errors] == ["Execution Blocked: no."]


def test_an_interrupt_stops_within_a_step(run, plain):
    events: list[Any] = []

    def on_event(name, data):
        events.append(name)
        if name == "progress" and data["value"] == 2:
            plain.interrupted.set()

    result = run({"1": node("Slow", steps=1000), "2": node("Show", value=["1", 0])}, on_event=on_event)
    assert result.status == "interrupted"
    assert events.count("progress") == 2
    assert events[-1] == "execution_interrupted"
    assert not plain.interrupted.is_set(), "the next run must not be interrupted"


def test_a_stop_request_applies_to_all_later_runs(registry, plain, toys):
    executor, stop = Executor(registry, plain), StopRequest(plain)
    prompt = {"1": node("Number", value=4), "2": node("Show", value=["1", 0])}
    assert executor.run(prompt, ["2"], stop=stop).status == "success"
    executor.forget()
    toys.calls.clear()
    stop.set()
    assert [executor.run(prompt, ["2"], stop=stop).status for _ in range(2)] == ["interrupted", "interrupted"]
    assert toys.calls == []
    assert executor.run(prompt, ["2"]).status == "success"


def test_an_interrupt_while_nothing_runs_has_no_effect(run, plain):
    plain.interrupted.set()
    assert texts(run({"1": node("Number", value=1), "2": node("Show", value=["1", 0])})) == ["1"]


def test_runs_from_several_threads_wait_for_each_other(registry, executor):
    seen: list[str] = []

    def start(number: int) -> None:
        prompt = {"1": node("Slow", steps=number + 2), "2": node("Show", value=["1", 0])}
        checked = validate_prompt(prompt, registry)
        executor.run(
            checked.prompt, checked.outputs, prompt_id=str(number), on_event=lambda n, d: seen.append(d["prompt_id"])
        )

    threads = [threading.Thread(target=start, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    changes = sum(before != after for before, after in itertools.pairwise(seen))
    assert len(set(seen)) == 3
    assert changes == 2


def test_nodes_that_no_output_depends_on_may_be_invalid(run, executor, registry):
    prompt = {
        "1": node("Add", a=["2", 0], b=1),
        "2": node("Add", a=["1", 0], b=["nowhere", 0]),
        "3": node("Number", value=3),
        "4": node("Show", value=["3", 0]),
    }
    assert texts(run(prompt)) == ["3"]


class Warns:
    RETURN_TYPES, FUNCTION, OUTPUT_NODE, CATEGORY = (), "go", True, "toys"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def go(self):
        for _ in range(3):
            host.current().warn("The oven is lukewarm.")
        return ()


def test_a_warning_is_reported_once_in_every_form(run, registry, monkeypatch, capsys):
    monkeypatch.setitem(registry.classes, "Warns", Warns)
    events: list[Any] = []
    prompt = {"1": {"class_type": "Warns", "inputs": {}}, "2": {"class_type": "Warns", "inputs": {}}}
    result = run(prompt, events)
    assert result.status == "success"
    assert result.warnings == ["The oven is lukewarm."]
    [(_, data)] = [(name, data) for name, data in events if name == "warning"]
    assert (data["node"], data["message"]) == ("1", "The oven is lukewarm.")
    out = io.StringIO()
    RunReport(out, prompt).event("warning", data)
    JsonRunReport(out).event("warning", data)
    assert capsys.readouterr().err.count("lukewarm") == 2
    assert json.loads(out.getvalue())["message"] == "The oven is lukewarm."
    with pytest.warns(UserWarning, match="lukewarm"):
        host.PlainHost().warn("The oven is lukewarm.")


def test_a_cached_result_repeats_its_warning_in_the_next_run(run, registry, monkeypatch):
    monkeypatch.setitem(registry.classes, "Warns", Warns)
    prompt = {"1": {"class_type": "Warns", "inputs": {}}}
    run(prompt)
    events: list[Any] = []
    result = run(prompt, events)
    assert ["1"] in [data["nodes"] for name, data in events if name == "execution_cached"]
    assert result.warnings == ["The oven is lukewarm."]
    assert [data["node"] for name, data in events if name == "warning"] == ["1"]
