"""Export of a run's weights in the published format, with all other tensors and files unchanged."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from uniworld.training.objective.names import TOWER_NAMES
from uniworld.training.objective.step import DenoiseTower, StepSettings
from uniworld.training.publish import export
from uniworld.training.publish.export import export_run, write_changed
from uniworld.training.publish.model_folder import Source, write_index
from uniworld.uniworld_core import UniWorld
from uniworld.uniworld_core.loading.shipped import shipped_model
from uniworld.uniworld_core.loading.weights import Shards
from uniworld.uniworld_core.prompts.scope import SCOPE_FILE

START = shipped_model("tiny").checkpoint
NAME = "denoise_tower.denoise_projector.2.bias"


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint folder."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def changed() -> dict[str, Source]:
    return {NAME: Source.of(tensors_of(START)[NAME] + 1.0)}


def test_only_what_changed_differs_and_the_nodes_can_open_it(tmp_path: Path) -> None:
    write_changed(START, changed(), tmp_path / "out")
    before, after = tensors_of(START), tensors_of(tmp_path / "out")
    assert set(before) == set(after)
    assert [name for name in before if not torch.equal(before[name], after[name])] == [NAME]
    UniWorld.from_pretrained(tmp_path / "out", dtype=torch.float32).check()


def test_unchanged_files_are_copied_byte_for_byte(tmp_path: Path) -> None:
    write_changed(START, changed(), tmp_path / "out")
    touched = Shards(START).files[NAME].name
    names = {file.name for file in START.iterdir()}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names
    # Changes to the tokenizer are tested in tests/training/publish/test_processor_files.py.
    for name in names - {touched, "config.json", "model.safetensors.index.json", "tokenizer.json"}:
        assert (tmp_path / "out" / name).read_bytes() == (START / name).read_bytes(), name
    for name in ("config.json", "model.safetensors.index.json"):
        assert json.loads((tmp_path / "out" / name).read_text()) == json.loads((START / name).read_text())


def test_the_scope_of_the_start_is_not_exported(tmp_path: Path) -> None:
    nano = shipped_model("nano").checkpoint
    write_changed(nano, {}, tmp_path / "out")
    assert {file.name for file in nano.iterdir()} - {file.name for file in (tmp_path / "out").iterdir()} == {SCOPE_FILE}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such rights")
def test_all_exported_files_have_default_permissions(tmp_path: Path) -> None:
    write_changed(START, changed(), tmp_path / "out")
    (tmp_path / "any").write_text("")
    wanted = (tmp_path / "any").stat().st_mode
    assert {file.stat().st_mode for file in (tmp_path / "out").iterdir()} == {wanted}


def test_a_folder_without_a_run_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not a run's folder: it has no config\.toml"):
        export_run(tmp_path, tmp_path / "out")


def test_the_routing_head_is_exported(tmp_path: Path) -> None:
    write_changed(START, changed(), tmp_path / "out")
    start = UniWorld.from_pretrained(START, dtype=torch.float32)
    exported = UniWorld.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert torch.equal(start.route("Paint a dog.").logits, exported.route("Paint a dog.").logits)


def test_every_tensor_of_the_tower_has_a_published_name(model: UniWorld) -> None:
    tower = DenoiseTower(model.projectors, model.dit, StepSettings())
    published = {TOWER_NAMES.in_file(name) for name in tower.state_dict()}
    assert published == {name for name in Shards(START).shapes if name.startswith("denoise_tower.")}


def test_another_dtype_applies_to_every_tensor_and_the_configuration(tmp_path: Path) -> None:
    write_changed(START, changed(), tmp_path / "out", torch.bfloat16)
    shards = Shards(tmp_path / "out")
    assert set(shards.dtypes.values()) == {"BF16"}
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text(encoding="utf-8"))
    before = json.loads((START / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert index["metadata"]["total_size"] * 2 == before["metadata"]["total_size"]
    assert json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))["torch_dtype"] == "bfloat16"
    UniWorld.from_pretrained(tmp_path / "out", dtype=torch.bfloat16).check()


def test_a_trained_tensor_keeps_the_dtype_of_the_start(tmp_path: Path) -> None:
    write_changed(START, {}, tmp_path / "half", torch.bfloat16)
    write_changed(tmp_path / "half", changed(), tmp_path / "out")
    assert set(Shards(tmp_path / "out").dtypes.values()) == {"BF16"}


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"denoise_tower.other.weight": torch.zeros(3)}, "has no tensor denoise_tower.other.weight"),
        ({NAME: torch.zeros(3)}, "[48] in"),
        ({NAME: torch.full((48,), float("nan"))}, "not finite"),
    ],
)
def test_tensors_that_do_not_match_the_start_are_rejected_and_leave_nothing(
    tmp_path: Path, tensors: dict[str, torch.Tensor], words: str
) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        write_changed(START, {name: Source.of(tensor) for name, tensor in tensors.items()}, tmp_path / "out")
    assert words in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_values_that_overflow_the_dtype_are_rejected_and_leave_nothing(tmp_path: Path) -> None:
    large = {NAME: Source.of(torch.full((48,), 1e6))}
    with pytest.raises(ValueError, match=rf"{NAME} has values up to 1e\+06, which overflow float16"):
        write_changed(START, large, tmp_path / "out", torch.float16)
    assert not list(tmp_path.iterdir())


def test_folders_with_similar_names_are_not_touched(tmp_path: Path) -> None:
    others = [tmp_path / "out.partial", tmp_path / ".out", tmp_path / "out2"]
    for other in others:
        other.mkdir()
    write_changed(START, changed(), tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == sorted([*others, tmp_path / "out"])


def test_a_file_name_that_is_too_long_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be written"):
        write_changed(START, changed(), tmp_path / ("x" * 300))


def test_an_existing_folder_is_never_overwritten(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="already exists"):
        write_changed(START, changed(), tmp_path)


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(tensors: dict[str, torch.Tensor], file: Path, metadata: dict[str, str]) -> None:
        raise OSError(28, "No space left on device", str(file))

    monkeypatch.setattr(export, "save_file", save)
    with pytest.raises(ValueError, match="No space left on device"):
        write_changed(START, changed(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("indexed", [False, True], ids=["without an index", "with an index"])
def test_a_start_in_one_file_stays_in_one_file(tmp_path: Path, indexed: bool) -> None:
    start = Path(shutil.copytree(START, tmp_path / "start", ignore=shutil.ignore_patterns("*.safetensors*")))
    tensors = tensors_of(START)
    file = "model-00001-of-00001.safetensors" if indexed else "model.safetensors"
    save_file(tensors, start / file, metadata={"format": "pt"})
    if indexed:
        write_index(start, dict.fromkeys(tensors, file), sum(tensor.nbytes for tensor in tensors.values()))
    write_changed(start, changed(), tmp_path / "out")
    names = {found.name for found in start.glob("*.safetensors*")}
    assert {found.name for found in (tmp_path / "out").glob("*.safetensors*")} == names
