"""Messages of nodes that run at the same time, and of nodes that expand to others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from uniworld.nodes.headless.serve.queue.messages import RunMessages
from uniworld.nodes.headless.serve.queue.prompt_runner import Run


class Kept:
    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []

    def send(self, kind: str, data: dict[str, Any], client: str | None = None) -> None:
        self.sent.append((kind, data))

    def states(self) -> dict[str, str]:
        _, data = [one for one in self.sent if one[0] == "progress_state"][-1]
        return {name: state["state"] for name, state in data["nodes"].items()}


def executing(node: str, display: str | None = None, parent: str | None = None) -> dict[str, Any]:
    return {"node": node, "display_node": display or node, "parent_node": parent, "real_node": display or node}


def test_nodes_that_run_at_the_same_time_have_separate_states():
    sink = Kept()
    messages = RunMessages("p", "me", sink)
    messages.event("executing", executing("1"))
    messages.event("executing", executing("2"))
    assert sink.states() == {"1": "running", "2": "running"}
    messages.event("progress", {"node": "1", "value": 2, "max": 5})
    messages.event("node_finished", {"node": "2"})
    assert sink.states() == {"1": "running", "2": "finished"}
    assert sink.sent[-1][1]["nodes"]["1"]["value"] == 2


def test_an_expanded_node_is_displayed_at_the_node_of_the_workflow():
    sink = Kept()
    messages = RunMessages("p", "me", sink)
    messages.event("executing", executing("2"))
    messages.event("node_paused", {"node": "2"})
    messages.event("executing", executing("2.a", "2", "2"))
    assert sink.sent[-1] == ("executing", {"node": "2.a", "display_node": "2", "prompt_id": "p"})
    about = sink.sent[-2][1]["nodes"]["2.a"]
    assert (about["display_node_id"], about["parent_node_id"], about["real_node_id"]) == ("2", "2", "2")
    assert messages.node == "2", "sent to a client that reconnects, so it must be in its graph"
    messages.event("node_finished", {"node": "2.a"})
    messages.event("node_finished", {"node": "2"})
    assert sink.states() == {"2": "finished", "2.a": "finished"}


def test_the_time_of_expanded_nodes_counts_towards_their_parent(monkeypatch):
    clock = iter([0.0, 1.0, 10.0, 14.0, 20.0, 30.0])
    timer = SimpleNamespace(perf_counter=lambda: next(clock))
    monkeypatch.setattr("uniworld.nodes.headless.serve.queue.prompt_runner.time", timer)
    run = Run(accepted=None, messages=None)  # type: ignore[arg-type]
    run.record_time("executing", executing("2"))
    run.record_time("node_paused", {"node": "2"})
    run.record_time("executing", executing("2.a", "2", "2"))
    run.record_time("node_finished", {"node": "2.a"})
    run.record_time("executing", executing("3"))
    run.record_time("execution_error", {"node_id": "3"})
    assert run.seconds == pytest.approx({"2": 5.0, "3": 10.0})
