"""Prompts over HTTP: accepted, rejected, queued, finished and looked up, as ComfyUI's clients expect."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import pytest
from PIL import Image
from uniworld.nodes.headless.serve.config import RequestLimits


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def paint(steps: int, seed: int = 0) -> dict[str, Any]:
    return {"1": node("Paint", steps=steps, seed=seed)}


def test_a_prompt_runs_and_is_in_the_history(live, graphs):
    reply = live.post(
        "/prompt", {"prompt": graphs["sum"], "client_id": "me", "extra_data": {"extra_pnginfo": {"a": 1}}}
    )
    assert reply.status == 200
    assert reply.json.keys() == {"prompt_id", "number", "node_errors"}
    prompt_id = reply.json["prompt_id"]
    entry = live.wait(prompt_id)
    number, known_id, prompt, extra, outputs = entry["prompt"]
    assert (number, known_id, prompt, outputs) == (0, prompt_id, graphs["sum"], ["3"])
    assert isinstance(number, int)
    assert extra["client_id"] == "me"
    assert extra["extra_pnginfo"] == {"a": 1}
    assert entry["outputs"] == {"3": {"text": ["9"]}}
    assert entry["status"]["status_str"] == "success"
    assert entry["status"]["completed"] is True
    assert [name for name, _ in entry["status"]["messages"]] == [
        "execution_start", "execution_cached", "execution_success",
    ]  # fmt: skip
    assert entry["meta"]["3"] == {"node_id": "3", "display_node": "3", "parent_node": None, "real_node_id": "3"}


def test_the_queue_and_the_history_are_spaced_as_comfyui_writes_them(live, graphs):
    """Shell scripts search the text of the responses for finished prompts and for an empty queue."""
    live.run(graphs["sum"], prompt_id="known")
    for history in (live.get("/history").body, live.get("/history/known").body):
        for part in (b'"known": {', b'"status_str": "success"', b'"completed": true', b'"messages": ['):
            assert part in history
    assert b'"queue_running": []' in live.get("/queue").body


def test_a_node_id_with_an_unpaired_surrogate_is_in_the_queue_and_the_history(live):
    prompt = {"\ud800": node("PreviewAny", source="é")}
    entry = live.run(prompt)
    assert entry["prompt"][2] == prompt
    assert entry["outputs"] == {"\ud800": {"text": ["é"]}}
    assert entry["meta"]["\ud800"]["node_id"] == "\ud800"


def test_choices_in_a_prompt_are_not_resolved_by_the_server(live):
    text = "{a|b} // c"
    prompt = {"1": node("Prompted", text=text, plain="", seed=1)}
    entry = live.run(prompt)
    assert entry["prompt"][2] == prompt
    assert entry["outputs"]["1"]["text"] == [text]


def test_a_prompt_with_an_older_class_id_runs(live):
    entry = live.run(
        {
            "1": node("UniWorldLatentByAspect", width=4, height=3, area_side=128, ratios="any_11ratio", batch_size=1),
            "2": node("PreviewAny", source=["1", 1]),
        }
    )
    assert entry["status"]["status_str"] == "success"
    assert entry["prompt"][2]["1"]["class_type"] == "UniWorldEmptyLatent"


def test_cached_nodes_do_not_run_again(live, graphs):
    live.run(graphs["sum"])
    entry = live.run(graphs["sum"])
    cached = dict(entry["status"]["messages"])["execution_cached"]["nodes"]
    assert sorted(cached) == ["1", "2", "3"]
    assert entry["outputs"] == {"3": {"text": ["9"]}}


def test_a_picture_is_saved_with_its_workflow(live, graphs):
    pnginfo = {"extra_pnginfo": {"workflow": {"nodes": [], "id": "w"}}}
    entry = live.run(graphs["picture"], extra_data=pnginfo)
    (saved,) = entry["outputs"]["2"]["images"]
    with Image.open(live.config.output / saved["filename"]) as picture:
        assert set(picture.info) >= {"prompt", "workflow"}


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({}, 400, "no_prompt"),
        ({"prompt": {}}, 400, "invalid_prompt"),
        ({"prompt": []}, 400, "invalid_prompt"),
        ({"prompt": 3}, 400, "invalid_prompt"),
        ({"prompt": {"1": {"class_type": "Nothing"}}}, 400, "invalid_prompt"),
        ({"prompt": {"1": {"inputs": {}}}}, 400, "invalid_prompt"),
        ({"prompt": {"1": node("Number", value=1)}}, 400, "prompt_no_outputs"),
        ({"prompt": {"1": node("Show")}}, 400, "prompt_outputs_failed_validation"),
        ({"prompt": {"1": node("Show", value=["1", 0])}}, 400, "prompt_outputs_failed_validation"),
        ({"prompt": paint(1), "number": "first"}, 400, "invalid_number"),
        ({"prompt": paint(1), "prompt_id": 5}, 400, "invalid_prompt_id"),
        ({"prompt": paint(1), "prompt_id": "a/b"}, 400, "invalid_prompt_id"),
        ({"prompt": paint(1), "prompt_id": "x" * 200}, 400, "invalid_prompt_id"),
        ({"prompt": {"1" * 257: paint(1)["1"]}}, 400, "invalid_node_id"),
        ({"prompt": paint(1), "client_id": []}, 400, "invalid_client_id"),
        ({"prompt": paint(1), "client_id": "x" * 129}, 400, "invalid_client_id"),
        ({"prompt": paint(1), "client_id": None, "extra_data": {"client_id": 10**30}}, 400, "invalid_client_id"),
        ({"prompt": paint(1), "extra_data": {"client_id": {"a": 1}}}, 400, "invalid_client_id"),
        ({"prompt": paint(1), "extra_data": []}, 200, ""),
        ({"prompt": paint(1), "extra_data": [1]}, 400, "invalid_extra_data"),
        ({"prompt": paint(1), "partial_execution_targets": "1"}, 400, "invalid_targets"),
        ([], 400, "invalid_json"),
    ],
)
def test_an_invalid_prompt_is_rejected_with_a_reason(live, body, status, kind):
    reply = live.post("/prompt", body)
    assert reply.status == status
    if kind:
        assert reply.error == kind
        assert live.get("/queue").json == {"queue_running": [], "queue_pending": []}


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"prompt": NaN}', b"[" * 100_000, b'{"number": 1e999}'])
def test_a_body_that_is_not_json_is_rejected(live, body):
    assert live.post("/prompt", body=body).status == 400


def test_errors_of_nodes_have_comfyuis_form(live):
    reply = live.post(
        "/prompt", {"prompt": {"1": node("Paint", steps="many", seed=0), "2": node("Show", value=["1", 0])}}
    )
    assert reply.status == 400
    assert reply.json["node_errors"]["1"]["class_type"] == "Paint"
    assert reply.json["node_errors"]["1"]["dependent_outputs"] == ["1", "2"]
    (error,) = reply.json["node_errors"]["1"]["errors"]
    assert error["type"] == "invalid_input_type"
    assert error["extra_info"]["input_name"] == "steps"


def test_valid_outputs_run_despite_invalid_ones(live):
    reply = live.post("/prompt", {"prompt": {"1": node("Paint", steps=1, seed=1), "2": node("Show")}})
    assert reply.status == 200
    assert list(reply.json["node_errors"]) == ["2"]
    assert list(live.wait(reply.json["prompt_id"])["outputs"]) == ["1"]


def test_only_the_requested_outputs_run(live):
    both = {"1": node("Paint", steps=1, seed=1), "2": node("Paint", steps=1, seed=2)}
    assert list(live.run(both, partial_execution_targets=["2"])["outputs"]) == ["2"]


def test_an_id_chosen_by_the_client_is_used_and_never_runs_twice(live):
    assert live.queue(paint(1), prompt_id="mine") == "mine"
    live.wait("mine")
    again = live.post("/prompt", {"prompt": paint(1), "prompt_id": "mine"})
    assert (again.status, again.error) == (400, "prompt_id_taken")


def test_the_queue_orders_by_number_and_front(live):
    running = live.queue(paint(500))
    while not live.get("/queue").json["queue_running"]:
        time.sleep(0.01)
    ids = {name: live.queue(paint(1, seed=n), **more) for n, (name, more) in enumerate(
        {"third": {}, "fourth": {}, "first": {"number": -10}, "second": {"front": True}}.items()
    )}  # fmt: skip
    queue = live.get("/queue").json
    assert [item[1] for item in queue["queue_running"]] == [running]
    assert [item[1] for item in queue["queue_pending"]] == [ids[n] for n in ("first", "second", "third", "fourth")]
    assert [item[0] for item in queue["queue_pending"]] == [-10, -3, 1, 2]
    assert live.get("/prompt").json == {"exec_info": {"queue_remaining": 5}}
    live.post("/queue", {"delete": [ids["first"], "unknown"]})
    assert ids["first"] not in str(live.get("/queue").json)
    live.post("/queue", {"clear": True})
    assert live.get("/queue").json["queue_pending"] == []
    assert live.get(f"/history/{ids['third']}").json == {}
    live.post("/interrupt")
    live.wait(running)


def test_the_history_is_paged_and_cleared(live):
    ids = [live.queue(paint(1, seed=n)) for n in range(5)]
    live.wait(ids[-1])
    assert list(live.get("/history").json) == ids
    assert list(live.get("/history?max_items=2").json) == ids[3:]
    assert list(live.get("/history?max_items=2&offset=1").json) == ids[1:3]
    assert list(live.get("/history?offset=3").json) == ids[3:]
    assert live.get("/history?max_items=0").json == {}
    assert live.get("/history?max_items=many").status == 400
    live.post("/history", {"delete": [ids[0]]})
    assert list(live.get("/history").json) == ids[1:]
    live.post("/history", {"clear": True})
    assert live.get("/history").json == {}


def test_an_error_is_reported_with_its_node(live):
    entry = live.run({"1": node("Failing", value=3), "2": node("Show", value=["1", 0])})
    assert entry["status"]["status_str"] == "error"
    assert entry["status"]["completed"] is False
    name, data = entry["status"]["messages"][-1]
    assert name == "execution_error"
    assert (data["node_id"], data["node_type"], data["exception_type"]) == ("1", "Failing", "ValueError")
    assert "cold" in data["exception_message"]
    assert data["current_inputs"] == {"value": [3]}


def test_a_node_cannot_stop_the_server(live, graphs):
    entry = live.run({"1": node("Exits")})
    assert entry["status"]["status_str"] == "error"
    assert live.run(graphs["sum"])["status"]["completed"] is True


def test_numbers_that_json_cannot_represent_do_not_break_responses(live):
    entry = live.run(
        {"1": node("Options", text="\x00\ud83d\ude00", seed=0, strength=0.5, on=True, old_choice="a", new_choice="x")}
    )
    assert entry["status"]["completed"] is True


def test_interrupt_stops_within_a_step(live):
    prompt_id = live.queue(paint(1000))
    while not live.get("/queue").json["queue_running"]:
        pass
    live.post("/interrupt", {"prompt_id": "another"})
    assert live.get("/queue").json["queue_running"]
    live.post("/interrupt", {"prompt_id": prompt_id})
    entry = live.wait(prompt_id)
    assert [name for name, _ in entry["status"]["messages"]][-1] == "execution_interrupted"
    assert entry["status"] == {**entry["status"], "status_str": "error", "completed": False}
    assert live.get(f"/jobs/{prompt_id}").json["status"] == "cancelled"
    assert live.run(paint(1))["status"]["completed"] is True


def test_interrupt_without_a_running_prompt_does_nothing(live):
    assert live.post("/interrupt").status == 200
    assert live.post("/interrupt", {"prompt_id": 5}).status == 400
    assert live.run(paint(1))["status"]["completed"] is True


def test_jobs_are_listed_in_every_state(live):
    done = live.queue(paint(1), extra_data={"extra_pnginfo": {"workflow": {"id": "graph"}}})
    failed = live.queue({"1": node("Failing", value=3), "2": node("Show", value=["1", 0])})
    live.wait(failed)
    running, waiting = live.queue(paint(1000)), live.queue(paint(2))
    while not live.get("/queue").json["queue_running"]:
        pass
    page = live.get("/jobs").json
    assert {job["id"]: job["status"] for job in page["jobs"]} == {
        done: "completed", failed: "failed", running: "in_progress", waiting: "pending",
    }  # fmt: skip
    assert page["pagination"] == {"offset": 0, "limit": 1000, "total": 4, "has_more": False}
    assert [job["id"] for job in page["jobs"]] == [waiting, running, failed, done]
    small = live.get("/jobs?limit=1&offset=1&sort_order=asc&status=completed,failed").json
    assert [job["id"] for job in small["jobs"]] == [failed]
    assert live.get("/jobs?limit=1").json["pagination"]["has_more"] is True
    assert [job["id"] for job in live.get("/jobs?workflow_id=graph").json["jobs"]] == [done]
    assert page["jobs"][2]["execution_error"]["node_id"] == "1"
    for wrong in ("status=ready", "sort_by=colour", "sort_order=up", "limit=0", "limit=x", "offset=-1"):
        assert live.get(f"/jobs?{wrong}").status == 400
    assert live.post(f"/jobs/{waiting}/cancel").json == {"cancelled": True}
    assert live.get(f"/jobs/{waiting}").status == 404
    assert live.post("/jobs/cancel", {"job_ids": [running, done, "unknown"]}).json == {"cancelled": [running]}
    live.wait(running)
    assert live.post(f"/jobs/{done}/cancel").json == {"cancelled": False}
    assert live.post("/jobs/unknown/cancel").status == 404


def test_a_job_has_its_graph_and_outputs(live, graphs):
    prompt_id = live.queue(graphs["picture"])
    live.wait(prompt_id)
    job = live.get(f"/jobs/{prompt_id}").json
    assert job["workflow"]["prompt"] == graphs["picture"]
    assert job["outputs"]["2"]["images"]
    assert (job["outputs_count"], job["previewable_outputs_count"]) == (1, 1)
    assert job["preview_output"] == {**job["outputs"]["2"]["images"][0], "nodeId": "2", "mediaType": "images"}
    assert job["execution_end_time"] >= job["execution_start_time"] >= job["create_time"]


def test_limits_of_graph_queue_and_body(start, config):
    live = start(limits=dataclasses.replace(RequestLimits(), nodes=3, waiting=1, json_bytes=5000, ids=2))
    many = {str(n): node("Paint", steps=1, seed=n) for n in range(4)}
    assert live.post("/prompt", {"prompt": many}).status == 413
    assert live.post("/prompt", {"prompt": paint(1), "extra_data": {"x": "x" * 6000}}).status == 413
    assert live.post("/settings", {"x": "x" * 6000}).status == 413
    assert live.post("/history", {"delete": ["a", "b", "c"]}).status == 400
    assert live.post("/history", {"delete": "abc"}).status == 400
    running = live.queue(paint(1000))
    while not live.get("/queue").json["queue_running"]:
        pass
    live.queue(paint(1))
    full = live.post("/prompt", {"prompt": paint(1)})
    assert (full.status, full.error) == (429, "queue_full")
    live.post("/queue", {"clear": True})
    live.post("/interrupt")
    live.wait(running)


def test_free_releases_cached_results(live, graphs):
    live.run(graphs["sum"])
    assert live.post("/free", {"unload_models": True, "free_memory": True}).status == 200
    entry = live.run(graphs["sum"])
    assert dict(entry["status"]["messages"])["execution_cached"]["nodes"] == []


def test_credentials_of_other_services_are_not_stored(live):
    entry = live.run(paint(1), extra_data={"auth_token_comfy_org": "s3cret", "api_key_comfy_org": "s3cret"})
    assert "s3cret" not in str(entry)


def test_an_output_that_became_invalid_fails_with_a_message(live, tmp_path):
    Image.new("RGB", (4, 4)).save(live.config.input / "gone.png")
    running = live.queue(paint(1000))
    waiting = live.queue({"1": node("LoadImage", image="gone.png"), "2": node("PreviewImage", images=["1", 0])})
    (live.config.input / "gone.png").unlink()
    live.post("/interrupt", {"prompt_id": running})
    while live.get("/queue").json["queue_running"] and live.get("/history").json == {}:
        live.post("/interrupt", {"prompt_id": running})
    entry = live.wait(waiting)
    assert entry["status"]["status_str"] == "error"
    assert "gone.png" in entry["status"]["messages"][-1][1]["exception_message"]
