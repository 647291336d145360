"""Checkpoints are atomic, verified and pruned, and a failed one never replaces a good one."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from uniworld.training.engine import checkpoints
from uniworld.training.engine.checkpoints import CheckpointSaver, finished, latest, read_meta, read_tensors, verify
from uniworld.training.engine.parallel import World

ALONE = World(0, 1, torch.device("cpu"), "data")


@pytest.fixture
def saver(tmp_path: Path) -> Iterator[CheckpointSaver]:
    made = CheckpointSaver(tmp_path, ALONE)
    yield made
    made.close()


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"weights/one": torch.full((3, 2), value), "ema/one": torch.full((3, 2), -value)}


def save(saver: CheckpointSaver, step: int, loss: float | None = None) -> None:
    saver.save(step, tensors(step), {"step": step, "loss": loss})
    saver.wait()


def names(folder: Path) -> list[str]:
    return [one.name for one in finished(folder)]


def fill_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)


class TestSaving:
    def test_round_trips_the_tensors(self, saver: CheckpointSaver, tmp_path: Path) -> None:
        save(saver, 7)
        newest = latest(tmp_path)
        assert newest is not None
        assert newest.name == "step-00000007"
        assert read_meta(newest)["step"] == 7
        assert torch.equal(read_tensors(newest, "weights/")["one"], torch.full((3, 2), 7.0))
        assert torch.equal(read_tensors(newest, "ema/")["one"], torch.full((3, 2), -7.0))

    def test_copies_the_values_before_training_continues(self, saver: CheckpointSaver, tmp_path: Path) -> None:
        moving = tensors(1.0)
        saver.save(1, moving, {})
        moving["weights/one"].fill_(99.0)
        saver.wait()
        assert read_tensors(tmp_path / "step-00000001", "weights/")["one"][0, 0] == 1.0

    def test_leaves_no_partial_files(self, saver: CheckpointSaver, tmp_path: Path) -> None:
        save(saver, 1)
        assert [entry.name for entry in tmp_path.iterdir()] == ["step-00000001"]

    def test_never_overwrites_a_checkpoint(self, saver: CheckpointSaver, tmp_path: Path) -> None:
        save(saver, 1)
        with pytest.raises(ValueError, match="already exists"):
            save(saver, 1)
        verify(tmp_path / "step-00000001")


class TestFullDisk:
    def test_is_a_user_error_and_keeps_the_previous_checkpoint(
        self, saver: CheckpointSaver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save(saver, 1)
        with monkeypatch.context() as patched:
            fill_disk(patched)
            with pytest.raises(
                ValueError, match=r"could not be written .*No space left.*last complete one is step-00000001"
            ):
                save(saver, 2)
        assert [entry.name for entry in tmp_path.iterdir()] == ["step-00000001"]
        verify(tmp_path / "step-00000001")
        save(saver, 3)
        assert names(tmp_path) == ["step-00000001", "step-00000003"]

    def test_at_the_first_checkpoint_says_that_there_is_no_earlier_one(
        self, saver: CheckpointSaver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fill_disk(monkeypatch)
        saver.save(1, tensors(1), {})
        with pytest.raises(ValueError, match="there is no earlier one"):
            saver.wait()
        assert not any(tmp_path.iterdir())

    def test_is_reported_with_the_systems_message_and_not_torchs(
        self, saver: CheckpointSaver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            try:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finally:
                raise RuntimeError("unexpected pos 704 vs 598")

        monkeypatch.setattr(checkpoints, "_write_tensors", full)
        saver.save(1, tensors(1), {})
        with pytest.raises(ValueError, match=r"No space left"):
            saver.wait()

    def test_is_known_before_the_next_checkpoint(self, saver: CheckpointSaver, monkeypatch: pytest.MonkeyPatch) -> None:
        fill_disk(monkeypatch)
        saver.save(1, tensors(1), {})
        assert saver._pending is not None
        saver._pending.exception()
        assert saver.failed


class TestLatest:
    def test_is_none_in_an_empty_or_absent_folder(self, tmp_path: Path) -> None:
        assert latest(tmp_path) is None
        assert latest(tmp_path / "absent") is None

    def test_ignores_unfinished_checkpoints(self, saver: CheckpointSaver, tmp_path: Path) -> None:
        save(saver, 1)
        (tmp_path / "step-00000002.partial").mkdir()
        (tmp_path / "step-00000003").mkdir()
        assert names(tmp_path) == ["step-00000001"]

    def test_finds_no_partial_folders_after_the_next_start(self, tmp_path: Path) -> None:
        (tmp_path / "step-00000002.partial").mkdir()
        CheckpointSaver(tmp_path, ALONE).close()
        assert not any(tmp_path.iterdir())


class TestDamage:
    def test_of_a_byte_is_found_and_named(self, saver: CheckpointSaver, tmp_path: Path) -> None:
        save(saver, 1)
        file = next((tmp_path / "step-00000001").glob("*.distcp"))
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
        with pytest.raises(ValueError, match=rf"{file.name} does not match its checksum: the checkpoint is damaged"):
            verify(tmp_path / "step-00000001")

    def test_of_a_lost_file_is_found_and_named(self, saver: CheckpointSaver, tmp_path: Path) -> None:
        save(saver, 1)
        (tmp_path / "step-00000001" / ".metadata").unlink()
        with pytest.raises(ValueError, match=r"\.metadata is missing"):
            verify(tmp_path / "step-00000001")
        with pytest.raises(ValueError, match="cannot be read"):
            read_tensors(tmp_path / "step-00000001", "ema/")

    def test_of_the_meta_is_a_user_error(self, saver: CheckpointSaver, tmp_path: Path) -> None:
        save(saver, 1)
        (tmp_path / "step-00000001" / checkpoints.META).write_text("{", encoding="utf-8")
        with pytest.raises(ValueError, match=r"the checkpoint is damaged\. Remove the folder"):
            read_meta(tmp_path / "step-00000001")


class TestPruning:
    def test_keeps_the_newest(self, tmp_path: Path) -> None:
        saver = CheckpointSaver(tmp_path, ALONE, keep=2)
        for step in range(1, 6):
            save(saver, step)
        saver.close()
        assert names(tmp_path) == ["step-00000004", "step-00000005"]

    def test_also_keeps_the_best(self, tmp_path: Path) -> None:
        saver = CheckpointSaver(tmp_path, ALONE, keep=1, keep_best=1)
        for step, loss in enumerate([0.5, 0.1, 0.4, None], 1):
            save(saver, step, loss)
        saver.close()
        assert names(tmp_path) == ["step-00000002", "step-00000004"]

    @pytest.mark.parametrize("keep_best", [0, 1])
    def test_ignores_damaged_checkpoints(self, keep_best: int, tmp_path: Path) -> None:
        saver = CheckpointSaver(tmp_path, ALONE, keep=2, keep_best=keep_best)
        for step in (1, 2):
            save(saver, step, 0.1)
        (tmp_path / "step-00000001" / checkpoints.META).write_text("{", encoding="utf-8")
        save(saver, 3, 0.5)
        saver.close()
        assert names(tmp_path) == ["step-00000002", "step-00000003"]

    def test_that_fails_says_that_the_new_checkpoint_was_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        saver = CheckpointSaver(tmp_path, ALONE, keep=1)
        save(saver, 1)

        def refuse(*_: object) -> None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        monkeypatch.setattr(checkpoints.shutil, "rmtree", refuse)
        saver.save(2, tensors(2), {})
        with pytest.raises(
            ValueError, match=r"step-00000002 was written, but the older .*step-00000001 cannot be removed"
        ):
            saver.wait()
        assert names(tmp_path) == ["step-00000002"]

    def test_while_another_process_reads_makes_it_read_the_newer_one(self, tmp_path: Path) -> None:
        saver = CheckpointSaver(tmp_path, ALONE, keep=1)
        save(saver, 1)

        def find() -> Path:
            return finished(tmp_path)[-1]

        def read(checkpoint: Path) -> dict[str, torch.Tensor]:
            if checkpoint.name == "step-00000001":
                save(saver, 2)
            return read_tensors(checkpoint, "weights/")

        assert torch.equal(checkpoints.read_with_retry(find, read)["one"], torch.full((3, 2), 2.0))
        saver.close()
        (tmp_path / "step-00000002" / ".metadata").unlink()
        with pytest.raises(ValueError, match="step-00000002 cannot be read"):
            checkpoints.read_with_retry(find, read)

    def test_happens_only_after_the_new_checkpoint_is_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        saver = CheckpointSaver(tmp_path, ALONE, keep=1)
        save(saver, 1)
        fill_disk(monkeypatch)
        with pytest.raises(ValueError, match="could not be written"):
            save(saver, 2)
        saver.close()
        assert names(tmp_path) == ["step-00000001"]

    def test_of_zero_keeps_all(self, saver: CheckpointSaver, tmp_path: Path) -> None:
        for step in range(1, 5):
            save(saver, step)
        assert len(names(tmp_path)) == 4
