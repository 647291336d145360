"""Files that are written whole, and locks."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from uniworld.training.data.files import locked, make_folder, write_whole


def test_a_file_is_written_with_the_folders_around_it(tmp_path: Path) -> None:
    write_whole(tmp_path / "a" / "b" / "c.txt", b"whole")
    assert (tmp_path / "a" / "b" / "c.txt").read_bytes() == b"whole"
    assert len(list((tmp_path / "a" / "b").iterdir())) == 1


def test_a_folder_with_a_file_in_its_way_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for act in (lambda: make_folder(tmp_path / "file" / "in"), lambda: write_whole(tmp_path / "file" / "in.txt", b"")):
        with pytest.raises(
            ValueError,
            match=r"file.*' cannot be written: (Not a directory|File exists)\. Free room on the disk or name",
        ):
            act()


@pytest.mark.skipif(os.name == "nt", reason="Windows locks otherwise")
class TestALock:
    def test_held_by_another_is_told_as_such(self, tmp_path: Path) -> None:
        with (
            locked(tmp_path / "lock", wait=False, busy=""),
            pytest.raises(ValueError, match="another has it"),
            locked(tmp_path / "lock", wait=False, busy="another has it"),
        ):
            pass

    def test_that_the_file_system_does_not_know_is_not_told_as_held(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

        monkeypatch.setattr("fcntl.flock", refuse)
        with (
            pytest.raises(ValueError, match=r"lock' cannot be locked \(Function not implemented\), as its file system"),
            locked(tmp_path / "lock", wait=False, busy="another has it"),
        ):
            pass
