"""Conversion of LoRAs, and reports on them: diffusers applies a converted file as trained."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from uniworld.uniworld_core import Condition, UniWorld
from uniworld.uniworld_core.errors import UniWorldError
from uniworld.uniworld_core.lora.conversion import convert_lora
from uniworld.uniworld_core.lora.files import read_lora
from uniworld.uniworld_core.lora.matching import layers_of
from uniworld.uniworld_core.lora.painter import LoraPainter, open_lora
from uniworld.uniworld_core.lora.report import report_on
from uniworld.uniworld_core.sampling.sampler import make_noise

ITEM, RANK = (16, 6, 8), 4
LAYERS = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.to_add_out")


@pytest.fixture(scope="module")
def condition(model: UniWorld) -> Condition:
    return model.encode("A red circle.", use_t5=False)


@pytest.fixture(scope="module")
def velocity(model: UniWorld, condition: Condition) -> Callable[[Any], torch.Tensor]:
    noise = make_noise([1], ITEM)

    def of(painter: Any) -> torch.Tensor:
        with torch.inference_mode():
            return painter.velocity_for(condition, 3.5, noise.shape)(noise, 0.7)

    return of


def write_peft(
    network: Any, folder: Path, alpha: float | None = 2.0 * RANK, dtype: torch.dtype = torch.float32
) -> Path:
    """A folder as Edit-R1 publishes it: PEFT's names and configuration, and no alpha among the tensors."""
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for name, layer in network.named_modules():
        if name.endswith(LAYERS):
            down = torch.randn(RANK, layer.in_features, generator=generator) / layer.in_features**0.5
            up = torch.randn(layer.out_features, RANK, generator=generator) / 4
            tensors |= {f"base_model.model.{name}.lora_{k}.weight": t.to(dtype) for k, t in (("A", down), ("B", up))}
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    if alpha is not None:
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": alpha}))
    return folder


@pytest.fixture(scope="module")
def published(model: UniWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_peft(model.dit.transformer, tmp_path_factory.mktemp("published"))


def test_diffusers_applies_a_converted_file_as_trained(
    model: UniWorld, published: Path, velocity: Any, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    network = model.dit.transformer
    as_trained = velocity(LoraPainter(model.dit, open_lora(published, layers_of(network))))
    convert_lora(published, tmp_path / "a.safetensors")
    theirs = copy.deepcopy(model.dit)
    theirs.transformer.load_lora_adapter(load_file(tmp_path / "a.safetensors"), prefix="transformer")
    torch.testing.assert_close(velocity(theirs), as_trained, rtol=1e-5, atol=1e-5)
    # Only renamed, as the published script does, it is applied at half the strength.
    renamed = {
        name.replace("base_model.model", "transformer"): tensor
        for name, tensor in load_file(published / "adapter_model.safetensors").items()
    }
    half = copy.deepcopy(model.dit)
    half.transformer.load_lora_adapter(renamed, prefix="transformer")
    ours = velocity(LoraPainter(model.dit, open_lora(published, layers_of(network)), 0.5))
    torch.testing.assert_close(velocity(half), ours, rtol=1e-5, atol=1e-5)


def test_diffusers_applies_a_converted_lora_of_qwen_image_as_trained(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    diffusers = pytest.importorskip("diffusers")
    if not hasattr(diffusers, "QwenImageTransformer2DModel"):
        pytest.skip("diffusers has no QwenImageTransformer2DModel")
    network = diffusers.QwenImageTransformer2DModel(
        num_layers=1, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=16, axes_dims_rope=(2, 2, 4)
    )
    write_peft(network, tmp_path / "source")
    lora = open_lora(tmp_path / "source", layers_of(network))
    convert_lora(tmp_path / "source", tmp_path / "a.safetensors", network=layers_of(network))
    network.load_lora_adapter(load_file(tmp_path / "a.safetensors"), prefix="transformer")
    for name, product in lora.products.items():
        layer: Any = network.get_submodule(name)
        x = torch.eye(layer.in_features)
        ours = layer.base_layer(x) + product.scale * x @ product.down.T @ product.up.T
        torch.testing.assert_close(layer(x), ours, rtol=1e-5, atol=1e-5)


def test_a_converted_file_has_diffusers_names_and_no_alpha(model: UniWorld, published: Path, tmp_path: Path) -> None:
    target = tmp_path / "a.safetensors"
    convert_lora(published, target, network=layers_of(model.dit.transformer))
    source, written = load_file(published / "adapter_model.safetensors"), load_file(target)
    assert {name.replace("base_model.model.", "transformer.") for name in source} == set(written)
    for name, tensor in source.items():
        factor = 2 if "lora_B" in name else 1
        assert torch.equal(written[name.replace("base_model.model.", "transformer.")], tensor * factor)
    with safe_open(target, "pt") as opened:
        assert opened.metadata() == {"format": "pt", "uniworld_scale": "in the weights"}
    again = open_lora(target, layers_of(model.dit.transformer))
    assert {product.scale for product in again.products.values()} == {1.0}


@pytest.mark.parametrize(
    ("alpha", "storage", "expected"),
    [(8.0, None, torch.bfloat16), (5.0, None, torch.float32), (5.0, "float16", torch.float16)],
)
def test_the_dtype_is_kept_where_the_scale_is_exact(
    model: UniWorld, tmp_path: Path, alpha: float, storage: str | None, expected: torch.dtype
) -> None:
    source = write_peft(model.dit.transformer, tmp_path / "source", alpha=None, dtype=torch.bfloat16)
    convert_lora(source, tmp_path / "a.safetensors", alpha=alpha, storage=storage)
    assert {tensor.dtype for tensor in load_file(tmp_path / "a.safetensors").values()} == {expected}


def test_names_of_kohya_are_converted_with_the_model(model: UniWorld, tmp_path: Path, velocity: Any) -> None:
    network = model.dit.transformer
    layer = network.transformer_blocks[0].attn.to_q
    stem = "lora_unet_double_blocks_0_img_attn_qkv"
    down, up = torch.ones(2, layer.in_features), torch.arange(6.0 * layer.out_features).reshape(-1, 2) / 300
    tensors = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": torch.tensor(1.0)}
    save_file(tensors, tmp_path / "kohya.safetensors")
    with pytest.raises(ValueError, match=r"such as lora_unet_double.*: name the base model's folder with --model"):
        convert_lora(tmp_path / "kohya.safetensors", tmp_path / "a.safetensors")
    convert_lora(tmp_path / "kohya.safetensors", tmp_path / "a.safetensors", network=layers_of(network))
    before, after = (open_lora(tmp_path / f"{name}.safetensors", layers_of(network)) for name in ("kohya", "a"))
    assert len(after.file.modules) == 3
    torch.testing.assert_close(velocity(LoraPainter(model.dit, after)), velocity(LoraPainter(model.dit, before)))


@pytest.mark.parametrize("prefix", ["text_encoder.text_model.", "lora_te1_text_model_", "base_model.model.te1_"])
def test_modules_of_text_encoders_are_refused_or_left_out(
    prefix: str, model: UniWorld, published: Path, tmp_path: Path
) -> None:
    file = tmp_path / "both.safetensors"
    denoiser = load_file(published / "adapter_model.safetensors")
    save_file(denoiser | {f"{prefix}q.lora_{k}.weight": torch.ones(4, 4) for k in "AB"}, file)
    message = (
        rf"also changes text encoders, .*\(1 of {len(denoiser) // 2 + 1} modules: {prefix}q\): .*--skip-text-encoders"
    )
    with pytest.raises(UniWorldError, match=message):
        open_lora(file, layers_of(model.dit.transformer))
    with pytest.raises(UniWorldError, match=message):
        convert_lora(file, tmp_path / "converted.safetensors")
    assert not (tmp_path / "converted.safetensors").exists()
    convert_lora(file, tmp_path / "converted.safetensors", skip_text_encoders=True)
    assert len(load_file(tmp_path / "converted.safetensors")) == len(denoiser)
    save_file({f"{prefix}q.lora_{k}.weight": torch.ones(4, 4) for k in "AB"}, file)
    with pytest.raises(UniWorldError, match="changes only text encoders"):
        convert_lora(file, tmp_path / "other.safetensors", skip_text_encoders=True)


def test_nothing_is_written_when_it_fails(published: Path, tmp_path: Path) -> None:
    target = tmp_path / "a.safetensors"
    for to, options, message in (
        (tmp_path / "a.bin", {}, "does not end in .safetensors"),
        (tmp_path / "none" / "a.safetensors", {}, "does not exist: create it first"),
        (target, {"alpha": float("inf")}, "alpha is inf"),
        (target, {"alpha": 1e9, "storage": "float16"}, "not finite as torch.float16"),
    ):
        with pytest.raises(ValueError, match=message):
            convert_lora(published, to, **options)
    assert list(tmp_path.iterdir()) == []
    twice = {f"{prefix}a.b.lora_{kind}.weight": torch.ones(2, 2) for prefix in ("", "transformer.") for kind in "AB"}
    save_file(twice, tmp_path / "twice.safetensors")
    with pytest.raises(ValueError, match=r"adapts layers twice, under two names: a\.b\."):
        convert_lora(tmp_path / "twice.safetensors", target)
    assert not target.exists()
    target.write_bytes(b"mine")
    with pytest.raises(ValueError, match="exists already"):
        convert_lora(published, target)
    assert target.read_bytes() == b"mine"


# --- reports ----------------------------------------------------------------------------------------------------------


def test_the_report_on_a_published_folder_names_the_trap(model: UniWorld, published: Path, tmp_path: Path) -> None:
    report = report_on(read_lora(published))
    assert (report.naming, report.family) == ("PEFT (base_model.model.)", "FLUX")
    count = len(read_lora(published).modules)
    assert (report.ranks, report.alphas, report.scales) == ({4: count}, {8.0: count}, {2.0: count})
    assert report.alpha_sources[0].endswith("adapter_config.json")
    assert report.comfyui.startswith("loads nothing")
    assert report.diffusers.startswith("loads nothing")
    renamed = {
        name.replace("base_model.model", "transformer"): tensor
        for name, tensor in load_file(published / "adapter_model.safetensors").items()
    }
    save_file(renamed, tmp_path / "a.safetensors")
    unknown = report_on(read_lora(tmp_path / "a.safetensors"))
    assert not unknown.alpha_known
    given = report_on(read_lora(tmp_path / "a.safetensors"), alpha=8.0)
    assert given.comfyui == given.diffusers == "applies 0.5 of that: set strength 2 there, or convert it"
    stored = {"lora_adapter_metadata": json.dumps({"transformer.r": 4, "transformer.lora_alpha": 8})}
    save_file(renamed, tmp_path / "b.safetensors", stored)
    in_header = report_on(read_lora(tmp_path / "b.safetensors"))
    assert (in_header.diffusers, in_header.comfyui[:11]) == ("applies the same", "applies 0.5")


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("transformer.single_transformer_blocks.3.proj_mlp", "FLUX"),
        ("lora_unet_single_blocks_0_linear1", "FLUX"),
        ("lora_unet_double_blocks_0_img_attn_qkv", "FLUX"),
        ("transformer.transformer_blocks.59.attn.to_q", "Qwen-Image"),
        ("transformer_blocks.1.img_mlp.net.2", "Qwen-Image"),
        ("transformer.transformer_blocks.3.attn.to_q", "FLUX or Qwen-Image"),
        ("transformer.transformer_blocks.3.ff.net.2", "FLUX"),
        ("lora_unet_down_blocks_1_attn", "unknown"),
    ],
)
def test_the_family_is_guessed_from_names(name: str, family: str, tmp_path: Path) -> None:
    tensors = {f"{name}.lora_A.weight": torch.ones(1, 2), f"{name}.lora_B.weight": torch.ones(2, 1)}
    save_file(tensors, tmp_path / "a.safetensors")
    assert report_on(read_lora(tmp_path / "a.safetensors")).family == family
