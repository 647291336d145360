"""`uniworld batch --server`: rows shared by servers that die and come back, none of which runs twice."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from PIL import Image
from uniworld.nodes.headless.remote import pool as pool_module
from uniworld.nodes.headless.remote import prompt_run

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


WORKFLOW = {
    "1": node("Picture", seed=0), "2": node("SaveImage", images=["1", 0], filename_prefix="deep/p"),
    "3": node("Say", text="x"), "4": node("Wait", steps=1),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_run, "COLD_POLL", 0.05)
    monkeypatch.setattr(prompt_run, "_FIRST_PAUSE", 0.02)
    monkeypatch.setattr(pool_module, "SHORT_PATIENCE", 0.2)
    monkeypatch.setattr(pool_module, "FIRST_PAUSE", 0.1)
    monkeypatch.setattr(pool_module, "POLL_SECONDS", 0.05)


@pytest.fixture
def batch(uniworld, write):
    """Run a batch over these servers; gives exit code, the lines of --json and standard error."""
    write(WORKFLOW)

    def batch(*servers: str, options: tuple[str, ...] = ()) -> tuple[int, list[dict[str, Any]], str]:
        urls = [part for url in servers for part in ("--server", url)]
        code, out, err = uniworld("batch", "w.json", "--rows", "r.jsonl", "--json", *urls, *options)
        return code, [json.loads(line) for line in out.splitlines()], err

    return batch


@pytest.fixture
def rows(write):
    def rows(count: int, **values: Any) -> list[str]:
        ids = [f"r{number}" for number in range(count)]
        lines = [{"id": name, "set": {"Say.text": name, **values}} for name in ids]
        write("\n".join(map(json.dumps, lines)), "r.jsonl")
        return ids

    return rows


def texts_run(*fakes: Any) -> Counter[str]:
    """How often each row ran to its end."""
    posted = {body["prompt_id"]: body["prompt"]["3"]["inputs"]["text"] for fake in fakes for body in fake.posted}
    return Counter(posted[prompt_id] for fake in fakes for prompt_id in fake.ran)


def records(path: Path = Path("r.results.jsonl")) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()[1:]]


def test_servers_share_the_rows(batch, rows, make_fake, tmp_path):
    first, second = make_fake(), make_fake()
    ids = rows(8)
    code, lines, _ = batch(first.url, second.url)
    assert code == 0
    assert texts_run(first, second) == dict.fromkeys(ids, 1)
    assert first.ran
    assert second.ran
    for name in ids:
        with Image.open(tmp_path / "output" / "r" / name / "deep" / "p_00001_.png") as picture:
            assert picture.size == (6, 4)
    done = [one for one in lines if one["event"] == "row"]
    assert all(one["outputs"]["pictures"] == [f"r/{one['id']}/deep/p_00001_.png"] for one in done)
    assert all(one["outputs"]["texts"] == [one["id"]] for one in done)
    assert {one["server"] for one in lines if one["event"] == "started"} == {first.url, second.url}
    assert any(one["event"] == "progress" for one in lines)


def test_the_id_of_a_prompt_is_on_disk_before_it_is_sent(batch, rows, fake):
    rows(3)
    recorded = []

    async def look(request):
        body = await request.json()
        last = records()[-1]
        recorded.append((last["status"], last["prompt_id"] == body["prompt_id"], last["server"] == fake.url))

    fake.fail["/prompt"] = look
    assert batch(fake.url)[0] == 0
    assert recorded == [("started", True, True)] * 3


def test_rows_of_a_server_that_dies_run_on_the_others(batch, rows, make_fake, when):
    first, second = make_fake(), make_fake()
    first.step = 0.1
    ids = rows(8, **{"Wait.steps": 5})
    when(lambda: first.running, first.die)
    code, lines, _ = batch(first.url, second.url)
    assert code == 0
    assert texts_run(first, second) == dict.fromkeys(ids, 1)
    assert texts_run(second) == dict.fromkeys(ids, 1)
    lost = [one for one in lines if one.get("status") in ("lost", "requeued")]
    assert len(lost) >= 1


def test_a_server_that_comes_back_is_used_again(batch, rows, make_fake, when):
    first, second = make_fake(), make_fake()
    ids = rows(30, **{"Wait.steps": 3})

    def restart() -> None:
        first.die()
        before = len(second.ran)
        when(lambda: len(second.ran) > before + 8, first.start)

    when(lambda: first.ran and first.running, restart)  # the first row has been collected
    code, _, err = batch(first.url, second.url)
    assert code == 0
    assert texts_run(first, second) == dict.fromkeys(ids, 1)
    assert len(first.ran) > 1
    assert f"{first.url} responds again and is used." in err


def test_a_server_that_is_away_at_first_is_used_when_it_answers(batch, rows, make_fake, when):
    first, second = make_fake(), make_fake()
    second.die()
    ids = rows(20, **{"Wait.steps": 3})
    when(lambda: len(first.ran) == 2, second.start)
    code, _, err = batch(first.url, second.url)
    assert code == 0
    assert "It is used when it responds." in err
    assert texts_run(first, second) == dict.fromkeys(ids, 1)
    assert second.ran


def test_a_row_whose_servers_keep_dying_is_given_up(batch, rows, make_fake, monkeypatch):
    monkeypatch.setattr(prompt_run, "PATIENCE", 0.1)
    fake, tasks = make_fake(), []
    rows(1)

    async def die(request):
        await fake._prompt(request)
        fake.waiting.clear()

        async def restart() -> None:
            await fake._die()
            await fake._start()

        tasks.append(asyncio.create_task(restart()))
        return web.json_response({"prompt_id": fake.posted[-1]["prompt_id"], "number": 1, "node_errors": {}})

    fake.fail["/prompt"] = die
    code, lines, _ = batch(fake.url, options=("--retries", "1"))
    assert code == 1
    row = [one for one in lines if one["event"] == "row"][-1]
    assert (row["status"], row["error"]) == ("error", "Its worker or the program died 2 times while it ran.")
    assert len(fake.posted) == 2


def crash_after_start(path: Path = Path("r.results.jsonl")) -> dict[str, Any]:
    """Take the end of the last row off the results, as if the program had been killed while it ran."""
    lines = path.read_text().splitlines()
    while json.loads(lines[-1])["status"] != "started":
        lines.pop()
    path.write_text("\n".join(lines) + "\n")
    return json.loads(lines[-1])


def test_a_restart_collects_what_the_server_has_finished(batch, rows, fake, tmp_path):
    rows(2)
    assert batch(fake.url)[0] == 0
    last = crash_after_start()
    shutil.rmtree(tmp_path / "output" / "r" / last["id"])
    code, lines, _ = batch(fake.url)
    assert code == 0
    assert len(fake.posted) == 2
    assert (tmp_path / "output" / "r" / last["id"] / "deep" / "p_00001_.png").is_file()
    assert lines[-1]["done"] == 2


@posix_only
@pytest.mark.parametrize("runs", [True, False])
def test_a_restart_waits_for_what_the_server_has_not_finished(batch, rows, fake, when, runs):
    rows(1, **{"Wait.steps": 20})
    if not runs:
        fake.hold.clear()
    # The server no longer answers interrupts, so that the prompt stays there when the batch ends.
    fake.fail["/interrupt"] = fake.fail["/queue"] = lambda request: web.Response() if request.method == "POST" else None
    prompt_run_stop = prompt_run.STOP_SECONDS
    prompt_run.STOP_SECONDS = 0.1
    try:
        when(lambda: fake.running if runs else fake.posted, lambda: os.kill(os.getpid(), signal.SIGINT))
        assert batch(fake.url)[0] == 1
    finally:
        prompt_run.STOP_SECONDS = prompt_run_stop
    assert records()[-1]["status"] == "started"
    fake.fail.clear()
    fake.hold.set()
    code, _, _ = batch(fake.url)
    assert (code, len(fake.posted), len(fake.ran)) == (0, 1, 1)


def test_a_restart_runs_again_what_the_server_has_forgotten(batch, rows, fake):
    rows(1)
    assert batch(fake.url)[0] == 0
    last = crash_after_start()
    fake.history.clear()
    shutil.rmtree(Path("output") / "r" / last["id"])
    assert batch(fake.url)[0] == 0
    assert len(fake.posted) == 2
    assert [one["status"] for one in records()] == ["started", "lost", "started", "done"]


def test_a_server_that_is_not_named_is_not_asked(batch, rows, make_fake):
    first, second = make_fake(), make_fake()
    rows(1)
    assert batch(first.url)[0] == 0
    last = crash_after_start()
    shutil.rmtree(Path("output") / "r" / last["id"])
    first.headers.clear()
    assert batch(second.url)[0] == 0
    assert (first.headers, len(second.posted)) == ([], 1)


@posix_only
def test_ctrl_c_interrupts_the_rows_on_all_servers(batch, rows, make_fake, when):
    first, second = make_fake(), make_fake()
    rows(4, **{"Wait.steps": 500})
    when(lambda: first.running and second.running, lambda: os.kill(os.getpid(), signal.SIGINT))
    code, lines, _ = batch(first.url, second.url)
    assert code == 1
    assert [one["status"] for one in lines if one["event"] == "row"] == ["interrupted", "interrupted"]
    assert (first.running, second.running) == (None, None)
    assert (lines[-1]["done"], lines[-1]["left"]) == (0, 4)
    first.nodes = second.nodes
    first.step = second.step = 0.0001
    assert batch(first.url, second.url)[0] == 0


def test_a_server_that_always_fails_does_not_use_up_the_rows(batch, rows, make_fake):
    good, bad = make_fake(), make_fake()
    bad.fail["/prompt"] = lambda request: web.Response(status=500)
    ids = rows(6, **{"Wait.steps": 3})
    code, lines, _ = batch(bad.url, good.url, options=("--retries", "6"))
    assert code == 0
    assert texts_run(good) == dict.fromkeys(ids, 1)
    assert any(one.get("status") == "lost" for one in lines)


def test_a_server_that_goes_before_a_row_is_given_to_it(batch, rows, fake, monkeypatch):
    rows(2)
    jobs = []

    def next_job(self):
        jobs.append(None if not jobs else original(self))
        return jobs[-1]

    original = pool_module.ServerPool.next_job
    monkeypatch.setattr(pool_module.ServerPool, "next_job", next_job)
    code, lines, _ = batch(fake.url)
    assert (code, lines[-1]["done"], len(fake.posted)) == (0, 2, 2)
    assert next(one["status"] for one in lines if one["event"] == "row") == "requeued"


def test_errors_of_rows_are_recorded_as_locally(batch, rows, write, fake):
    write({**WORKFLOW, "5": node("Fail", kind="ValueError", text="The oven is cold.")})
    rows(1)
    code, lines, _ = batch(fake.url)
    assert code == 1
    row = next(one for one in lines if one["event"] == "row")
    assert (row["status"], row["error"]) == ("error", "Node 5 (Fail) failed: The oven is cold.")


def test_all_rows_are_checked_before_the_first_is_sent(batch, rows, fake, write):
    rows(2, **{"Picture.seed": 500})
    code, lines, _ = batch(fake.url)
    assert code == 2
    assert "above its maximum of 100" in lines[-1]["message"]
    write(json.dumps({"image": {"Picture": "none.png"}}), "r.jsonl")
    assert batch(fake.url)[0] == 2
    assert fake.posted == []


def test_a_server_without_the_nodes_is_refused_at_the_start(batch, rows, make_fake):
    first, second = make_fake(), make_fake()
    del second.nodes["Say"]
    rows(1)
    code, lines, _ = batch(first.url, second.url)
    assert code == 2
    assert "there is no node class 'Say'" in lines[-1]["message"]
    assert second.url in lines[-1]["message"]


def test_pictures_of_rows_are_uploaded_once_a_server(batch, write, fake, tmp_path):
    Image.new("RGB", (5, 5)).save(tmp_path / "photo.png")
    write({**WORKFLOW, "5": node("LoadImage", image="x.png"), "6": node("PreviewImage", images=["5", 0])})
    write("\n".join([json.dumps({"image": {"LoadImage": "photo.png"}})] * 3), "r.jsonl")
    assert batch(fake.url)[0] == 0
    assert [path for path, _ in fake.headers].count("/upload/image") == 1
    names = {body["prompt"]["5"]["inputs"]["image"] for body in fake.posted}
    assert len(names) == 1
    assert fake.files["input", "", names.pop()] == (tmp_path / "photo.png").read_bytes()


def test_server_and_ray_exclude_each_other(batch, rows, fake):
    rows(1)
    code, lines, _ = batch(fake.url, options=("--ray", "local"))
    assert code == 2
    assert "exclude each other" in lines[-1]["message"]
