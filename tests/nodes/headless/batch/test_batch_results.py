"""The results of a batch: every row is recorded exactly once, whenever the process dies."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from uniworld.nodes.headless.batch.results import DONE, ERROR, INTERRUPTED, LOST, STARTED, Outcome, Results
from uniworld.nodes.headless.batch.results_file import ResultsFile
from uniworld.nodes.headless.batch.rows import BatchRow
from uniworld.uniworld_core.errors import RunFailed

ROWS = [BatchRow("a", 1, folder="a"), BatchRow("b/c", 2, folder="b_c"), BatchRow("d", 3, folder="d")]


class Killed(BaseException):
    """Simulates the death of the process: no code of ours handles it."""


@pytest.fixture
def open_results(tmp_path):
    def open_results(workflow: str = "w", rows: str = "r", path: str = "x.jsonl", output: str = "out") -> Results:
        return Results(tmp_path / path, tmp_path / output, "x", ROWS, workflow, rows)

    return open_results


@pytest.fixture
def lines(tmp_path):
    return lambda: [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]


def kill(results: Results) -> None:
    """Release the file as the operating system does when the process is killed."""
    results._file.close()


def save(attempt: Any, name: str = "p/p_1.png") -> Outcome:
    path = attempt.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"picture of attempt %d" % attempt.number)
    return Outcome(DONE, [name], ["text"], 1.5)


def test_an_outcome_is_recorded_and_its_folder_gets_the_name_of_the_row(open_results, lines, tmp_path):
    with open_results() as results:
        assert results.with_status("") == ["a", "b/c", "d"]
        attempt = results.start(ROWS[1])
        assert not (tmp_path / "out" / "x" / "b_c").exists()
        record = results.finish(attempt, save(attempt))
        failed = results.start(ROWS[2])
        save(failed)
        results.finish(failed, Outcome(ERROR, error="The oven is cold.", seconds=0.1))
    assert record == {
        "id": "b/c", "status": "done", "attempt": 1, "seconds": 1.5, "error": None,
        "outputs": {"pictures": ["x/b_c/p/p_1.png"], "texts": ["text"]},
    }  # fmt: skip
    assert (tmp_path / "out" / record["outputs"]["pictures"][0]).read_bytes() == b"picture of attempt 1"
    assert lines()[0] == {"uniworld_batch": 1, "workflow": "w", "rows": "r", "count": 3, "folder": "x"}
    assert [(line["id"], line["status"]) for line in lines()[1:]] == [
        ("b/c", "started"), ("b/c", "done"), ("d", "started"), ("d", "error"),
    ]  # fmt: skip
    assert [path.name for path in (tmp_path / "out" / "x").iterdir()] == ["b_c"]
    with open_results() as results:
        assert results.with_status(DONE, ERROR) == ["b/c", "d"]


def test_a_row_without_pictures_leaves_no_folder(open_results, tmp_path):
    with open_results() as results:
        results.finish(results.start(ROWS[0]), Outcome(DONE, texts=["5"]))
    assert list((tmp_path / "out" / "x").iterdir()) == []


def test_an_attempt_that_died_is_lost_and_counted_and_its_pictures_are_gone(open_results, lines, tmp_path):
    for number in (1, 2):
        results = open_results()
        assert results.lost_attempts(ROWS[0]) == number - 1
        attempt = results.start(ROWS[0])
        assert attempt.number == number
        save(attempt)
        kill(results)
    with open_results() as results:
        assert results.with_status(LOST) == ["a"]
        assert results.lost_attempts(ROWS[0]) == 2
        assert list((tmp_path / "out" / "x").rglob("*.png")) == []
        attempt = results.start(ROWS[0])
        results.finish(attempt, save(attempt))
        assert results.lost_attempts(ROWS[0]) == 0
    assert [line["status"] for line in lines()[1:]] == [STARTED, LOST, STARTED, LOST, STARTED, DONE]
    assert (tmp_path / "out/x/a/p/p_1.png").read_bytes() == b"picture of attempt 3"


def test_death_between_record_and_rename_loses_nothing(open_results, tmp_path, monkeypatch):
    results = open_results()
    attempt = results.start(ROWS[0])

    def die(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Results, "_publish", die)
        with pytest.raises(Killed):
            results.finish(attempt, save(attempt))
    kill(results)
    with open_results() as results:
        assert results.with_status(DONE) == ["a"]
        assert (tmp_path / "out/x/a/p/p_1.png").read_bytes() == b"picture of attempt 1"


def test_death_between_pictures_and_record_runs_the_row_again(open_results, tmp_path, monkeypatch):
    results = open_results()
    attempt = results.start(ROWS[0])

    def die(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(ResultsFile, "append", die)
        with pytest.raises(Killed):
            results.finish(attempt, save(attempt))
    kill(results)
    with open_results() as results:
        assert results.with_status(LOST) == ["a"]
        assert not (tmp_path / "out/x/a").exists()


def test_an_error_while_it_is_open_marks_running_rows_as_interrupted(open_results, lines, tmp_path):
    results = open_results()
    save(results.start(ROWS[0]))
    results.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert lines()[-1]["status"] == INTERRUPTED
    assert list((tmp_path / "out" / "x").iterdir()) == []
    with open_results() as results:
        assert results.lost_attempts(ROWS[0]) == 0
        assert results.start(ROWS[0]).number == 2


def test_a_full_disk_leaves_no_partial_line(open_results, lines, monkeypatch):
    write = os.write

    def half(file: int, data: bytes) -> int:
        if len(data) < 20:
            raise OSError(28, "No space left on device")
        return write(file, data[: len(data) // 2])

    with open_results() as results:
        attempt = results.start(ROWS[0])
        before = lines()
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", half)
            with pytest.raises(RunFailed, match="cannot be written: No space left") as error:
                results.finish(attempt, save(attempt))
        assert str(results.path) in str(error.value)
        assert lines() == before
        assert results.with_status(STARTED) == ["a"]


@pytest.mark.parametrize("tail", [b'{"id": "a", "sta', b"\xff\xfe", b"\0" * 300, b"{"])
def test_a_truncated_last_line_is_ignored(open_results, lines, tmp_path, tail):
    results = open_results()
    results.finish(results.start(ROWS[0]), Outcome(DONE))
    results.start(ROWS[1])
    kill(results)
    with (tmp_path / "x.jsonl").open("ab") as file:
        file.write(tail)
    with open_results() as results:
        assert results.with_status(DONE) == ["a"]
        assert results.with_status(LOST) == ["b/c"]
    assert [line["status"] for line in lines()[1:]] == [STARTED, DONE, STARTED, LOST]


def test_a_file_truncated_at_any_byte_can_be_continued(open_results, tmp_path):
    with open_results() as results:
        for row in ROWS[:2]:
            results.finish(results.start(row), Outcome(DONE, texts=["t"]))
    path = tmp_path / "x.jsonl"
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        with open_results() as results:
            done = results.with_status(DONE)
            # A complete record counts even without its newline.
            assert len(done) == (whole[:length] + b"\n").count(b'"texts": ["t"]}}\n')
            for row in ROWS:
                if row.id not in done:
                    results.finish(results.start(row), Outcome(DONE))
        with open_results() as results:
            assert len(results.with_status(DONE)) == 3


def test_a_damaged_line_in_the_middle_is_reported_with_its_number(open_results, tmp_path):
    with open_results() as results:
        results.finish(results.start(ROWS[0]), Outcome(DONE))
    path = tmp_path / "x.jsonl"
    whole = path.read_text().splitlines()
    for bad in (
        "{",
        '{"id": "z", "status": "done", "attempt": 1}',
        '{"id": "a", "status": "baked", "attempt": 1}',
        '{"id": ["a"], "status": "done", "attempt": 1}',
        "",
        "5",
    ):
        path.write_text("\n".join([whole[0], whole[1], bad, *whole[2:], ""]))
        with pytest.raises(ValueError, match=r"Line 3 of the results .* is damaged"):
            open_results()


def test_results_of_another_batch_are_rejected_and_unchanged(open_results, tmp_path):
    with open_results() as results:
        results.finish(results.start(ROWS[0]), Outcome(DONE))
    before = (tmp_path / "x.jsonl").read_bytes()
    with pytest.raises(ValueError, match="belong to another workflow"):
        open_results(workflow="other")
    with pytest.raises(ValueError, match="belong to another set of rows"):
        open_results(rows="other")
    with pytest.raises(ValueError, match=r"should be in .* which does not exist"):
        open_results(output="elsewhere")
    assert (tmp_path / "x.jsonl").read_bytes() == before
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    "content", [b"hello", b"hello\n", b'{"id": "a"}', b'{"id": "a"}\n{}\n', b"\x89PNG\r\n\x1a\n\0", b"[1]"]
)
def test_another_kind_of_file_is_rejected_and_unchanged(open_results, tmp_path, content):
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match="not a results file"):
        open_results()
    assert (tmp_path / "x.jsonl").read_bytes() == content


def test_two_processes_cannot_open_it(open_results):
    with open_results(), pytest.raises(ValueError, match="Another batch is writing"):
        open_results()
    open_results().__exit__(None, None, None)


@pytest.mark.skipif(os.name == "nt", reason="Windows locks otherwise")
def test_a_file_system_without_locks_is_not_mistaken_for_another_batch(open_results, monkeypatch):
    def no_locks(*_: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(
        ValueError, match=r"x.jsonl' cannot be locked \(No locks available\): its file system does not support locks"
    ):
        open_results()


def test_two_batches_of_the_same_name_have_separate_folders(open_results, tmp_path):
    with open_results() as first, open_results(path="deep/y.jsonl") as second:
        assert [results.folder.name for results in (first, second)] == ["x", "x_2"]
    with open_results(path="deep/y.jsonl") as second:
        assert second.folder == tmp_path / "out" / "x_2"


def test_a_folder_that_is_in_the_way_is_not_touched(open_results, tmp_path):
    with open_results() as results:
        attempt = results.start(ROWS[0])
        (tmp_path / "out/x/a").mkdir()
        (tmp_path / "out/x/a/mine.txt").write_text("mine")
        record = results.finish(attempt, save(attempt))
    assert record["status"] == ERROR
    assert "already exists. Move it away." in record["error"]
    assert [path.name for path in Path(tmp_path / "out/x/a").iterdir()] == ["mine.txt"]


def test_a_place_that_cannot_be_written(open_results, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be opened"):
        open_results(path="file/x.jsonl")
    with pytest.raises(ValueError, match="cannot be created"):
        open_results(path="new.jsonl", output="file")
