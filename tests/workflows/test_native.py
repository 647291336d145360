"""The workflows of ComfyUI's own nodes: layout, files, and that only ComfyUI lists them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from workflows.catalog import CATALOG  # noqa: E402
from workflows.layout import around  # noqa: E402

NAMES = ("native_edit", "native_multi_reference", "native_lora")


def read(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "workflows" / f"{CATALOG[name].file}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_the_builder_makes_what_is_committed(name: str) -> None:
    from workflows import native

    (graph,) = (one for one in native.graphs() if one.name == name)
    assert native.with_models(graph.editor()) == read(name)
    assert (ROOT / "workflows" / f"{CATALOG[name].file}.jpg").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_nodes_do_not_overlap(name: str) -> None:
    boxes = [around(node) for node in read(name)["nodes"]]
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :] if a.meets(b, 8)]


@pytest.mark.parametrize("name", NAMES)
def test_loaders_name_files_without_folders_and_say_where_public_ones_are(name: str) -> None:
    public = {}
    for node in read(name)["nodes"]:
        files = [value for value in node["widgets_values"] if isinstance(value, str) and value.endswith(".safetensors")]
        assert all("/" not in value for value in files)
        for model in node["properties"].get("models", ()):
            assert model["name"] in files
            public[model["name"]] = model
    expected = set() if name == "native_lora" else {"ae.safetensors", "siglip2-so400m-patch16-512.safetensors"}
    assert set(public) == expected
    for model in public.values():
        assert model["url"].startswith("https://huggingface.co/")
        assert model["url"].endswith(".safetensors")
        assert model["directory"] in ("vae", "clip_vision")


def test_only_comfyui_lists_them() -> None:
    from uniworld.nodes.headless.serve.content import stock_templates
    from uniworld.nodes.headless.workflow.file import find_workflow, shipped_workflows

    cards = {card["name"] for card in stock_templates()[0]["templates"]}
    for name in NAMES:
        assert name not in shipped_workflows()
        assert name not in cards
        assert find_workflow(name).stem == CATALOG[name].file  # for --server
    assert "edit" in shipped_workflows()
    assert "edit" in cards


def test_the_lora_is_small_and_has_peft_names() -> None:
    from workflows.train_lora import FILE

    assert FILE.stat().st_size < 300_000
    with safe_open(FILE, "pt") as opened:
        names = set(opened.keys())
    assert "transformer.single_transformer_blocks.0.proj_out.lora_A.weight" in names
    assert all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in names)
