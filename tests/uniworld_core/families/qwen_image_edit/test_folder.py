"""Folders that are incomplete, damaged or hostile are refused with one error that names the file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from uniworld.uniworld_core import UniWorld
from uniworld.uniworld_core.backbones import qwen_image_classes
from uniworld.uniworld_core.errors import UniWorldError
from uniworld.uniworld_core.families.table import family_of

FLOW = "scheduler/scheduler_config.json"


def edit(file: Path, change: Any) -> None:
    values = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(change(values) or values), encoding="utf-8")


def test_both_releases_are_known(qwen_edit: Path, qwen_edit_copy: Path) -> None:
    index = qwen_edit_copy / "model_index.json"
    index.write_text(json.dumps({"_class_name": "QwenImageEditPipeline"}), encoding="utf-8")
    assert family_of(qwen_edit).name == "Qwen-Image-Edit-2509"
    assert family_of(qwen_edit_copy).name == "Qwen-Image-Edit"
    with pytest.raises(UniWorldError, match="Qwen-Image-Edit takes exactly 1"):
        UniWorld.from_pretrained(qwen_edit_copy).encode("green")


def test_the_facts_are_those_of_the_files(qwen_edit: Path) -> None:
    facts = UniWorld.from_pretrained(qwen_edit).parts.facts
    assert (facts.native_side, facts.latent_format.name, facts.latent_format.ndim) == (64, "qwen_image", 5)
    assert (facts.shift.base_tokens, facts.shift.max_tokens, facts.shift.terminal) == (256, 8192, 0.02)
    assert facts.size_for(480, 640, 1024).width == 1184


@pytest.mark.parametrize("part", ["scheduler", "text_encoder", "tokenizer", "processor", "transformer", "vae"])
def test_a_missing_part_is_named(qwen_edit_copy: Path, part: str) -> None:
    shutil.rmtree(qwen_edit_copy / part)
    with pytest.raises(UniWorldError, match=f"has no {part}/, which Qwen-Image-Edit-2509 needs"):
        UniWorld.from_pretrained(qwen_edit_copy)


@pytest.mark.parametrize(
    ("file", "values", "said"),
    [
        ("transformer/config.json", {"num_layers": 60}, "asks for 60 layers"),
        ("transformer/config.json", {"num_layers": 10**9}, "num_layers 1000000000"),
        ("transformer/config.json", {"attention_head_dim": 10**9}, "attention_head_dim"),
        ("transformer/config.json", {"axes_dims_rope": [3, 6, 7]}, "axes_dims_rope"),
        ("transformer/config.json", {"in_channels": 128}, "in_channels 128"),
        ("transformer/config.json", {"guidance_embeds": True}, "guidance_embeds True"),
        ("transformer/config.json", {"use_layer3d_rope": True}, "layered"),
        ("transformer/config.json", {"joint_attention_dim": 64}, "txt_in.weight"),
        (
            "transformer/config.json",
            {"_class_name": "FluxTransformer2DModel"},
            "expected 'QwenImageTransformer2DModel'",
        ),
        ("vae/config.json", {"_class_name": "AutoencoderKL"}, "expected 'AutoencoderKLQwenImage'"),
        ("vae/config.json", {"z_dim": 4}, "z_dim 4"),
        ("vae/config.json", {"dim_mult": [1] * 40}, "dim_mult"),
        ("vae/config.json", {"latents_std": [0.0] * 16}, "latents_std"),
        ("vae/config.json", {"sample_size": 100}, "sample_size 100; expected a multiple of 32"),
        ("vae/config.json", {"num_res_blocks": 2}, "missing"),
        (FLOW, {"_class_name": "DDIMScheduler"}, "expected 'FlowMatchEulerDiscreteScheduler'"),
        (FLOW, {"use_dynamic_shifting": False}, "use_dynamic_shifting False"),
        (FLOW, {"max_image_seq_len": 256}, "max_image_seq_len 256; the first must be less"),
        (FLOW, {"shift_terminal": 1.0}, "shift_terminal 1.0"),
        ("text_encoder/config.json", {"model_type": "qwen2_vl"}, "expected 'qwen2_5_vl'"),
        ("text_encoder/config.json", {"text_config": [1]}, "text_config"),
        ("processor/preprocessor_config.json", {"min_pixels": 50_000_000}, "min_pixels"),
        ("processor/preprocessor_config.json", {"patch_size": 16}, "patch_size 16"),
    ],
)
def test_a_damaged_configuration_is_refused(qwen_edit_copy: Path, file: str, values: dict[str, Any], said: str) -> None:
    edit(qwen_edit_copy / file, lambda old: old | values)
    with pytest.raises(UniWorldError) as caught:
        UniWorld.from_pretrained(qwen_edit_copy)
    assert said in str(caught.value)


def test_the_range_of_the_processor_must_not_be_empty(qwen_edit_copy: Path) -> None:
    edit(
        qwen_edit_copy / "processor" / "preprocessor_config.json",
        lambda old: old | {"min_pixels": 9999, "max_pixels": 8000},
    )
    with pytest.raises(UniWorldError, match="at least 9999 and at most 8000 pixels"):
        UniWorld.from_pretrained(qwen_edit_copy)


def test_parts_of_different_models_are_refused(qwen_edit_copy: Path) -> None:
    folder = qwen_edit_copy / "transformer"
    made = diffusers.QwenImageTransformer2DModel.from_config(
        {**json.loads((folder / "config.json").read_text(encoding="utf-8")), "joint_attention_dim": 48}
    )
    shutil.rmtree(folder)
    made.save_pretrained(folder)
    with pytest.raises(UniWorldError, match="is 32 wide, and its transformer takes 48"):
        UniWorld.from_pretrained(qwen_edit_copy)


class TestWeights:
    def test_a_shard_that_is_missing(self, qwen_edit_copy: Path) -> None:
        first, *others = sorted((qwen_edit_copy / "transformer").glob("*.safetensors"))
        assert others, "the transformer is in several files"
        first.unlink()
        with pytest.raises(UniWorldError, match=first.name):
            UniWorld.from_pretrained(qwen_edit_copy)

    def test_a_tensor_that_belongs_to_no_part(self, qwen_edit_copy: Path) -> None:
        file = qwen_edit_copy / "vae" / "diffusion_pytorch_model.safetensors"
        save_file(load_file(file) | {"extra": torch.zeros(1)}, file)
        with pytest.raises(UniWorldError, match="unknown: extra"):
            UniWorld.from_pretrained(qwen_edit_copy)


def test_an_old_diffusers_is_named_with_the_version_needed(qwen_edit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qwen_image_classes, "has_qwen_image", lambda: False)
    with pytest.raises(UniWorldError, match=r"Qwen-Image needs diffusers 0\.37 or later, and version"):
        UniWorld.from_pretrained(qwen_edit)
