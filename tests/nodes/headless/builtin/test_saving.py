"""The file name and the folder are checked before a run, so that every computed picture can be saved."""

from __future__ import annotations

import errno
import os
import time
from typing import Any

import pytest
import torch
from uniworld.nodes.headless.builtin.images import PreviewImage, SaveImage
from uniworld.nodes.headless.check.validate import validate_prompt
from uniworld.nodes.headless.storage import output_folder
from uniworld.nodes.headless.storage.output_folder import check_writable, preview_folder

IMAGE = torch.zeros(1, 4, 4, 3)


def workflow(prefix: Any) -> dict[str, Any]:
    return {
        "1": {"class_type": "NoiseImage", "inputs": {"width": 4, "height": 4}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": prefix}},
    }


@pytest.mark.parametrize("prefix", [
    "../p", "/p", "a/../../p", "C:\\x", "con", "a/NUL.txt", "lpt1", "%2e%2e/x", "", "a\0b", "a:b", "x" * 300, "a/", " p",
])  # fmt: skip
def test_an_invalid_prefix_is_found_before_a_run(registry, place, prefix):
    checked = validate_prompt(workflow(prefix), registry)
    assert [problem.error["type"] for problem in checked.problems] == ["custom_validation_failed"]
    assert "file name prefix" in checked.sentences[0]
    assert not place.output.exists()


@pytest.mark.parametrize("prefix", [
    "ComfyUI", "a/b/c", "猫", "%date:yyyy-MM-dd%/%width%x%height%", "%NoiseImage.width%_p", "%batch_num%", "%unknown%", "10% off",
])  # fmt: skip
def test_a_valid_prefix_passes_and_saves(registry, run, place, prefix):
    assert not validate_prompt(workflow(prefix), registry).problems
    assert run(workflow(prefix)).status == "success"
    assert len(list(place.output.rglob("*.png"))) == 1


def test_a_prefix_that_needs_a_folder_where_a_file_is(registry, place):
    place.output.mkdir()
    (place.output / "a").touch()
    assert "but that is a file" in validate_prompt(workflow("a/b"), registry).sentences[0]


def test_a_token_of_a_missing_node_does_not_prevent_saving(run, place):
    assert run(workflow("%No:body.seed%")).status == "success"


@pytest.mark.parametrize("value", ["..", "con", "x" * 300, " ", "%2e", "."])
def test_an_invalid_value_of_another_widget_does_not_prevent_saving(run, place, value):
    prompt = workflow("%PrimitiveString.value%")
    prompt["3"] = {"class_type": "PrimitiveString", "inputs": {"value": value}}
    assert run(prompt).status == "success"
    assert [path.parent for path in place.output.rglob("*.png")] == [place.output]


def test_a_writable_folder_is_created_and_left_empty(tmp_path):
    check_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


@pytest.mark.parametrize("make", [True, False])
@pytest.mark.parametrize("name", ["file", "file/below/it"])
def test_a_file_instead_of_a_folder_is_an_error(tmp_path, make, name):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(
        ValueError, match=r"^Pictures cannot be written to '.*file.*': .*; free space or choose another"
    ):
        check_writable(tmp_path / name, make)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_check_of_permissions_creates_nothing(tmp_path):
    check_writable(tmp_path / "a" / "b", make=False)
    assert not (tmp_path / "a").exists()


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a folder without write permission")
def test_a_folder_without_write_permission_is_an_error(tmp_path):
    tmp_path.chmod(0o500)
    try:
        for make in (True, False):
            with pytest.raises(ValueError, match="Permission denied; free space"):
                check_writable(tmp_path / "out", make)
    finally:
        tmp_path.chmod(0o700)


def test_a_full_disk_while_saving_is_a_clear_error(run, place, monkeypatch):
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("PIL.Image.Image.save", full)
    sentence = run(workflow("p")).sentence
    reason = os.strerror(errno.ENOSPC)
    assert sentence == (
        f"Node 2 (SaveImage) failed: Pictures cannot be written to '{place.output}': {reason}; "
        "free space or choose another --output."
    )


def test_saving_reports_a_file_instead_of_the_output_folder(place):
    place.output.write_text("mine")
    with pytest.raises(ValueError, match=r"^Pictures cannot be written to") as caught:
        SaveImage().execute(IMAGE, "p")
    assert "Errno" not in str(caught.value)


def test_temporary_files_of_a_killed_save_are_removed_after_a_day(place):
    place.output.mkdir()
    old, young, foreign = (place.output / name for name in (f".{'a' * 16}.part", f".{'b' * 16}.part", ".mine.part"))
    for path in (old, young, foreign):
        path.touch()
    for path in (old, foreign):
        os.utime(path, (time.time() - 90_000,) * 2)
    SaveImage().execute(IMAGE, "p")
    assert {path.name for path in place.output.iterdir()} == {young.name, foreign.name, "p_00001_.png"}


def test_previews_are_kept_for_a_day(place, tmp_path, monkeypatch):
    monkeypatch.setattr(output_folder.tempfile, "tempdir", str(tmp_path))
    with preview_folder() as empty:
        pass
    assert not empty.exists()
    with preview_folder() as place.temp:
        PreviewImage().execute(IMAGE)
    assert len(list(place.temp.iterdir())) == 1
    with preview_folder():
        assert place.temp.exists()
    os.utime(place.temp, (time.time() - 90_000,) * 2)
    with preview_folder():
        assert not place.temp.exists()
