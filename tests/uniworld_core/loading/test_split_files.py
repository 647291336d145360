"""Checkpoints that were split for ComfyUI: the VLM with its projectors, and FLUX's transformer in a file of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from quantized_forms import copy_model, nf4, rewrite
from safetensors.torch import load_file, save_file
from torch import nn
from uniworld.uniworld_core import UniWorld
from uniworld.uniworld_core.backbones.flux_bfl import bfl_tensors
from uniworld.uniworld_core.errors import UniWorldError
from uniworld.uniworld_core.families.uniworld_v1.config import UniWorldConfig
from uniworld.uniworld_core.loading.layers import CastLinear, NF4Linear, ScaledLinear
from uniworld.uniworld_core.loading.shipped import ShippedModel, shipped_model

FLOAT32 = torch.float32
PREFIX = "denoise_tower.denoiser."
FILE = "flux.safetensors"


def split(to: Path, kind: str) -> ShippedModel:
    """A copy of tiny in two parts, its transformer in `FILE`."""
    folders = copy_model("tiny", to)
    denoiser: dict[str, torch.Tensor] = {}
    rest: dict[str, torch.Tensor] = {}
    for file in sorted(folders.checkpoint.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            part = denoiser if name.startswith(PREFIX) else rest
            part[name.removeprefix(PREFIX)] = tensor.to(torch.bfloat16)
        file.unlink()
    (folders.checkpoint / "model.safetensors.index.json").unlink()
    save_file(rest, folders.checkpoint / "model.safetensors")
    config = json.loads((folders.checkpoint / "config.json").read_text())["denoise_tower"]["denoiser_config"]
    if kind != "diffusers":
        table = bfl_tensors(denoiser, config["num_layers"], config["num_single_layers"])
        prefix = "model.diffusion_model." if kind == "prefixed" else ""
        denoiser = {prefix + name: joined.join(denoiser[p] for p in joined.parts) for name, joined in table.items()}
    if kind == "fp8":
        denoiser = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in denoiser.items()}
    if kind == "scaled fp8":
        scaled: dict[str, torch.Tensor] = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
        for name, tensor in denoiser.items():
            if tensor.ndim == 2:
                scale = tensor.float().abs().max() / 448
                scaled[name] = (tensor.float() / scale).to(torch.float8_e4m3fn)
                scaled[f"{name.removesuffix('.weight')}.scale_weight"] = scale
            else:
                scaled[name] = tensor
        denoiser = scaled
    save_file({name: tensor.contiguous() for name, tensor in denoiser.items()}, folders.checkpoint / FILE)
    return folders


def velocity_error(folders: ShippedModel) -> tuple[float, UniWorld]:
    """How far a run of the split model's DiT is from tiny's, of its spread."""

    def latent(model: UniWorld) -> torch.Tensor:
        condition = reader.encode("A blue square.", use_t5=False)
        return model.sample(condition, 32, 48, steps=2)

    reader = UniWorld.from_pretrained("tiny", dtype=FLOAT32)
    model = UniWorld.from_pretrained(folders.checkpoint, folders.flux, folders.siglip, dtype=FLOAT32)
    expected = latent(reader)
    return float((latent(model) - expected).norm() / expected.norm()), model


@pytest.mark.parametrize(
    ("kind", "bound", "layer"),
    [
        ("diffusers", 0.02, nn.Linear),
        ("bfl", 0.02, nn.Linear),
        ("prefixed", 0.02, nn.Linear),
        ("fp8", 0.3, CastLinear),
        ("scaled fp8", 0.3, ScaledLinear),
    ],
)
def test_the_transformer_may_be_in_a_file_of_its_own(
    kind: str, bound: float, layer: type[nn.Linear], tmp_path: Path
) -> None:
    error, model = velocity_error(split(tmp_path, kind))
    assert 0 < error < bound
    block = model.dit.transformer.transformer_blocks[0]
    assert type(block.attn.to_k) is type(block.ff.net[2]) is layer
    assert type(model.dit.transformer.norm_out.linear) is layer


def test_bfl_names_give_the_tensors_of_diffusers_names(tmp_path: Path) -> None:
    def state(kind: str) -> dict[str, torch.Tensor]:
        folders = split(tmp_path / kind, kind)
        return UniWorld.from_pretrained(folders.checkpoint, dtype=FLOAT32).dit.state_dict()

    expected = state("diffusers")
    found = state("bfl")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_vlm_may_be_nf4_beside_an_fp8_transformer(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="the extra nf4 is not installed")
    folders = split(tmp_path, "fp8")
    transformer = (folders.checkpoint / FILE).read_bytes()
    (folders.checkpoint / FILE).unlink()
    kept = ("lm_head.weight", "embed_tokens.weight")
    rewrite(folders.checkpoint, nf4, lambda name, tensor: tensor.ndim == 2 and not name.endswith(kept))
    (folders.checkpoint / FILE).write_bytes(transformer)
    model = UniWorld.from_pretrained(folders.checkpoint, folders.flux, folders.siglip, dtype=FLOAT32)
    condition = model.encode("A blue square.", use_t5=False)
    assert torch.isfinite(model.decode(model.sample(condition, 32, 32, steps=1))).all()
    assert any(isinstance(layer, NF4Linear) for layer in model.vlm.modules())
    assert any(isinstance(layer, CastLinear) for layer in model.dit.modules())


def test_a_configuration_without_the_denoiser_is_flux_dev() -> None:
    tiny = shipped_model("tiny")
    assert tiny is not None
    raw = json.loads((tiny.checkpoint / "config.json").read_text())
    del raw["denoise_tower"]["denoiser_config"]  # as in the configuration of the split NF4 encoder
    config = UniWorldConfig.from_dict(raw)
    assert config.denoiser_width == 3072
    assert (config.denoiser["num_layers"], config.denoiser["num_single_layers"]) == (19, 38)


def test_bad_split_files_are_refused(tmp_path: Path) -> None:
    folders = split(tmp_path, "bfl")
    file = folders.checkpoint / FILE
    # Copies: the file is overwritten, and safetensors maps it into memory.
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}

    def refused(changed: dict[str, torch.Tensor]) -> str:
        save_file(changed, file)
        with pytest.raises(UniWorldError) as error:
            UniWorld.from_pretrained(folders.checkpoint)
        return str(error.value)

    name = "double_blocks.0.img_attn.qkv.weight"
    assert f"lacks {name}" in refused({key: value for key, value in tensors.items() if key != name})
    assert "it belongs to another model" in refused(tensors | {name: tensors[name][:-1].contiguous()})
    assert "does not hold FLUX's transformer" in refused({"a": torch.zeros(1)})
    save_file(tensors, file)
    save_file(tensors, folders.checkpoint / "other.safetensors")
    with pytest.raises(UniWorldError, match=r"several other files: flux\.safetensors, other\.safetensors"):
        UniWorld.from_pretrained(folders.checkpoint)


@pytest.mark.parametrize(("kind", "to", "storage"), [
    ("bfl", "uniworld", "bfloat16"),
    ("scaled fp8", "uniworld", "int8"),
    ("prefixed", "diffusers", "bfloat16"),
    ("diffusers", "comfy", "bfloat16"),
])  # fmt: skip
def test_split_checkpoints_are_converted_whole(kind: str, to: str, storage: str, tmp_path: Path) -> None:
    from uniworld.training.publish.conversion import Conversion, convert_checkpoint
    from uniworld.uniworld_core.loading.folders import ModelFolders

    folders, tiny = split(tmp_path / "split", kind), shipped_model("tiny")
    convert_checkpoint(ModelFolders(folders.checkpoint, folders.flux), tmp_path / "made", Conversion(to, storage))
    if to == "uniworld":
        made = ShippedModel(tmp_path / "made", folders.flux, folders.siglip)
        assert velocity_error(made)[0] == pytest.approx(velocity_error(folders)[0], rel=0.1)
        return
    # What the same conversion makes of the checkpoint in one piece.
    convert_checkpoint(ModelFolders(tiny.checkpoint, tiny.flux), tmp_path / "whole", Conversion(to, storage))
    files = sorted(path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*.safetensors"))
    assert len(files) >= 3
    for file in files:
        made, wanted = load_file(tmp_path / "made" / file), load_file(tmp_path / "whole" / file)
        assert made.keys() == wanted.keys()
        assert all(torch.equal(made[name], wanted[name]) for name in wanted), file
