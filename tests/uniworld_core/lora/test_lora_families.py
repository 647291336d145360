"""LoRAs on the painters of every family: outputs equal those of PEFT's own model, in the names that its authors publish."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from uniworld.uniworld_core import UniWorld
from uniworld.uniworld_core.lora.conversion import convert_lora

SIZE = {"height": 32, "width": 32, "steps": 1}
# The layers that Edit-R1 trains.
TARGETS = ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.to_add_out"]


def check_family(folder: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = UniWorld.from_pretrained(folder, dtype=torch.float32, offload="none")
    references = model.reference([Image.new("RGB", (32, 32), "red")], use_siglip=False)
    condition = model.encode("Make it blue.", refs=references)
    plain = model.sample(condition, **SIZE)

    config = peft.LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, target_modules=TARGETS)
    own = model.dit.transformer
    model.dit.transformer = peft.get_peft_model(copy.deepcopy(own), config)
    model.dit.transformer.save_pretrained(tmp_path)
    theirs = model.sample(condition, **SIZE)
    model.dit.transformer = own

    torch.testing.assert_close(model.load_lora(tmp_path).sample(condition, **SIZE), theirs, rtol=1e-5, atol=1e-5)
    model.unload_loras()
    convert_lora(tmp_path, tmp_path / "converted.safetensors")
    model.load_lora(tmp_path / "converted.safetensors")
    torch.testing.assert_close(model.sample(condition, **SIZE), theirs, rtol=1e-5, atol=1e-5)
    assert torch.equal(model.unload_loras().sample(condition, **SIZE), plain)
    assert not torch.allclose(plain, theirs, atol=1e-3)


def test_kontext(kontext_folder: Path, tmp_path: Path) -> None:
    check_family(kontext_folder, tmp_path)


def test_qwen_image_edit(qwen_edit: Path, tmp_path: Path) -> None:
    check_family(qwen_edit, tmp_path)


def test_a_model_without_a_velocity_takes_none(unipic: Path, tmp_path: Path) -> None:
    model: Any = UniWorld.from_pretrained(unipic, dtype=torch.float32)
    with pytest.raises(ValueError, match="UniPic takes no LoRA"):
        model.load_lora(tmp_path)
