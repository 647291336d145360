"""ComfyUI's own nodes on UniWorld's parts, in a real ComfyUI: `UNIWORLD_COMFY=FOLDER` names it.

Its Python is `UNIWORLD_COMFY_PYTHON`, or that of a virtual environment in or beside the folder, or this one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FOLDER = os.environ.get("UNIWORLD_COMFY")
INSIDE = Path(__file__).with_name("inside.py")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER, reason="UNIWORLD_COMFY does not name a ComfyUI folder"),
    # One process computes the figures of all tests.
    pytest.mark.xdist_group("comfyui"),
]
Figures = Callable[[str], dict[str, Any]]


def _python(folder: Path) -> str:
    places = [folder / "venv", folder / ".venv", folder.parent / "venv"]
    found = [str(place / "bin" / "python") for place in places if (place / "bin" / "python").exists()]
    return os.environ.get("UNIWORLD_COMFY_PYTHON") or [*found, sys.executable][0]


@pytest.fixture(scope="module")
def figures() -> Figures:
    """The figures of a check of `inside.py`, all of which run in one ComfyUI."""
    assert FOLDER is not None
    folder = Path(FOLDER)
    line = [_python(folder), str(INSIDE), str(folder)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=1200, check=False)
    found = [json.loads(text[6:]) for text in done.stdout.splitlines() if text.startswith("CHECK ")]
    assert found, done.stderr[-3000:]
    by_name = {entry.pop("name"): entry for entry in found}

    def get(name: str) -> dict[str, Any]:
        assert name in by_name, done.stderr[-3000:]
        assert "error" not in by_name[name], by_name[name]["error"]
        return by_name[name]["figures"]

    return get


def test_outputs_are_made_when_a_node_uses_them(figures: Figures) -> None:
    assert figures("outputs_are_lazy") == {"made": False, "kinds": [True, True], "clone": "ModelPatcher"}


def test_nano_paints_the_same_picture_as_model(figures: Figures) -> None:
    found = figures("parity")
    assert found["size"] > 1
    assert found["latent"] < 1e-5
    assert found["bytes"] == 0


def test_nodes_of_comfyui_refuse_latents_of_unipic(figures: Figures) -> None:
    found = figures("latents_of_unipic")
    assert sorted(found["said"]) == found["readers"]
    for texts in found["said"].values():
        assert len(texts) == 1
        assert texts[0].startswith(
            "UniWorldError: The latent belongs to the family 'unipic', which this node cannot use"
        )
    assert found["kept"]


def test_a_unipic_has_neither_model_nor_vae_of_comfyui(figures: Figures) -> None:
    said = figures("native_parts_of_unipic")
    assert "and UniPic has another one: use UniWorld UniPic Sampler" in said["MODEL"]
    assert "and UniPic has another one: use UniWorld VAE Decode" in said["VAE"]


def test_the_vae_encodes_as_ours(figures: Figures) -> None:
    assert figures("encode")["latent"] < 1e-5


def test_ksampler_paints_within_one_of_255(figures: Figures) -> None:
    assert figures("ksampler")["bytes"] <= 1


def test_full_width_is_the_same(figures: Figures) -> None:
    found = figures("full_width")
    assert found["size"] > 1
    assert found["latent"] < 1e-5


@pytest.mark.parametrize("kind", ["kohya", "peft"])
def test_a_lora_changes_the_picture_as_merged_weights_do_and_is_gone_when_removed(figures: Figures, kind: str) -> None:
    found = figures(f"lora_{kind}")
    assert found["changed"] > 0.1
    assert found["merged"] < 1e-4
    assert found["after"] == 0


def test_a_converted_lora_is_applied_as_our_node_applies_its_source(figures: Figures) -> None:
    found = figures("lora_of_edit_r1")
    assert found["effect"] > 0.1
    assert found["converted"] < 1e-4
    assert found["renamed"] < 1e-4
    assert found["after"] == 0


def test_other_samplers_and_schedules_paint_nearly_the_same(figures: Figures) -> None:
    found = figures("other_samplers")
    assert found["noise"] > 10
    for name, mean in found["mean"].items():
        assert 0 < mean < 0.5, name


def test_differential_diffusion_follows_a_soft_mask(figures: Figures) -> None:
    found = figures("differential_diffusion")
    assert found["effect"] > 0.1
    assert found["kept"] < 0.1 < found["painted"]


def test_converted_files_load_as_bfl_and_as_scaled_fp8(figures: Figures) -> None:
    found = figures("fp8")
    assert found["float32"] == {"dtype": "torch.float32", "error": 0, "left": 0, "kind": "Flux"}
    assert found["fp8"]["dtype"] == "torch.float8_e4m3fn"
    assert 0 < found["fp8"]["error"] < 0.08


def test_a_card_half_the_size_loads_the_dit_partially(figures: Figures) -> None:
    found = figures("partial")
    assert found["lowvram"]
    assert 0.3 < found["share"] < 0.6
    assert found["latent"] == 0
    assert found["again"] == 0


def test_quantized_layers_are_loaded_partially(figures: Figures) -> None:
    for found in figures("partial_quantized").values():
        assert found["lowvram"]
        assert 0.2 < found["share"] < 0.6
        assert (found["left"], found["latent"], found["again"]) == (0, 0, 0)


def test_compiled_blocks_paint_the_same(figures: Figures) -> None:
    found = figures("compiled")
    assert found["lowvram"]
    assert max(found["whole"], found["latent"], found["again"]) < 1e-4


def test_no_layer_is_left_that_cannot_be_loaded_partially(figures: Figures) -> None:
    assert figures("castable") == {"left": []}


@pytest.mark.parametrize("case", ["none", "one", "two", "turns"])
def test_text_encode_gives_the_tokens_of_our_own_vlm(figures: Figures, case: str) -> None:
    found = figures("text_encode")[case]
    assert found["size"] > 0.1
    assert found["apart"] < 1e-5
    assert found["pooled"] == 0
    assert found["guidance"] == 2.5


def test_text_encode_does_not_reorder_what_is_in_order(figures: Figures) -> None:
    found = figures("text_encode_of_ordered_versions")
    assert found["windows"], "the tokens of both pictures must be out of order inside"
    assert found["apart"] < 1e-5


def test_the_node_encodes_an_image_where_comfyui_would_cut_the_prompt(figures: Figures) -> None:
    found = figures("text_encode_node")
    assert found["apart"] < 1e-5
    assert found["turns"] == 1
    assert not found["own"]
    assert found["choices"] == [
        ["small_projector.safetensors", "small_routing.safetensors"],
        "small_projector.safetensors",
    ]


@pytest.mark.parametrize("case", ["none", "one", "two", "turns"])
def test_route_reads_the_same_state(figures: Figures, case: str) -> None:
    found = figures("route_clip")[case]
    assert found["paint"]
    assert found["apart"] < 1e-5


def test_siglip_encode_sees_our_pixels(figures: Figures) -> None:
    found = figures("siglip_encode")
    assert found["missing"] == []
    assert found["batch"] == 2
    assert found["apart"] < 1e-3
    assert found["image"] < 1e-3
    assert found["comfyui"] > 0.01, "ComfyUI's own node resizes differently"


def test_the_style_model_does_what_our_splice_does(figures: Figures) -> None:
    found = figures("style_model")
    assert found["effect"] > 0.1
    assert found["latent"] < 1e-4
    assert found["bytes"] <= 1


def test_noise_and_sigmas_make_a_batch_that_is_ours(figures: Figures) -> None:
    found = figures("noise_and_sigmas")
    assert found["sigmas"] == 0
    assert found["items"] > 0.1
    assert found["batch"] < 1e-5


def test_the_shipped_lora_is_in_the_list_and_changes_the_colors(figures: Figures) -> None:
    found = figures("shipped_lora")
    assert found["listed"]
    assert found["changed"] > 20


def test_a_gguf_file_paints_nearly_the_same_and_takes_a_lora(figures: Figures) -> None:
    found = figures("gguf")
    if "skipped" in found:
        pytest.skip(found["skipped"])
    assert 0 < found["error"] < 0.05
    assert found["lora"] > 0.1
    assert found["lora_error"] < 0.05
