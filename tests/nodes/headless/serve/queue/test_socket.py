"""The WebSocket: ComfyUI's messages, in ComfyUI's order, to the right clients."""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any

from PIL import Image
from uniworld.nodes.headless.serve.queue import clients
from uniworld.nodes.headless.serve.queue.clients import Client


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def kinds(messages: list[tuple[Any, Any]]) -> list[Any]:
    return [kind for kind, _ in messages]


def test_the_first_message_is_the_status_with_the_sid(live):
    kind, data = live.connect().receive()
    assert kind == "status"
    assert data["status"] == {"exec_info": {"queue_remaining": 0}}
    assert len(data["sid"]) == 32
    assert live.connect("my-own").receive()[1]["sid"] == "my-own"


def test_the_messages_of_a_run_are_in_order(live):
    socket = live.connect("me", {"supports_preview_metadata": True})
    graph = {"1": node("Slow", steps=1), "2": node("Show", value=["1", 0])}
    prompt_id = live.queue(graph, client_id="me")
    messages = [(kind, data) for kind, data in socket.until_done() if kind != "status"]
    assert kinds(messages) == [
        "feature_flags", "execution_start", "execution_cached",
        "progress_state", "executing", "progress", "progress_state", "progress_state",
        "progress_state", "executing", "executed", "progress_state",
        "execution_success", "executing",
    ]  # fmt: skip
    assert all(data["prompt_id"] == prompt_id for _, data in messages[1:])
    assert messages[4][1] == {"node": "1", "display_node": "1", "prompt_id": prompt_id}
    assert messages[5][1] == {"value": 1, "max": 1, "prompt_id": prompt_id, "node": "1"}
    assert messages[10][1] == {"node": "2", "display_node": "2", "output": {"text": ["1"]}, "prompt_id": prompt_id}
    states = messages[11][1]["nodes"]
    assert {name: state["state"] for name, state in states.items()} == {"1": "finished", "2": "finished"}
    assert states["1"] == {
        "value": 1, "max": 1, "state": "finished", "node_id": "1", "prompt_id": prompt_id,
        "display_node_id": "1", "parent_node_id": None, "real_node_id": "1",
    }  # fmt: skip
    # The history is stored before the last message is sent.
    assert prompt_id in live.get(f"/history/{prompt_id}").json


def test_status_goes_to_everyone_and_runs_to_their_client(live):
    mine, other = live.connect("mine"), live.connect("other")
    live.wait(live.queue({"1": node("Paint", steps=2, seed=0)}, client_id="mine"))
    mine.until_done()
    seen = other.until(
        lambda kind, data: (
            kind == "status" and "sid" not in data and data["status"]["exec_info"]["queue_remaining"] == 0
        )
    )
    assert set(kinds(seen)) == {"status"}


def test_previews_in_both_forms(live):
    new, old = live.connect("new", {"supports_preview_metadata": True}), live.connect("old")
    new.until(lambda kind, _: kind == "feature_flags")
    for name, socket, number in (("new", new, 4), ("old", old, 1)):
        prompt_id = live.queue({"6:2": node("Paint", steps=3, seed=number)}, client_id=name)
        frames = [data for kind, data in socket.until_done() if kind == number]
        assert frames
        frame = frames[-1]
        if number == 4:
            length = int.from_bytes(frame[:4], "big")
            about = json.loads(frame[4 : 4 + length])
            assert about == {
                "node_id": "6:2", "display_node_id": "6:2", "parent_node_id": None, "real_node_id": "6:2",
                "prompt_id": prompt_id, "image_type": "image/jpeg",
            }  # fmt: skip
            picture = frame[4 + length :]
        else:
            assert frame[:4] == b"\0\0\0\1"
            picture = frame[4:]
        assert Image.open(io.BytesIO(picture)).size == (512, 256)


def test_a_client_that_reconnects_sees_its_run(live):
    first = live.connect("me")
    prompt_id = live.queue({"1": node("Paint", steps=500, seed=0)}, client_id="me")
    first.until(lambda kind, _: kind == "progress")
    second = live.connect("me")
    assert second.receive()[0] == "status"
    _, data = second.until(lambda kind, _: kind == "executing")[-1]
    assert data == {"node": "1", "display_node": "1", "prompt_id": prompt_id}
    first.close()
    live.sockets.remove(first)
    second.until(lambda kind, _: kind == "progress")  # closing the old socket did not remove the new one
    live.post("/interrupt")
    assert "execution_interrupted" in kinds(second.until_done())


def test_an_interruption_is_sent_to_all_clients(live):
    other = live.connect("other")
    live.queue({"1": node("Paint", steps=500, seed=0)})
    while not live.get("/queue").json["queue_running"]:
        pass
    live.post("/interrupt")
    assert other.until(lambda kind, _: kind == "execution_interrupted")


def test_invalid_messages_are_ignored(live):
    socket = live.connect("me")
    for text in ("", "{", "[]", '"x"', '{"type": []}', '{"type": "feature_flags", "data": 5}', "[" * 5000):
        socket.send(text)
    socket.send({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
    socket.until(lambda kind, _: kind == "feature_flags")
    assert live.get("/prompt").status == 200


def test_an_invalid_client_id_is_replaced(live):
    assert live.connect("%00%0a").receive()[1]["sid"].isalnum()


def test_the_log_can_be_followed(live):
    socket = live.connect("me")
    socket.receive()
    assert live.ask("PATCH", "/internal/logs/subscribe", {"clientId": "me", "enabled": True}).status == 200
    assert live.ask("PATCH", "/internal/logs/subscribe", {"enabled": True}).status == 400
    prompt_id = live.queue({"1": node("Paint", steps=1, seed=0, _meta=0)})
    entries = socket.until(lambda kind, _: kind == "logs")[-1][1]["entries"]
    assert prompt_id in entries[0]["m"]
    assert "Paint" in entries[0]["m"]
    assert prompt_id in live.get("/internal/logs").json
    assert prompt_id in live.get("/internal/logs/raw").json["entries"][-1]["m"]


def test_titles_cannot_send_control_sequences_to_the_terminal(live, capfd):
    live.run({"1": {**node("Paint", steps=1, seed=0), "_meta": {"title": "red \x1b[31m\nPrompt 0: done"}}})
    lines = live.get("/internal/logs").json
    assert "red  [31m Prompt 0: done" in lines
    assert "\x1b" not in lines + capfd.readouterr().err


def test_a_huge_graph_does_not_flood_the_socket(live):
    socket = live.connect("me")
    live.queue({str(n): node("Paint", steps=0, seed=n) for n in range(400)}, client_id="me")
    messages = socket.until_done()
    # States are skipped if the reader falls behind, but the start of a node never is.
    assert max(len(data["nodes"]) for kind, data in messages if kind == "progress_state") == 300
    assert sum(kind == "executing" and data["node"] is not None for kind, data in messages) == 400


def unread() -> Client:
    return Client("me", socket=None)


def test_a_client_that_falls_behind_gets_only_the_newest_states():
    client = unread()
    client.put("started", "execution_start")
    for number in range(200):
        client.put(str(number) * 2**15, "progress_state")
        client.put("running", "executing")
    client.put(b"old", "preview")
    client.put(b"new", "preview")
    client.put("last", "progress_state")
    assert client.unsent_bytes == sum(len(frame) for _, frame in client.unsent) < 4 * 2**20
    assert [frame for kind, frame in client.unsent if kind == "preview"] == [b"new"]
    assert client.unsent[0] == ("execution_start", "started")
    assert client.unsent[-1] == ("progress_state", "last")
    assert sum(kind == "executing" for kind, _ in client.unsent) == 200
    assert not client.too_slow


def test_a_client_that_keeps_up_gets_every_state():
    client = unread()
    for number in range(100):
        client.put(str(number), "progress_state")
    assert len(client.unsent) == 100


def test_a_client_is_too_slow_by_its_backlog():
    client = unread()
    for _ in range(65):
        client.put("x" * 2**20, "executed")
    assert client.too_slow


def test_a_socket_that_does_not_read_is_closed(live, monkeypatch):
    monkeypatch.setattr(clients, "_MAX_UNSENT_BYTES", 2**20)
    lazy, other = live.connect("lazy"), live.connect("other")
    lazy.until(lambda kind, _: kind == "status")
    while live.server.clients.has("lazy"):
        live.server.clients.send("executed", {"text": "x" * 2**18}, "lazy")
        live.call(asyncio.sleep(0))
    assert live.server.clients.has("other")
    live.server.clients.send("executed", {}, "other")
    other.until(lambda kind, _: kind == "executed")
