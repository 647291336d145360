"""Tasks written as training data: valid in the published format, and resumed after a kill."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from uniworld.training.data.published import PublishedSamples
from uniworld.training.shapes.tasks import dataset
from uniworld.training.shapes.tasks.dataset import write_dataset
from uniworld.training.shapes.tasks.tasks import EDITS, KINDS
from uniworld.training.shapes.world.scene import SIDE
from uniworld.uniworld_core.errors import UniWorldError

COUNT = 60


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "BLOCK", 16)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def annotations(folder: Path, name: str) -> list[dict]:
    return json.loads((folder / name).read_text(encoding="utf-8"))


class TestContents:
    def test_the_trainer_reads_it(self, tmp_path: Path) -> None:
        samples = PublishedSamples(write_dataset(tmp_path / "data", COUNT, seed=4))
        assert len(samples) + len(annotations(tmp_path / "data", "questions.json")) == COUNT
        for index in range(len(samples)):
            sample = samples[index]
            pictures = [reference.open() for reference in sample.references] + [sample.target.open()]
            assert {(picture.size, picture.mode) for picture in pictures} == {((SIDE, SIDE), "RGB")}
            assert sample.prompt
            assert "<image>" not in sample.prompt

    def test_only_edits_are_weighted(self, tmp_path: Path) -> None:
        samples = PublishedSamples(write_dataset(tmp_path / "data", COUNT))
        names = [*annotations(tmp_path / "data", "edits.json"), *annotations(tmp_path / "data", "others.json")]
        kinds = [row["id"].split("-")[0] for row in names]
        weighted = [samples[index].weighted for index in range(len(samples))]
        assert weighted == [True] * len(annotations(tmp_path / "data", "edits.json")) + [False] * (
            len(names) - sum(weighted)
        )
        assert {kind for kind, is_weighted in zip(kinds, weighted) if is_weighted} <= set(EDITS)
        # Not weighted are compositions at the same place as in the second picture.
        assert {kind for kind, is_weighted in zip(kinds, weighted) if not is_weighted} & set(EDITS) <= {"compose"}

    def test_pictures_equal_those_of_the_tasks(self, tmp_path: Path) -> None:
        write_dataset(tmp_path / "data", COUNT, seed=2)
        settings = dataset._Settings(COUNT, 2, "train", SIDE, KINDS)
        for row in annotations(tmp_path / "data", "edits.json"):
            task = dataset.task_number(int(row["id"].split("-")[1]), settings)
            assert row["conversations"][0]["value"] == "<image>" * len(task.references) + task.prompt
            for name, picture in zip(row["image"], [*task.references, task.target]):
                assert np.array_equal(np.asarray(Image.open(tmp_path / "data" / "pictures" / name)), picture)

    def test_questions_have_answers_and_are_not_in_the_list(self, tmp_path: Path) -> None:
        listed = write_dataset(tmp_path / "data", COUNT).read_text(encoding="utf-8")
        assert listed == "pictures,edits.json,true\npictures,others.json,false\n"
        rows = annotations(tmp_path / "data", "questions.json")
        assert rows
        assert all(
            row["conversations"][1]["value"] not in ("", "<gen_image>") and len(row["image"]) == 1 for row in rows
        )

    def test_only_the_chosen_kinds_are_written(self, tmp_path: Path) -> None:
        write_dataset(tmp_path / "data", COUNT, kinds=["remove", "edge"])
        rows = [row for name in ("edits.json", "others.json") for row in annotations(tmp_path / "data", name)]
        assert set(Counter(row["id"].split("-")[0] for row in rows)) == {"remove", "edge"}

    def test_the_same_seed_writes_the_same_files_and_another_seed_others(self, tmp_path: Path) -> None:
        for name, seed in (("one", 1), ("two", 1), ("three", 2)):
            write_dataset(tmp_path / name, COUNT, seed=seed)
        assert contents(tmp_path / "one") == contents(tmp_path / "two")
        assert contents(tmp_path / "one").keys() != contents(tmp_path / "three").keys()

    def test_training_and_test_tasks_differ(self, tmp_path: Path) -> None:
        for split in ("train", "test"):
            write_dataset(tmp_path / split, COUNT, split=split)
        assert annotations(tmp_path / "train", "edits.json") != annotations(tmp_path / "test", "edits.json")

    def test_progress_is_reported(self, tmp_path: Path) -> None:
        reported = []
        write_dataset(tmp_path / "data", 40, progress=lambda done, count: reported.append((done, count)))
        assert reported == [(16, 40), (32, 40), (40, 40)]


class TestResuming:
    def test_a_killed_run_resumes_with_the_same_result(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_dataset(tmp_path / "whole", COUNT)

        def killed(number: int, settings: dataset._Settings) -> None:
            if number == 40:
                raise KeyboardInterrupt
            return make(number, settings)

        make = dataset.task_number
        monkeypatch.setattr(dataset, "task_number", killed)
        with pytest.raises(KeyboardInterrupt):
            write_dataset(tmp_path / "killed", COUNT)
        assert not (tmp_path / "killed" / dataset.LIST).exists()
        made = []
        monkeypatch.setattr(dataset, "task_number", lambda *known: made.append(known[0]) or make(*known))
        write_dataset(tmp_path / "killed", COUNT)
        assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
        assert set(range(16)).isdisjoint(made), "a block that was finished was made again"

    def test_a_finished_folder_is_not_changed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_dataset(tmp_path / "data", COUNT)
        monkeypatch.setattr(dataset, "task_number", None)
        assert write_dataset(tmp_path / "data", COUNT) == tmp_path / "data" / dataset.LIST

    @pytest.mark.parametrize("other", [{"seed": 1}, {"count": COUNT + 1}, {"kinds": ["add"]}, {"side": 96}])
    def test_a_folder_with_other_settings_is_rejected(self, tmp_path: Path, other: dict) -> None:
        write_dataset(tmp_path / "data", COUNT)
        with pytest.raises(ValueError, match=rf"other settings \({next(iter(other))} .*choose another folder"):
            write_dataset(tmp_path / "data", **{"count": COUNT} | other)

    @pytest.mark.parametrize("name", ["settings.json", "blocks/00000.json"])
    def test_a_damaged_block_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        monkeypatch.setattr(dataset.shutil, "rmtree", lambda _: None)
        write_dataset(tmp_path / "data", COUNT)
        (tmp_path / "data" / dataset.LIST).unlink()
        (tmp_path / "data" / name).write_text('[{"cut')
        with pytest.raises(UniWorldError, match=rf"{name}'? is not valid JSON: Unterminated string"):
            write_dataset(tmp_path / "data", COUNT)

    def test_a_folder_with_other_files_is_rejected(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").write_text("years of work")
        with pytest.raises(ValueError, match="contains other files"):
            write_dataset(tmp_path, COUNT)
        assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]

    def test_a_full_disk_is_reported_and_leaves_no_list(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(path: Path, data: bytes) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", full)
        with pytest.raises(ValueError, match="No space left on device"):
            write_dataset(tmp_path / "data", COUNT)
        assert not (tmp_path / "data" / dataset.LIST).exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 0}, "number of tasks is 0"),
        ({"seed": -1}, "The seed is -1"),
        ({"split": "exam"}, "Unknown split 'exam'"),
        ({"side": 65}, "is 65; it must be a multiple of 16"),
        ({"kinds": ["add", "sing"]}, r"Unknown kinds of tasks \['sing'\]; choose some of"),
        ({"kinds": []}, "choose some of"),
    ],
)
def test_invalid_settings_are_rejected_and_create_no_folder(tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_dataset(tmp_path / "data", **{"count": 5} | settings)
    assert not (tmp_path / "data").exists()
