"""The queue survives restarts, crashes and SIGKILL: no finished prompt is lost, none runs twice."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import time
from collections.abc import Callable
from typing import Any

import pytest
from uniworld.nodes.headless.serve.queue import worker
from uniworld.nodes.headless.serve.queue.store import INTERRUPTED, SUCCESS, PromptResult, Store


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def record(text: str, milliseconds: int = 0) -> dict[str, Any]:
    return {"1": node("Record", text=text, milliseconds=milliseconds)}


def test_queue_and_history_survive_a_restart(start, graphs):
    live = start()
    done = live.queue(graphs["sum"])
    live.wait(done)
    before = live.get(f"/history/{done}").json
    running = live.queue(record("running", 60_000))
    waiting = [live.queue(record(f"waiting {n}")) for n in range(3)]
    while not live.get("/queue").json["queue_running"]:
        pass
    live.stop()
    again = start()
    assert again.get(f"/history/{done}").json == before
    entry = again.get(f"/history/{running}").json[running]
    assert entry["status"]["messages"][-1][0] == "execution_interrupted"
    assert "stopped" in entry["status"]["messages"][-1][1]["message"]
    again.wait(waiting[-1])
    lines = (again.config.output / "record.txt").read_text().splitlines()
    assert lines == ["running", "waiting 0", "waiting 1", "waiting 2"]
    assert again.queue(graphs["sum"]) not in before
    assert again.get("/jobs").json["jobs"][0]["priority"] == 5


def test_sigkill_loses_nothing_and_runs_nothing_twice(launch, tmp_path):
    first = launch()
    done = first.queue(record("done"))
    first.wait([done])
    running = first.queue(record("running", 60_000))
    waiting = [first.queue(record(f"waiting {n}")) for n in range(3)]
    while not first.ask("/queue")["queue_running"]:
        time.sleep(0.02)
    first.end(signal.SIGKILL)
    second = launch()
    history = second.wait([done, running, *waiting])
    assert history[done]["status"]["completed"] is True
    name, data = history[running]["status"]["messages"][-1]
    assert name == "execution_interrupted"
    assert "stopped unexpectedly" in data["message"]
    assert (tmp_path / "output" / "record.txt").read_text().splitlines() == [
        "done", "running", "waiting 0", "waiting 1", "waiting 2",
    ]  # fmt: skip
    assert second.ask(f"/jobs/{running}")["status"] == "cancelled"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_cleanly_and_marks_the_running_prompt(launch, tmp_path, how):
    server = launch()
    running = server.queue(record("running", 60_000))
    while not server.ask("/queue")["queue_running"]:
        time.sleep(0.02)
    code, err = server.end(how)
    assert code == 0
    assert "Traceback" not in err
    assert f"Prompt {running}: interrupted" in err
    assert not (tmp_path / "user" / "uniworld.sqlite3-wal").exists()
    database = sqlite3.connect(tmp_path / "user" / "uniworld.sqlite3")
    assert database.execute("SELECT state FROM prompts").fetchall() == [("interrupted",)]
    database.close()


def test_a_node_that_does_not_stop_is_marked_and_abandoned(start, monkeypatch, capfd):
    monkeypatch.setattr(worker, "_GRACE_SECONDS", 0.1)
    live = start()
    prompt_id = live.queue({"1": node("Stubborn")})
    while not live.get("/queue").json["queue_running"]:
        pass
    live.stop()
    assert "did not stop in time" in capfd.readouterr().err
    again = start()
    assert again.get(f"/history/{prompt_id}").json[prompt_id]["status"]["messages"][-1][0] == "execution_interrupted"
    time.sleep(1.1)  # its thread finishes now, and must not break anything
    assert again.get("/queue").json == {"queue_running": [], "queue_pending": []}


def test_two_servers_do_not_share_a_queue(start):
    start()
    with pytest.raises(ValueError, match="another server is using it"):
        start()


@pytest.mark.skipif(os.name == "nt", reason="Windows locks otherwise")
def test_a_file_system_without_locks_is_not_mistaken_for_another_server(tmp_path, monkeypatch):
    def no_locks(*_: int) -> None:
        raise OSError(37, "No locks available")

    with contextlib.closing(Store(tmp_path / "q.sqlite3", 10)):  # SQLite reports the same for both
        monkeypatch.setattr("fcntl.flock", no_locks)
        with pytest.raises(
            ValueError, match=r"' cannot be locked \(No locks available\): its file system does not support locks"
        ):
            Store(tmp_path / "q.sqlite3", 10)
    assert [path.name for path in tmp_path.iterdir()] == ["q.sqlite3"]


def test_a_damaged_queue_is_reported(tmp_path):
    (tmp_path / "q.sqlite3").write_bytes(b"this is not a database" * 100)
    with pytest.raises(ValueError, match="cannot be opened"):
        Store(tmp_path / "q.sqlite3", 10)


@pytest.mark.parametrize(("graph", "end"), [("sum", "execution_success"), ("fails", "execution_error")])
def test_clients_are_notified_after_the_result_is_stored(start, graphs, monkeypatch, graph, end):
    live = start()
    finish = live.server.store.finish

    def slowly(*ended: Any) -> None:
        time.sleep(0.2)
        finish(*ended)

    monkeypatch.setattr(live.server.store, "finish", slowly)
    socket = live.connect("me")
    prompt_id = live.queue(graphs.get(graph) or {"1": node("Exits")}, client_id="me")
    socket.until(lambda kind, _: kind == end)
    assert prompt_id in live.get(f"/history/{prompt_id}").json


def test_the_history_has_a_limit(tmp_path):
    store = Store(tmp_path / "q.sqlite3", history_limit=3)
    for n in range(5):
        store.put(str(n), {}, {}, [])
        assert store.claim_next() is not None
        store.finish(str(n), PromptResult(SUCCESS, {}, []))
    assert [row["id"] for row in store.done()] == ["2", "3", "4"]
    assert store.remaining == 0
    store.close()


def test_a_history_limit_of_zero_keeps_nothing(tmp_path):
    store = Store(tmp_path / "q.sqlite3", history_limit=0)
    store.put("a", {}, {}, [])
    store.claim_next()
    store.finish("a", PromptResult(SUCCESS, {}, []))
    assert store.done() == []
    store.close()


def test_a_cleared_history_frees_its_disk_space(tmp_path):
    store = Store(tmp_path / "q.sqlite3", 100)
    for n in range(40):
        store.put(str(n), {"1": "x" * 1_000_000}, {}, [])
        store.claim_next()
        store.finish(str(n), PromptResult(SUCCESS, {}, []))
    store.put("waits", {"1": "kept"}, {}, [])
    assert sum(one.stat().st_size for one in tmp_path.iterdir()) > 40_000_000
    store.delete_history()
    assert sum(one.stat().st_size for one in tmp_path.iterdir()) < 1_000_000
    accepted = store.claim_next()
    assert accepted is not None
    assert accepted.prompt == {"1": "kept"}
    assert store._db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    store.close()


def test_a_prompt_marked_as_interrupted_stays_so(tmp_path):
    store = Store(tmp_path / "q.sqlite3", 10)
    store.put("a", {}, {}, [])
    store.claim_next()
    assert store.mark_interrupted("It died.") == 1
    store.finish("a", PromptResult(SUCCESS, {"1": {}}, []))  # the thread of an abandoned node finishes too late
    assert [row["state"] for row in store.done()] == [INTERRUPTED]
    assert store.claim_next() is None
    store.close()


FAILING_COMMIT = """
PRAGMA foreign_keys = ON;
CREATE TABLE none_such (id INTEGER PRIMARY KEY);
CREATE TABLE wants (id INTEGER REFERENCES none_such (id) DEFERRABLE INITIALLY DEFERRED);
CREATE TRIGGER fails_put AFTER INSERT ON prompts BEGIN INSERT INTO wants VALUES (1); END;
CREATE TRIGGER fails_finish AFTER UPDATE OF ended ON prompts BEGIN INSERT INTO wants VALUES (1); END;
"""
REPAIRED = "DROP TRIGGER IF EXISTS fails_put; DROP TRIGGER IF EXISTS fails_finish;"


def test_a_failed_commit_does_not_change_the_counts(tmp_path):
    store = Store(tmp_path / "q.sqlite3", 10)
    store.put("runs", {}, {}, [])
    store.claim_next()
    store._db.executescript(FAILING_COMMIT)
    with pytest.raises(sqlite3.Error):
        store.put("a", {}, {}, [])
    with pytest.raises(sqlite3.Error):
        store.finish("runs", PromptResult(SUCCESS, {}, []))
    assert (store.waiting, store.remaining) == (0, 1)
    store._db.executescript(REPAIRED)
    assert store.put("a", {}, {}, []) == 1
    store.finish("runs", PromptResult(SUCCESS, {}, []))
    assert (store.waiting, store.remaining) == (1, 1)
    store.close()


def test_a_full_database_does_not_change_the_counts(tmp_path):
    store = Store(tmp_path / "q.sqlite3", 10)
    store._db.execute("PRAGMA max_page_count = 1")  # not more than it has now
    with pytest.raises(sqlite3.OperationalError, match="full"):
        store.put("a", {"1": "x" * 100_000}, {}, [])
    assert (store.waiting, store.remaining) == (0, 0)
    store._db.execute("PRAGMA max_page_count = 1000000")
    assert store.put("a", {"1": "x" * 100_000}, {}, []) == 0
    assert store.waiting == 1
    store.close()


def test_a_full_disk_is_reported_and_stops_nothing(start, graphs, monkeypatch, capfd):
    live = start()

    def full(*_: Any, **__: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(live.server.store, "put", full)
        reply = live.post("/prompt", {"prompt": graphs["sum"]})
        assert (reply.status, reply.error) == (503, "storage_failed")
    assert live.run({"1": node("Paint", steps=1, seed=5)})["status"]["completed"] is True
    capfd.readouterr()


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def log_of(live: Any) -> str:
    return str(live.get("/internal/logs").json)


def test_a_result_that_cannot_be_stored_is_retried_before_clients_are_notified(start, graphs):
    live = start()
    store = live.server.store
    with store._lock:
        store._db.executescript(FAILING_COMMIT + "DROP TRIGGER fails_put;")
    socket = live.connect("me")
    prompt_id = live.queue(graphs["sum"], client_id="me")
    until(lambda: f"The result of prompt {prompt_id} cannot be stored" in log_of(live))
    assert live.get(f"/history/{prompt_id}").json == {}
    assert len(live.get("/queue").json["queue_running"]) == 1
    assert f"Prompt {prompt_id}: done" not in log_of(live)
    with store._lock:
        store._db.executescript(REPAIRED)
    messages = socket.until_done()
    assert "execution_success" in [kind for kind, _ in messages]
    assert live.get(f"/history/{prompt_id}").json[prompt_id]["status"]["completed"] is True
    assert log_of(live).count("cannot be stored") == 1
    assert live.run(graphs["sum"])["status"]["completed"] is True


def test_stopping_does_not_wait_for_a_result_that_cannot_be_stored(start, graphs):
    live = start()
    store = live.server.store
    with store._lock:
        store._db.executescript(FAILING_COMMIT + "DROP TRIGGER fails_put;")
    prompt_id = live.queue(graphs["sum"])
    until(lambda: "cannot be stored" in log_of(live))
    began = time.monotonic()
    live.stop()
    assert time.monotonic() - began < 5
    database = sqlite3.connect(live.config.user / "uniworld.sqlite3")
    database.executescript(REPAIRED)
    database.close()
    entry = start().get(f"/history/{prompt_id}").json[prompt_id]
    assert entry["status"]["messages"][-1][0] == "execution_interrupted"


def test_a_prompt_that_cannot_be_read_is_retried(start, graphs):
    live = start()
    store = live.server.store
    with store._lock:
        store._db.executescript(
            "CREATE TRIGGER fails_take BEFORE UPDATE OF started ON prompts BEGIN SELECT RAISE(ABORT, 'full'); END;"
        )
    prompt_id = live.queue(graphs["sum"])
    until(lambda: "The next prompt cannot be read: full." in log_of(live))
    with store._lock:
        store._db.executescript("DROP TRIGGER fails_take;")
    assert live.wait(prompt_id)["status"]["completed"] is True  # without another request


def test_a_start_on_a_full_disk_is_reported(start, config):
    path = config.user / "uniworld.sqlite3"
    store = Store(path, 10)
    store.put("a", {}, {}, [])
    store.claim_next()
    store._db.executescript(
        "CREATE TRIGGER full BEFORE UPDATE OF ended ON prompts BEGIN SELECT RAISE(ABORT, 'disk is full'); END;"
    )
    store.close()
    with pytest.raises(ValueError, match="cannot be written: disk is full"):
        start()
    store = Store(path, 10)  # the file is unlocked, and the prompt can still be marked
    store._db.executescript("DROP TRIGGER full")
    assert store.mark_interrupted("It died.") == 1
    store.close()
