"""The parts of a model: each file is opened a fixed number of times, and what is loaded is remembered or not, as asked."""

from __future__ import annotations

import gc
import shutil
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from uniworld.uniworld_core import UniWorld
from uniworld.uniworld_core.families.uniworld_v1.checkpoint import UniWorldParts
from uniworld.uniworld_core.loading import headers
from uniworld.uniworld_core.loading.meta import build
from uniworld.uniworld_core.loading.shipped import shipped_model
from uniworld.uniworld_core.loading.weights import Shards

TINY = shipped_model("tiny")
FLOAT32 = torch.float32


@pytest.fixture
def parts() -> UniWorldParts:
    return UniWorldParts(TINY.checkpoint, TINY.flux, TINY.siglip)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Counter[Path]:
    """How often each safetensors file has been opened."""
    counts: Counter[Path] = Counter()
    safe_open = headers.safe_open

    def count(file: str, **options: Any) -> Any:
        counts[Path(file)] += 1
        return safe_open(file, **options)

    monkeypatch.setattr(headers, "safe_open", count)
    return counts


def test_checking_opens_each_file_once_and_a_part_opens_each_of_its_own_once(
    parts: UniWorldParts, opened: Counter[Path]
) -> None:
    parts.check()
    used = {file for folder in (TINY.checkpoint, TINY.flux, TINY.siglip) for file in folder.rglob("*.safetensors")}
    assert opened == dict.fromkeys(used, 1)
    parts.check()
    assert opened == dict.fromkeys(used, 1)
    for name in ("vlm", "projectors", "dit", "vae", "clip", "t5", "siglip"):
        opened.clear()
        part = parts.network(name)
        parts.get(name, FLOAT32, "cpu")
        assert opened == dict.fromkeys({part.shards.files[tensor] for tensor in part.in_network}, 1)


def test_what_is_loaded_is_remembered_by_storage_and_shared_by_what_is_made_of_it(parts: UniWorldParts) -> None:
    vae = parts.get("vae", FLOAT32, "cpu")
    assert parts.get("vae", FLOAT32, "cpu") is vae
    half = parts.get("vae", torch.bfloat16, "cpu")
    assert (vae.dtype, half.dtype) == (FLOAT32, torch.bfloat16)
    assert parts.get("understanding", FLOAT32, "cpu").vlm is parts.get("vlm", FLOAT32, "cpu")
    assert parts["vae"].load(FLOAT32, "cpu") is not vae
    assert parts.loaded() == {"vae", "understanding", "vlm", "projectors", "task_head"}


def test_a_condition_of_inference_mode_leaves_later_ones_fit_for_training() -> None:
    model = UniWorld.from_pretrained("tiny", dtype=FLOAT32)
    with torch.inference_mode():
        first = model.encode("A red circle.", use_t5=False)
    condition = model.encode("A red circle.", use_t5=False)
    assert torch.equal(first.pooled, condition.pooled)
    (condition.pooled * torch.ones(1, requires_grad=True)).sum().backward()  # which keeps it for the gradient


def test_what_is_loaded_in_passing_is_forgotten_and_its_memory_free(parts: UniWorldParts) -> None:
    vae = parts.get("vae", FLOAT32, "cpu")
    with parts.temporary():
        siglip = weakref.ref(parts.get("siglip", FLOAT32, "cpu"))
        assert parts.get("vae", FLOAT32, "cpu") is vae
        assert siglip() is not None
    gc.collect()
    assert siglip() is None
    assert parts.loaded() == {"vae"}


def test_a_part_without_its_folder_says_which_folder_to_give() -> None:
    parts = UniWorldParts(TINY.checkpoint)
    parts.check()
    for name, folder in {"vae": "flux", "clip": "flux", "t5": "flux", "siglip": "siglip"}.items():
        with pytest.raises(ValueError, match=rf"No {folder} folder was given.*{folder}=FOLDER"):
            parts.get(name, FLOAT32, "cpu")


def test_a_file_that_changes_between_opening_and_loading_is_named(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(TINY.checkpoint, tmp_path / "copy"))
    model = UniWorld.from_pretrained(folder, dtype=FLOAT32)
    name = "denoise_tower.denoise_projector.0.weight"
    file = Shards(folder).files[name]
    tensors = load_file(file)
    for changed in ({name: tensors[name][:-1].contiguous()}, {name: tensors[name].half()}, {}):
        file.unlink()
        save_file({key: value for key, value in tensors.items() if key != name} | changed, file)
        with pytest.raises(
            ValueError, match=rf"{file.name} has changed since the model was opened.*open the model again"
        ):
            _ = model.projectors


def test_networks_are_built_without_initializing_their_weights() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(2, 2))
            self.register_buffer("table", torch.ones(3))
            nn.init.constant_(self.weight, float("nan"))
            self.seen = nn.init.normal_(self.weight) is self.weight
            self.table.copy_(torch.arange(3.0))

    built = build(Layer)
    assert built.weight.is_meta
    assert built.weight._version == 0  # every function that changes a tensor counts it up
    assert built.seen
    assert built.table.tolist() == [0, 1, 2]  # computed buffers are real
