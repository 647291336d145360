"""Merging: the mean of several checkpoints' weights is a checkpoint that the nodes can open."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from uniworld.training.publish.export import write_changed
from uniworld.training.publish.merge import merge
from uniworld.training.publish.model_folder import Source
from uniworld.uniworld_core import UniWorld
from uniworld.uniworld_core.errors import UniWorldError
from uniworld.uniworld_core.loading.shipped import shipped_model
from uniworld.uniworld_core.loading.weights import Shards

START = shipped_model("tiny").checkpoint
NAME = "denoise_tower.denoise_projector.2.bias"


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """The tiny checkpoint with 1 added to one tensor."""
    write_changed(START, {NAME: Source.of(tensors_of(START)[NAME] + 1.0)}, tmp_path / "other")
    return tmp_path / "other"


@pytest.mark.parametrize(
    ("shares", "added"), [(None, 0.5), ([0.25, 0.75], 0.75), ([3, 1], 0.25), ([1, 0], 0.0), ([1e308, 1e308], 0.5)]
)
def test_the_mean_is_weighted_and_identical_tensors_are_copied(
    tmp_path: Path, other: Path, shares: list[float] | None, added: float
) -> None:
    merge(["tiny", other], tmp_path / "out", shares)
    before, after = tensors_of(START), tensors_of(tmp_path / "out")
    assert set(before) == set(after)
    torch.testing.assert_close(after[NAME], before[NAME] + added)
    assert all(torch.equal(before[name], after[name]) for name in before if name != NAME)
    UniWorld.from_pretrained(tmp_path / "out", dtype=torch.float32).route("Paint a dog.")


def test_the_mean_has_the_dtypes_of_the_first_and_is_computed_in_float32(tmp_path: Path, other: Path) -> None:
    write_changed(START, {}, tmp_path / "half", torch.bfloat16)
    merge([tmp_path / "half", other], tmp_path / "out", [0.1, 0.9])
    assert set(Shards(tmp_path / "out").dtypes.values()) == {"BF16"}
    half, whole = tensors_of(tmp_path / "half")[NAME].float(), tensors_of(other)[NAME]
    assert torch.equal(tensors_of(tmp_path / "out")[NAME], (0.1 * half + 0.9 * whole).bfloat16())


def test_a_tensor_that_is_not_finite_is_named_and_nothing_is_left(tmp_path: Path, other: Path) -> None:
    broken = load_file(file := Shards(other).files[NAME])
    broken[NAME][0] = float("nan")
    save_file(broken, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"{NAME} in .*other has values that are not finite"):
        merge([START, other], tmp_path / "out")
    assert {file.name for file in tmp_path.iterdir()} == {"other"}


@pytest.mark.parametrize("shares", [[1.0], [1, 1, 1], [0, 0], [1, -1], [1, float("nan")], [1, float("inf")]])
def test_invalid_shares_are_rejected(tmp_path: Path, other: Path, shares: list[float]) -> None:
    with pytest.raises(ValueError, match="shares"):
        merge([START, other], tmp_path / "out", shares)


def test_an_existing_folder_is_never_overwritten(other: Path) -> None:
    with pytest.raises(ValueError, match="already exists"):
        merge([START, other], other)


def test_a_mean_that_overflows_the_dtype_is_rejected(tmp_path: Path) -> None:
    write_changed(START, {}, tmp_path / "half", torch.float16)
    write_changed(START, {NAME: Source.of(torch.full((48,), 1e6))}, tmp_path / "large")
    with pytest.raises(ValueError, match="which overflow float16"):
        merge([tmp_path / "half", tmp_path / "large"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("dtype", "version"), [("bfloat16", "9.9.9")])
def test_dtype_and_writer_of_a_file_may_differ_but_not_the_architecture(
    tmp_path: Path, other: Path, dtype: str, version: str
) -> None:
    config = json.loads((other / "config.json").read_text(encoding="utf-8"))
    config |= {"torch_dtype": dtype, "transformers_version": version}
    (other / "config.json").write_text(json.dumps(config), encoding="utf-8")
    merge([START, other], tmp_path / "out")
    (other / "config.json").write_text(json.dumps(config | {"rope_theta": 5.0}), encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"sets rope_theta to 1000000\.0 in .* and 5\.0 in .*other: only checkpoints of"
    ):
        merge([START, other], tmp_path / "out2")


def test_a_merged_folder_is_never_modified_whatever_its_name(tmp_path: Path, other: Path) -> None:
    inside = Path(shutil.copytree(other, tmp_path / "out.partial"))
    merge([START, inside], tmp_path / "out")
    assert len(list(inside.iterdir())) == len(list(other.iterdir()))
    with pytest.raises(ValueError, match="is inside"):
        merge([START, other], other / "out")


def test_a_parent_folder_and_a_file_of_a_checkpoint_are_rejected_with_the_fix(tmp_path: Path, other: Path) -> None:
    with pytest.raises(ValueError, match=r"contains one: give .*uniworld\."):
        merge([START.parent, other], tmp_path / "out")
    with pytest.raises(ValueError, match="is a file: give the folder"):
        merge([START / "config.json", other], tmp_path / "out")


def test_one_file_merges_with_shards(tmp_path: Path, other: Path) -> None:
    single = Path(shutil.copytree(START, tmp_path / "single", ignore=shutil.ignore_patterns("*.safetensors*")))
    save_file(tensors_of(START), single / "model.safetensors", metadata={"format": "pt"})
    merge([single, other], tmp_path / "out")
    torch.testing.assert_close(tensors_of(tmp_path / "out")[NAME], tensors_of(START)[NAME] + 0.5)


def test_another_model_is_recognized_by_its_config_even_without_weights(tmp_path: Path) -> None:
    folder = tmp_path / "llama"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(UniWorldError, match="model_type 'llama'"):
        merge(["tiny", folder], tmp_path / "out")
    assert not (tmp_path / "out").exists()
