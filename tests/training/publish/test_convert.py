"""Conversion of Qwen2.5-VL and FLUX.1-dev folders into a starting checkpoint in the published format."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from uniworld.training.publish import model_folder
from uniworld.training.publish.convert import BaseModels, convert
from uniworld.uniworld_core import UniWorld
from uniworld.uniworld_core.loading.shipped import shipped_model
from uniworld.uniworld_core.loading.weights import Shards

TINY = shipped_model("tiny")
SIGLIP_WIDTH = Shards(TINY.checkpoint).shapes["denoise_tower.siglip_projector.0.weight"][1]
QWEN_PARTS = ("visual.", "model.", "lm_head.")
NEWER = {"visual.": "model.visual.", "model.": "model.language_model.", "lm_head.": "lm_head."}


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a model folder."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def edit_json(file: Path, **changes: Any) -> None:
    raw = json.loads(file.read_text(encoding="utf-8")) | changes
    file.write_text(json.dumps({key: value for key, value in raw.items() if value is not ...}), encoding="utf-8")


def write_qwen(folder: Path, newer: bool) -> Path:
    """Write tiny's VLM as a Qwen2.5-VL folder, in the layout of transformers 4.52 and later if `newer`."""
    folder.mkdir()
    for file in TINY.checkpoint.iterdir():
        if file.suffix in (".json", ".txt") and not file.name.endswith(".index.json"):
            shutil.copyfile(file, folder / file.name)
    weights = {name: tensor for name, tensor in tensors_of(TINY.checkpoint).items() if name.startswith(QWEN_PARTS)}
    if newer:
        prefix = {name: next(part for part in QWEN_PARTS if name.startswith(part)) for name in weights}
        weights = {NEWER[prefix[name]] + name[len(prefix[name]) :]: tensor for name, tensor in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    edit_json(folder / "config.json", model_type="qwen2_5_vl", denoise_tower=..., architectures=...)
    if newer:
        nest(folder / "config.json")
    return folder


def nest(file: Path) -> None:
    """Rewrite a flat Qwen configuration in the nested form that transformers 5 saves."""
    raw = json.loads(file.read_text(encoding="utf-8"))
    top = {"model_type", "vision_config", *(key for key in raw if key.endswith("_token_id") and key[1:3] != "os")}
    text = {key: raw[key] for key in raw if key not in top} | {"model_type": "qwen2_5_vl_text"}
    rope = text.pop("rope_scaling") | {"rope_theta": text.pop("rope_theta")}
    nested = {key: raw[key] for key in raw if key in top} | {"text_config": text | {"rope_parameters": rope}}
    file.write_text(json.dumps(nested), encoding="utf-8")


@pytest.fixture(scope="module")
def flux_dit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A FLUX DiT of tiny's sizes in diffusers' layout, with random weights: other ones than those in tiny's checkpoint."""
    config = json.loads((TINY.checkpoint / "config.json").read_text(encoding="utf-8"))["denoise_tower"][
        "denoiser_config"
    ]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = FluxTransformer2DModel.from_config(config)
    folder = tmp_path_factory.mktemp("flux") / "transformer"
    transformer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")  # with the published version of diffusers
    return folder


@pytest.fixture
def models(tmp_path: Path, flux_dit: Path) -> BaseModels:
    """Tiny's base models, with a DiT in the FLUX folder."""
    flux = Path(shutil.copytree(TINY.flux, tmp_path / "flux"))
    shutil.copytree(flux_dit, flux / "transformer")
    return BaseModels(write_qwen(tmp_path / "qwen", newer=False), flux, siglip=TINY.siglip)


@pytest.mark.parametrize("newer", [False, True], ids=["as Qwen published it", "as transformers 5 saves it"])
def test_a_converted_checkpoint_opens_with_the_tensors_of_both_base_models(
    models: BaseModels, tmp_path: Path, newer: bool
) -> None:
    qwen = write_qwen(tmp_path / "another", newer)
    convert(BaseModels(qwen, models.flux, siglip=TINY.siglip), tmp_path / "start")
    model = UniWorld.from_pretrained(tmp_path / "start", TINY.flux, TINY.siglip, torch.float32)
    made, tiny = tensors_of(tmp_path / "start"), tensors_of(TINY.checkpoint)
    assert set(made) == set(tiny)
    assert all(torch.equal(made[name], tiny[name]) for name in tiny if name.startswith(QWEN_PARTS))
    flux = tensors_of(models.flux / "transformer")
    assert all(torch.equal(made[f"denoise_tower.denoiser.{name}"], tensor) for name, tensor in flux.items())
    original = UniWorld.from_pretrained("tiny", dtype=torch.float32)
    assert model.understand("What is this?", max_new_tokens=5) == original.understand("What is this?", max_new_tokens=5)


def test_its_configuration_is_that_of_the_published_checkpoint(models: BaseModels, tmp_path: Path) -> None:
    convert(models, tmp_path / "start")
    made = json.loads((tmp_path / "start" / "config.json").read_text(encoding="utf-8"))
    published = json.loads((TINY.checkpoint / "config.json").read_text(encoding="utf-8"))
    unimportant = {"transformers_version", "use_cache"}
    assert {key: value for key, value in published.items() if key not in unimportant} == made


def test_the_seed_determines_the_projectors_and_nothing_else(models: BaseModels, tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    for name, seed in (("a", 3), ("again", 3), ("b", 4)):
        convert(models, tmp_path / name, seed)
    assert torch.equal(torch.random.get_rng_state(), before)
    a, again, b = (tensors_of(tmp_path / name) for name in ("a", "again", "b"))
    assert all(torch.equal(a[name], again[name]) for name in a)
    assert {name for name in a if not torch.equal(a[name], b[name])} == {name for name in a if "projector." in name}


def test_the_siglip_projector_may_come_from_redux(models: BaseModels, tmp_path: Path) -> None:
    tiny = tensors_of(TINY.checkpoint)
    redux = {
        f"{ours}.{kind}": tiny[f"denoise_tower.siglip_projector.{theirs}.{kind}"]
        for ours, theirs in (("redux_up", 0), ("redux_down", 2))
        for kind in ("weight", "bias")
    }
    save_file(redux, tmp_path / "redux.safetensors")
    convert(BaseModels(models.qwen, models.flux, redux=tmp_path / "redux.safetensors"), tmp_path / "start")
    made = tensors_of(tmp_path / "start")
    assert all(torch.equal(made[name], tiny[name]) for name in tiny if "siglip_projector" in name)


def test_a_routing_head_is_there_only_if_given(models: BaseModels, tmp_path: Path) -> None:
    convert(models, tmp_path / "without")
    convert(
        BaseModels(models.qwen, models.flux, siglip=TINY.siglip, task_head=TINY.checkpoint / "task_head_final.pt"),
        tmp_path / "with",
    )
    for name, there in (("without", False), ("with", True)):
        model = UniWorld.from_pretrained(tmp_path / name, dtype=torch.float32)
        assert (model.understanding.task_head is not None) == there


def test_shards_are_written_one_by_one_and_small_ones_on_request(
    models: BaseModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []

    def save(tensors: dict[str, torch.Tensor], file: Path, metadata: dict[str, str]) -> None:
        written.append(sum(tensor.nbytes for tensor in tensors.values()))
        save_file(tensors, file, metadata)

    monkeypatch.setattr(model_folder, "save_file", save)
    convert(models, tmp_path / "start", dtype=torch.bfloat16, shard_bytes=400_000)
    assert len(written) > 2
    assert max(written) <= 400_000
    shards = Shards(tmp_path / "start")
    assert set(shards.dtypes.values()) == {"BF16"}
    index = json.loads((tmp_path / "start" / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert index["metadata"]["total_size"] == sum(written)


def test_a_small_qwen_with_tied_embeddings_gets_its_own_head(models: BaseModels, tmp_path: Path) -> None:
    weights = load_file(models.qwen / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, models.qwen / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"has no lm_head\.weight"):
        convert(models, tmp_path / "start")
    edit_json(models.qwen / "config.json", tie_word_embeddings=True)
    convert(models, tmp_path / "start")
    made = tensors_of(tmp_path / "start")
    assert torch.equal(made["lm_head.weight"], made["model.embed_tokens.weight"])


def drop_tensor(models: BaseModels) -> None:
    file = models.flux / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if name != "x_embedder.bias"}, file)


def add_tensor(models: BaseModels) -> None:
    file = models.qwen / "model.safetensors"
    save_file(load_file(file) | {"talker.weight": torch.zeros(1)}, file)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda models: edit_json(models.qwen / "config.json", model_type="qwen3_vl"), "give a Qwen2.5-VL folder"),
        (lambda models: edit_json(models.qwen / "config.json", num_hidden_layers=4), "has no model.layers.3"),
        (lambda models: edit_json(models.qwen / "config.json", intermediate_size=97), "expected [97, 64]"),
        (lambda models: edit_json(models.qwen / "config.json", vision_start_token_id=...), "no 'vision_start_token_id'"),
        (lambda models: (models.qwen / "model.safetensors").unlink(), "holds no weights"),
        (lambda models: (models.qwen / "merges.txt").unlink() or (models.qwen / "tokenizer.json").unlink(), "tokenizer"),
        (lambda models: (models.flux / "transformer" / "config.json").unlink(), "does not exist"),
        (lambda models: edit_json(models.flux / "transformer" / "config.json", _class_name="SD3"), "contains a SD3"),
        (lambda models: edit_json(models.flux / "transformer" / "config.json", in_channels=384), "such as Fill"),
        (lambda models: edit_json(models.flux / "transformer" / "config.json", num_layers=1), "does not belong"),
        (drop_tensor, "has no denoise_tower.denoiser.x_embedder.bias"),
        (add_tensor, "talker.weight, which does not belong to the model"),
    ],
)  # fmt: skip
def test_mismatched_base_models_are_rejected_and_leave_nothing(
    models: BaseModels, tmp_path: Path, damage: Any, words: str
) -> None:
    damage(models)
    with pytest.raises(ValueError, match=r".") as caught:
        convert(models, tmp_path / "start")
    assert words in str(caught.value)
    assert not list(tmp_path.glob("start*"))


def test_a_file_other_than_redux_is_rejected(models: BaseModels, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="redux_up and redux_down"):
        convert(BaseModels(models.qwen, models.flux, redux=models.qwen / "model.safetensors"), tmp_path / "start")


def test_an_existing_folder_is_never_overwritten(models: BaseModels, tmp_path: Path) -> None:
    (tmp_path / "start").mkdir()
    with pytest.raises(ValueError, match="already exists"):
        convert(models, tmp_path / "start")
    assert not list((tmp_path / "start").iterdir())


def test_a_full_disk_leaves_nothing_half_written(
    models: BaseModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(tensors: dict[str, torch.Tensor], file: Path, metadata: dict[str, str]) -> None:
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device", str(file))

    monkeypatch.setattr(model_folder, "save_file", save)
    with pytest.raises(ValueError, match=r"No space left on device.*Free disk space"):
        convert(models, tmp_path / "start")
    assert not list(tmp_path.glob("start*"))


def test_the_remains_of_a_killed_conversion_are_removed(models: BaseModels, tmp_path: Path) -> None:
    (tmp_path / ".start.uniworld-partial").mkdir()
    (tmp_path / ".start.uniworld-partial" / "model-00009-of-00009.safetensors").write_bytes(b"half")
    convert(models, tmp_path / "start")
    assert not (tmp_path / ".start.uniworld-partial").exists()
    UniWorld.from_pretrained(tmp_path / "start", dtype=torch.float32)


WRONG = (5, "x", [1], {"a": 1}, 10**18, True)


@pytest.mark.parametrize(
    ("file", "key"),
    [
        *(
            ("qwen/config.json", key)
            for key in ("vision_config", "rope_scaling", "num_hidden_layers", "image_token_id")
        ),
        *(("qwen/config.json", key) for key in ("text_config", "rope_parameters")),
        *(
            ("flux/transformer/config.json", key)
            for key in ("num_layers", "axes_dims_rope", "in_channels", "_class_name")
        ),
    ],
)
def test_invalid_settings_of_base_models_are_user_errors(
    models: BaseModels, tmp_path: Path, file: str, key: str
) -> None:
    path = tmp_path / file
    raw = json.loads(path.read_text())
    for value in WRONG:
        path.write_text(json.dumps(raw | {key: value}))
        message = ""
        try:
            convert(models, tmp_path / "start")
            shutil.rmtree(tmp_path / "start")
        except ValueError as error:  # an error of another type fails the test
            message = str(error)
        assert len(message) < 1500
        assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("value", [5, {"hidden_size": "x"}, {"hidden_size": 10**18}])
def test_a_siglip_folder_without_a_valid_width_is_named(models: BaseModels, tmp_path: Path, value: object) -> None:
    folder = Path(shutil.copytree(TINY.siglip, tmp_path / "siglip"))
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"vision_config": value}))
    with pytest.raises(ValueError, match=r"siglip.config\.json"):
        convert(replace(models, siglip=folder), tmp_path / "start")
