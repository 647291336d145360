"""A model folder is written atomically, and all users may read it."""

from __future__ import annotations

from pathlib import Path

import pytest
from uniworld.training.publish.model_folder import new_folder


def test_nested_files_and_folders_have_default_permissions(tmp_path: Path) -> None:
    with new_folder(tmp_path / "model") as folder:
        (folder / "flux" / "vae").mkdir(parents=True)
        for file in (folder / "config.json", folder / "flux" / "vae" / "weights.safetensors"):
            file.write_text("{}")
            file.chmod(0o600)  # as safetensors leaves them
    wanted = (tmp_path / "model").stat().st_mode
    for path in (tmp_path / "model").rglob("*"):
        mode = wanted if path.is_dir() else wanted & 0o666
        assert path.stat().st_mode & 0o777 == mode & 0o777, path


def test_a_block_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def write() -> None:
        with new_folder(tmp_path / "model") as folder:
            (folder / "flux").mkdir()
            raise KeyError

    with pytest.raises(KeyError):
        write()
    assert list(tmp_path.iterdir()) == []
