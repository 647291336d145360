"""`uniworld batch`: exit codes, records, and that no row is lost or done twice, however the process dies."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from uniworld.__main__ import main

from ....forked import Forked

TESTS = Path(__file__).resolve().parents[3]
LAUNCH = "import sys; from uniworld.__main__ import main; sys.exit(main(sys.argv[1:]))"

# Paint logs each start, takes steps that can be interrupted, and can kill its process.
PACK = """
import os, signal, time, torch
from uniworld.nodes import host

class Paint:
    RETURN_TYPES = ("IMAGE", "STRING")
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        return {{"required": {{
            "text": ("STRING", {{"default": "x"}}), "steps": ("INT", {{"default": 0}}), "deaths": ("INT", {{"default": 0}}),
            "width": ("INT", {{"default": 8, "min": 1}}),
        }}}}

    def run(self, text, steps, deaths, width):
        with open({log!r}, "a") as log:
            log.write(f"{{text}} {{os.getpid()}}\\n")
        for step in range(steps):
            host.current().check_interrupt()
            time.sleep(0.02)
            host.current().progress(steps).update(step + 1)
        if text == "fail":
            raise ValueError("The oven is cold. Light it.")
        if deaths and open({log!r}).read().split().count(text) <= deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        print("a node may print")
        return torch.full((1, 6, width, 3), 0.5), text.upper()

class Show:
    RETURN_TYPES = ()
    FUNCTION = "run"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {{"required": {{"value": ("STRING", {{}})}}}}

    def run(self, value):
        return {{"ui": {{"text": [value]}}}}

NODE_CLASS_MAPPINGS = {{"Paint": Paint, "Show": Show}}
"""
WORKFLOW = {
    "1": {"class_type": "Paint", "inputs": {"text": "x", "steps": 0, "deaths": 0, "width": 8}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "deep/p"}},
    "3": {"class_type": "Show", "inputs": {"value": ["1", 1]}},
}
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


class Batch:
    """A batch in its own folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log.txt"
        self.log.touch()
        (folder / "pack").mkdir()
        (folder / "pack" / "__init__.py").write_text(PACK.format(log=str(self.log)))
        (folder / "w.json").write_text(json.dumps(WORKFLOW))
        self.results = folder / "r.results.jsonl"

    def write(self, *rows: dict[str, Any]) -> None:
        """Write the rows, each with values of Paint and optionally "id"."""
        lines = []
        for values in rows:
            row = {"set": {f"Paint.{name}": value for name, value in values.items() if name != "id"}}
            lines.append(json.dumps({**row, **({"id": values["id"]} if "id" in values else {})}))
        (self.folder / "r.jsonl").write_text("\n".join(lines))

    def arguments(self, *more: str) -> list[str]:
        return ["batch", "w.json", "--rows", "r.jsonl", "--pack", "pack", *more]

    def launch(self, *more: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start the batch as a process. Ray's workers find the package through a link next to the rows."""
        link = self.folder / "path" / "uniworld"
        if not link.exists():
            link.parent.mkdir()
            link.symlink_to(TESTS.parent)
        env = {**os.environ, "PYTHONPATH": str(link.parent), "PYTHONUNBUFFERED": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = [sys.executable, "-c", LAUNCH, *self.arguments(*more)]
        return subprocess.Popen(command, cwd=self.folder, env=env, **{**pipes, **options})

    def fork(self, *more: str) -> Forked:
        """Start the batch as a process in which the libraries are imported already."""
        return Forked(self.folder, f"batch-{time.monotonic_ns()}", LAUNCH, self.arguments(*more))

    def records(self, *statuses: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.results.read_text().splitlines()[1:]]
        return [record for record in found if not statuses or record["status"] in statuses]

    def starts(self) -> Counter[str]:
        """Count the starts of Paint, by its text."""
        return Counter(line.split()[0] for line in self.log.read_text().splitlines())

    def wait_for(self, condition: Callable[[], Any], seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "timed out"
            time.sleep(0.02)

    def check_all_done(self, ids: list[str]) -> None:
        """Check that every row is recorded as done once, and that its picture is there and no other file."""
        done = self.records("done", "error")
        assert sorted(record["id"] for record in done) == sorted(ids)
        pictures = {picture for record in done for picture in record["outputs"]["pictures"]}
        assert pictures == {f"r/{one}/deep/p_00001_.png" for one in ids}
        output = self.folder / "output"
        assert {file.relative_to(output).as_posix() for file in output.rglob("*") if file.is_file()} == pictures
        for picture in pictures:
            with Image.open(output / picture) as opened:
                opened.load()
        assert not (output / "r" / ".running").exists()


@pytest.fixture
def batch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Batch(tmp_path)


@pytest.fixture
def run(batch, capsys):
    """Run the batch in this process; returns exit code, standard output and standard error."""

    def run(*more: str) -> tuple[int, str, str]:
        try:
            code = main(batch.arguments(*more))
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return run


def lines(text: str | bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_every_row_runs_and_is_recorded(batch, run):
    batch.write({"id": "a", "text": "a"}, {"text": "b", "width": 9}, {"id": "x/y", "text": "c"})
    code, out, err = run()
    assert (code, out) == (0, "r.results.jsonl\n")
    assert "3/3" in err
    assert "3 of 3 rows are done. The results are recorded in 'r.results.jsonl'." in err
    assert f"Saved files are in '{Path('output', 'r')}', one folder per row." in err
    done = batch.records("done")
    assert [record["id"] for record in done] == ["a", "2", "x/y"]
    assert [record["outputs"]["texts"] for record in done] == [["A"], ["B"], ["C"]]
    assert [record["outputs"]["pictures"] for record in done] == [
        [f"r/{one}/deep/p_00001_.png"] for one in ("a", "2", "x_y")
    ]
    assert all(record["seconds"] >= 0 and record["error"] is None for record in done)
    with Image.open(batch.folder / "output" / "r" / "2" / "deep" / "p_00001_.png") as picture:
        assert picture.size == (9, 6)
        prompt = json.loads(picture.text["prompt"])
    assert prompt["1"]["inputs"] == {"text": "b", "steps": 0, "deaths": 0, "width": 9}
    assert prompt["2"] == WORKFLOW["2"]  # the picture's metadata shows no trace of the batch


def test_the_same_command_again_runs_nothing(batch, run):
    batch.write({"text": "a"}, {"text": "b"})
    run()
    before = batch.results.read_bytes()
    assert run()[0] == 0
    assert batch.results.read_bytes() == before
    assert batch.starts() == {"a": 1, "b": 1}


def test_equal_rows_share_cached_results_and_have_their_own_pictures(batch, run):
    batch.write({"id": "a", "text": "same"}, {"id": "b", "text": "same"})
    assert run()[0] == 0
    assert batch.starts() == {"same": 1}
    batch.check_all_done(["a", "b"])


def test_different_pictures_of_the_same_name_are_not_confused(batch, run):
    for name, width in (("a", 7), ("b", 9)):
        (batch.folder / name).mkdir()
        Image.new("RGB", (width, 5)).save(batch.folder / name / "photo.png")
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "none.png"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "p"}},
    }
    (batch.folder / "w.json").write_text(json.dumps(prompt))
    rows = [{"id": name, "image": {"LoadImage": f"{name}/photo.png"}} for name in ("a", "b")]
    (batch.folder / "r.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert run()[0] == 0
    for name, width in (("a", 7), ("b", 9)):
        with Image.open(batch.folder / "output" / "r" / name / "p_00001_.png") as picture:
            assert picture.width == width


def test_a_row_that_fails_is_recorded_and_the_others_run(batch, run):
    batch.write({"id": "a", "text": "a"}, {"id": "bad", "text": "fail"}, {"id": "c", "text": "c"})
    code, _, err = run()
    assert code == 1
    assert "Row bad: Node 1 (Paint) failed: The oven is cold. Light it." in err
    assert "2 of 3 rows are done, 1 failed (--retry-failed runs them again)." in err
    [failed] = batch.records("error")
    assert "The oven is cold." in failed["error"]
    assert failed["outputs"] == {"pictures": [], "texts": []}
    assert run()[0] == 1
    assert batch.starts()["fail"] == 1
    assert run("--retry-failed")[0] == 1
    assert batch.starts() == {"a": 1, "fail": 2, "c": 1}
    assert [record["attempt"] for record in batch.records("error")] == [1, 2]


def test_json_gives_a_line_per_event_and_nothing_else(batch, run):
    batch.write({"id": "a", "text": "a", "steps": 2}, {"id": "bad", "text": "fail"})
    code, out, _ = run("--json")
    events = lines(out)
    assert code == 1
    assert [event["event"] for event in events] == [
        "batch", "started", "progress", "progress", "row", "started", "row", "result",
    ]  # fmt: skip
    rows = [event for event in events if event["event"] == "row"]
    assert rows == [{"event": "row", **record} for record in batch.records("done", "error")]
    assert {key: events[-1][key] for key in ("rows", "done", "failed", "left")} == {
        "rows": 2, "done": 1, "failed": 1, "left": 0,
    }  # fmt: skip


def test_all_bad_rows_are_reported_at_once_and_nothing_runs(batch, run):
    (batch.folder / "r.jsonl").write_text('{"id": "a"}\n{\n{"id": "a"}')
    code, out, err = run("--json")
    assert code == 2
    [event] = lines(out)
    assert event["event"] == "invalid"
    assert len(event["problems"]) == 2
    assert "Line 2" in err
    batch.write({"text": "a"}, {"width": 0}, {"size": 1})
    code, out, err = run()
    assert (code, out) == (2, "")
    assert "Line 2: Node 1 (Paint): " in err
    assert "Line 3: Node 1 (Paint) has no input 'size'" in err
    assert batch.starts() == {}
    assert not batch.results.exists()
    assert not (batch.folder / "output").exists()


def test_results_of_another_workflow_or_other_rows_are_rejected(batch, run):
    batch.write({"text": "a"})
    assert run()[0] == 0
    before = batch.results.read_bytes()
    batch.write({"text": "b"})
    code, _, err = run()
    assert code == 2
    assert "belong to another set of rows. Choose other --results" in err
    batch.write({"text": "a"})
    (batch.folder / "w.json").write_text(json.dumps({**WORKFLOW, "4": WORKFLOW["3"]}))
    assert "belong to another workflow" in run()[2]
    assert batch.results.read_bytes() == before
    assert run("--results", "new.jsonl")[:2] == (0, "new.jsonl\n")
    assert (batch.folder / "output" / "r_2" / "1" / "deep" / "p_00001_.png").is_file()


@pytest.mark.parametrize(("more", "word"), [
    (["--workers", "2"], "--workers needs a Ray cluster"), (["--ray", "local", "--workers", "0"], "'0' is not a whole number from 1"),
    (["--retries", "-1"], "'-1' is not a whole number"), (["--retries", "x"], "'x' is not a whole number"),
    (["--results", "r.jsonl"], "not a results file"), (["--rows", "none.jsonl"], "cannot be read"), (["--pack", "none"], "no __init__.py"),
])  # fmt: skip
def test_bad_usage(batch, run, more, word):
    batch.write({"text": "a"})
    rows = (batch.folder / "r.jsonl").read_bytes()
    code, _, err = run(*more)
    assert code == 2
    assert word in err
    assert (batch.folder / "r.jsonl").read_bytes() == rows


def test_without_ray_the_message_says_how_to_install_it(batch, run, monkeypatch):
    batch.write({"text": "a"})
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, err = run("--ray", "local")
    assert code == 2
    assert 'pip install "uniworld[ray]"' in err


@posix_only
def test_ctrl_c_marks_the_row_and_the_same_command_continues(batch):
    batch.write({"id": "a", "text": "a"}, {"id": "b", "text": "b", "steps": 100}, {"id": "c", "text": "c"})
    process = batch.fork()
    batch.wait_for(lambda: batch.starts()["b"])
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "Traceback" not in out + err
    assert "1 of 3 rows are done, 2 are left" in err
    assert [record["status"] for record in batch.records()] == ["started", "done", "started", "interrupted"]
    process = batch.fork("--retries", "0")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    batch.check_all_done(["a", "b", "c"])
    assert batch.starts() == {"a": 1, "b": 2, "c": 1}


@posix_only
def test_two_batches_cannot_share_a_results_file(batch, run):
    batch.write({"text": "a", "steps": 200})
    process = batch.fork()
    batch.wait_for(lambda: batch.starts()["a"])
    code, _, err = run()
    process.kill()
    process.communicate()
    assert code == 2
    assert "Another batch is writing the results 'r.results.jsonl'" in err


@posix_only
@pytest.mark.slow
def test_sigkill_at_random_moments_loses_nothing_and_does_nothing_twice(batch):
    ids = [f"row{number}" for number in range(12)]
    batch.write(*({"id": one, "text": one, "steps": 5} for one in ids))
    moments = random.Random(0)
    kills = 0
    while True:
        process = batch.fork("--retries", "50", "--json")
        before = len(batch.log.read_text().splitlines())
        batch.wait_for(lambda p=process, b=before: p.poll() is not None or len(batch.log.read_text().splitlines()) > b)
        if kills < 6:
            time.sleep(moments.random() * 0.4)
            process.kill()
            kills += 1
        out, err = process.communicate(timeout=60)
        done = {record["id"] for record in batch.records("done")} if kills else set()
        printed = {event["id"] for event in lines(out[: out.rfind("\n") + 1]) if event.get("status") == "done"}
        assert printed <= done
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, err
    assert kills == 6
    batch.check_all_done(ids)
    attempts = Counter(record["id"] for record in batch.records("started"))
    assert all(batch.starts()[one] <= attempts[one] for one in ids)
    # Each kill interrupted one row at most.
    assert sum(attempts.values()) <= len(ids) + kills
    assert sum(attempts.values()) == len(ids) + len(batch.records("lost"))


@posix_only
def test_a_row_that_kills_the_program_is_given_up(batch):
    batch.write({"id": "a", "text": "a"}, {"id": "deadly", "text": "deadly", "deaths": 9}, {"id": "c", "text": "c"})
    for _ in range(2):
        assert batch.fork("--retries", "1").wait(60) == -signal.SIGKILL
    process = batch.fork("--retries", "1")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Row deadly: Its worker or the program died 2 times while it ran." in err
    assert [record["status"] for record in batch.records() if record["id"] == "deadly"] == ["started", "lost"] * 2 + [
        "error"
    ]
    assert batch.starts() == {"a": 1, "deadly": 2, "c": 1}


# --- Ray --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def ray_batch(batch):
    pytest.importorskip("ray", reason="Ray is not installed (the extra `ray`)")
    return batch


@posix_only
@pytest.mark.slow
def test_ray_the_row_of_a_killed_worker_runs_on_another(ray_batch):
    ids = [f"row{number}" for number in range(8)]
    ray_batch.write(*({"id": one, "text": one, "steps": 60 if one == "row2" else 10} for one in ids))
    process = ray_batch.launch("--ray", "local", "--workers", "2", "--json")
    ray_batch.wait_for(lambda: ray_batch.starts()["row2"], 120)
    time.sleep(0.2)
    worker = next(line.split()[1] for line in ray_batch.log.read_text().splitlines() if line.startswith("row2 "))
    os.kill(int(worker), signal.SIGKILL)
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    ray_batch.check_all_done(ids)
    assert ray_batch.starts() == {**dict.fromkeys(ids, 1), "row2": 2}
    [lost] = ray_batch.records("lost")
    assert (lost["id"], lost["attempt"]) == ("row2", 1)
    assert "died" in lost["error"]
    assert [event["id"] for event in lines(out) if event.get("status") == "lost"] == ["row2"]
    workers = {line.split()[1] for line in ray_batch.log.read_text().splitlines()}
    assert len(workers) in (2, 3)  # the two, and possibly the replacement of the killed one
    assert str(process.pid) not in workers


@posix_only
@pytest.mark.slow
def test_ray_rows_with_pictures_failing_rows_deadly_rows_and_ctrl_c(ray_batch):
    (ray_batch.folder / "photos").mkdir()
    Image.new("RGB", (7, 5)).save(ray_batch.folder / "photos" / "a.png")
    prompt = {**WORKFLOW, "4": {"class_type": "LoadImage", "inputs": {"image": "none.png"}},
              "5": {"class_type": "SaveImage", "inputs": {"images": ["4", 0], "filename_prefix": "q"}}}  # fmt: skip
    (ray_batch.folder / "w.json").write_text(json.dumps(prompt))
    settings = [{"text": "fail"}, {"text": "deadly", "deaths": 9}, {"text": "good"}, {"text": "slow", "steps": 5000}]
    rows = [
        {
            "id": one["text"],
            "set": {f"Paint.{key}": value for key, value in one.items()},
            "image": {"4": "photos/a.png"},
        }
        for one in settings
    ]
    (ray_batch.folder / "r.jsonl").write_text("\n".join(map(json.dumps, rows)))
    process = ray_batch.launch("--ray", "local", "--workers", "2", "--retries", "1", start_new_session=True)
    ray_batch.wait_for(lambda: ray_batch.starts()["slow"], 120)
    # The deadly row is recorded as failed only after its second worker has started, which takes seconds.
    ray_batch.wait_for(
        lambda: (
            {"fail", "deadly", "good"} <= {r["id"] for r in ray_batch.records() if r["status"] in ("error", "done")}
        ),
        120,
    )
    # A terminal, too, sends the signal to all processes of the group.
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert b"Traceback" not in out + err
    finished = {record["id"]: record for record in ray_batch.records() if record["status"] != "started"}
    assert {one: record["status"] for one, record in finished.items()} == {
        "fail": "error", "deadly": "error", "good": "done", "slow": "interrupted",
    }  # fmt: skip
    assert "The oven is cold." in finished["fail"]["error"]
    assert ray_batch.starts()["deadly"] == 2
    assert finished["good"]["outputs"] == {
        "pictures": ["r/good/deep/p_00001_.png", "r/good/q_00001_.png"],
        "texts": ["GOOD"],
    }
    with Image.open(ray_batch.folder / "output" / "r" / "good" / "q_00001_.png") as picture:
        assert picture.size == (7, 5)


@posix_only
def test_ray_no_cluster_at_the_address(ray_batch):
    ray_batch.write({"text": "a"})
    process = ray_batch.fork("--ray", "127.0.0.1:1")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    assert "There is no Ray cluster at '127.0.0.1:1'" in err
    assert "Traceback" not in err
