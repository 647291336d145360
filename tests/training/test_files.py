"""Atomic files and locks."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from uniworld.training.files import locked, make_folder, read_saved, write_atomic
from uniworld.uniworld_core.errors import UniWorldError


def test_a_file_is_written_with_its_parent_folders(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a" / "b" / "c.txt", b"content")
    assert (tmp_path / "a" / "b" / "c.txt").read_bytes() == b"content"
    assert len(list((tmp_path / "a" / "b").iterdir())) == 1


def test_a_file_in_place_of_a_folder_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for act in (lambda: make_folder(tmp_path / "file" / "in"), lambda: write_atomic(tmp_path / "file" / "in.txt", b"")):
        with pytest.raises(
            ValueError,
            match=r"file.*' cannot be written: (Not a directory|File exists)\. Free disk space or choose",
        ):
            act()


def test_a_damaged_file_is_named_with_the_fix(tmp_path: Path) -> None:
    file = tmp_path / "saved"
    file.write_bytes(b"\xff")
    assert read_saved(file, Path.read_bytes) == b"\xff"
    for read in (lambda file: json.loads(file.read_bytes()), lambda file: torch.load(file, weights_only=True)):
        with pytest.raises(
            UniWorldError, match=r"saved' is damaged \(.+\): delete it, then run the same command again\.$"
        ):
            read_saved(file, read)

    def short_of_memory(_: Path) -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        read_saved(file, short_of_memory)


@pytest.mark.skipif(os.name == "nt", reason="Windows has other locks")
class TestALock:
    def test_held_by_another_process_is_reported(self, tmp_path: Path) -> None:
        with (
            locked(tmp_path / "lock", wait=False, busy=""),
            pytest.raises(ValueError, match="another has it"),
            locked(tmp_path / "lock", wait=False, busy="another has it"),
        ):
            pass

    def test_on_a_file_system_without_locks_is_not_reported_as_held(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

        monkeypatch.setattr("fcntl.flock", refuse)
        with (
            pytest.raises(
                ValueError,
                match=r"lock' cannot be locked \(Function not implemented\): its file system does not support locks",
            ),
            locked(tmp_path / "lock", wait=False, busy="another has it"),
        ):
            pass
