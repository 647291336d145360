"""The rows of a batch: all mistakes are reported at once, and each row gets its own folder."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from uniworld.nodes.headless.batch import rows as batch_rows
from uniworld.nodes.headless.batch.rows import BadRows, BatchRow, apply_row, check_rows, hash_rows, read_rows
from uniworld.nodes.headless.workflow.file import Workflow


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


SUM = {"1": node("Number", value=4), "2": node("Add", a=["1", 0], b=5), "3": node("Show", value=["2", 0])}
OPTIONS = {"1": node("Options", text="", seed=0, strength=0.5, on=False, old_choice="a", new_choice="x")}
PICTURE = {"1": node("LoadImage", image="none.png"), "2": node("Show", value=["1", 0])}


@pytest.fixture
def read(tmp_path):
    def read(content: Any) -> list[BatchRow]:
        path = tmp_path / "rows.jsonl"
        if isinstance(content, list):
            content = "\n".join(json.dumps(row) for row in content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_rows(path)

    return read


def test_the_default_id_is_the_line_number(read):
    rows = read(b'\xef\xbb\xbf{}\r\n\n{"id": "fox", "set": {"Number.value": 5}}\n{"image": {"1": "a.png"}}\n')
    assert [(row.id, row.line, row.set, row.image) for row in rows] == [
        ("1", 1, {}, {}), ("fox", 3, {"Number.value": 5}, {}), ("4", 4, {}, {"1": "a.png"}),
    ]  # fmt: skip


@pytest.mark.parametrize(("line", "word"), [
    (b"{", "not valid JSON: Expecting"), (b"5", "5 is not a JSON object"), (b"\xff", "UTF-8"), (b'{"sets": {}}', "unknown key 'sets'"),
    (b'{"id": 5}', '"id" must be a string'), (b'{"id": " "}', '"id" must be a string'), (b'{"set": []}', '"set" must map'), (b'{"image": 1}', '"image" must map'),
    (b'{"set": {"1.a": null}}', "Use a string, a number, true or false"), (b'{"set": {"1.a": ["1", 0]}}', "Use a string, a number"),
    (b'{"set": {"1.a": NaN}}', "NaN"), (b'{"set": {"1.a": 1e999}}', "the invalid value inf"), (b'{"image": {"1": 5}}', "path of a file, as a string"),
    (b'{"image": {"1": ""}}', "gives 1 the picture ''. Use the path of a file"),
    (b'{"id": "a", "id": "b"}', "the key 'id' twice"), (b"[" * 100_000, "nested too deeply"), (b'{"set": {"1.a": ' + b"9" * 5000 + b"}}", "Line 1: it contains a number with 5000 digits"),
])  # fmt: skip
def test_a_bad_line_is_reported_with_its_number(read, line, word):
    with pytest.raises(BadRows, match="Line 1") as caught:
        read(line)
    assert word in str(caught.value)


def test_all_bad_lines_are_reported_at_once(read):
    with pytest.raises(BadRows) as caught:
        read('{"id": "a"}\n{\n{"id": "a"}\n[]\n{"id": "5"}\n{"id": "5"}')
    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["Line 2", "Line 3", "Line 4", "Line 6"]
    assert "line 1 also has the id 'a'" in str(caught.value)


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_a_file_without_rows_is_rejected(read, content):
    with pytest.raises(BadRows, match="has no rows"):
        read(content)


def test_a_missing_or_huge_file_is_rejected(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        read_rows(tmp_path / "none.jsonl")
    monkeypatch.setattr(batch_rows, "MAX_BYTES", 3)
    (tmp_path / "rows.jsonl").write_text("{} ")
    assert len(read_rows(tmp_path / "rows.jsonl")) == 1
    (tmp_path / "rows.jsonl").write_text("{}  ")
    with pytest.raises(ValueError, match="Split it into several batches"):
        read_rows(tmp_path / "rows.jsonl")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes and devices are files of Unix")
def test_a_device_is_read_up_to_the_limit(monkeypatch):
    monkeypatch.setattr(batch_rows, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match="Split it into several batches"):
        read_rows(Path("/dev/zero"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes and devices are files of Unix")
def test_rows_of_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "rows")
    writer = threading.Thread(target=(tmp_path / "rows").write_text, args=('{"id": "a"}\n{"id": "b"}\n',))
    writer.start()
    assert [row.id for row in read_rows(tmp_path / "rows")] == ["a", "b"]
    writer.join()


IDS = [
    "fox",
    "Fox",
    "a/b",
    "a_b",
    "../../x",
    ".hidden",
    "..",
    "con",
    "猫",
    "é",
    "é",
    "x" * 900,
    "x" * 901,
    "a b",
    "\ud800",
    "row",
    "fox.",
]


@given(ids=st.lists(st.text(min_size=1, max_size=60).filter(str.strip) | st.sampled_from(IDS), unique=True, min_size=1))
def test_folders_are_plain_unique_and_deterministic(ids):
    rows = batch_rows._with_folders([BatchRow(one, 1) for one in ids])
    names = [row.folder for row in rows]
    assert len({name.casefold() for name in names}) == len(ids)
    for name in names:
        assert batch_rows._is_folder_name(name)
        assert "/" not in name
        assert not name.startswith(".")
    assert names == [row.folder for row in batch_rows._with_folders(rows)]


def test_a_plain_id_is_the_name_of_its_folder(read):
    assert [row.folder for row in read([{"id": "fox-1.a"}, {"id": "猫"}, {}])] == ["fox-1.a", "猫", "3"]


def test_values_are_typed(read, registry):
    values = {"text": "a=b.c", "seed": 2**64 - 1, "strength": 0.25, "on": True, "old_choice": "b", "new_choice": "y"}
    [row] = read([{"set": {f"Options.{name}": value for name, value in values.items()}}])
    workflow = Workflow(OPTIONS)
    changed = apply_row(workflow, row, Path(), registry)
    assert changed.prompt["1"]["inputs"] == values
    assert workflow.prompt["1"]["inputs"]["on"] is False


def test_rows_are_checked_against_the_workflow_and_equal_problems_are_grouped(read, registry, tmp_path):
    path = tmp_path / "rows.jsonl"
    check_rows(read([{"set": {"Number.value": 7}}, {"set": {"Add.a": 1}}]), path, Workflow(SUM), registry)
    bad = [{"set": {"Number.value": 700}}, {"set": {"Nobody.value": 1}}, {}, {"set": {"Nobody.value": 2}}, {"set": {"value": 1}},
           {"set": {"Number.value": "many"}}, {"set": {"Number.size": 1}}, {"set": {"Number.value": True}}]  # fmt: skip
    with pytest.raises(BadRows) as caught:
        check_rows(read(bad), path, Workflow(SUM), registry)
    problems = caught.value.problems
    assert len(problems) == 6
    assert any(problem.startswith("Lines 2, 4: There is no node 'Nobody'") for problem in problems)
    assert "Line 1: Node 1 (Number): " in problems[0]
    assert "Line 6: Node 1 (Number): 'many' is not a value for 'value', which takes a whole number." in problems


def test_a_problem_of_the_workflow_itself_is_reported_once(read, registry, tmp_path):
    with pytest.raises(BadRows) as caught:
        check_rows(read([{}] * 500), tmp_path / "rows.jsonl", Workflow({"1": node("Nobody")}), registry)
    [problem] = caught.value.problems
    assert problem.startswith("Lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 490 more: ")


def test_pictures_are_relative_to_the_rows_and_must_exist(read, registry, tmp_path, place):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (7, 5)).save(tmp_path / "photos" / "a.png")
    rows = read([{"image": {"LoadImage": "photos/a.png"}}, {"image": {"1": str(tmp_path / "photos" / "a.png")}}])
    check_rows(rows, tmp_path / "rows.jsonl", Workflow(PICTURE), registry)
    assert place.bound == {}
    rows = read(
        [
            {"image": {"1": "b.png"}},
            {"image": {"Nobody": "b.png"}},
            {"image": {"2": "photos/a.png"}},
            {"image": {"1": "a\0"}},
        ]
    )
    with pytest.raises(BadRows) as caught:
        check_rows(rows, tmp_path / "rows.jsonl", Workflow(PICTURE), registry)
    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["Line 1", "Line 2", "Line 3", "Line 4"]


def test_the_hash_ignores_whitespace_line_numbers_and_key_order(read):
    first = read('{"id": "a", "set": {"1.x": 1, "1.y": 2}}')
    assert hash_rows(first) == hash_rows(read('\n  {"set": {"1.y": 2,   "1.x": 1}, "id": "a"}\n'))
    assert hash_rows(first) != hash_rows(read('{"id": "a", "set": {"1.x": 1.5, "1.y": 2}}'))
