"""Graphs that were saved with former class ids open with the nodes that replace them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from uniworld import NODE_CLASS_MAPPINGS
from uniworld.nodes.headless.registry.registry import load_registry
from uniworld.nodes.headless.workflow.file import read_workflow
from uniworld.nodes.headless.workflow.renaming import rename_in_graph, rename_in_prompt
from uniworld.nodes.renamed import RENAMED, replacements

ROOT = Path(__file__).resolve().parents[2]


def test_every_old_id_leads_to_a_node_that_there_is() -> None:
    assert set(RENAMED.values()) <= set(NODE_CLASS_MAPPINGS)
    assert not set(RENAMED) & set(NODE_CLASS_MAPPINGS)


def test_the_editor_gets_the_table_in_its_form() -> None:
    for old, [entry] in replacements().items():
        assert entry == {
            "new_node_id": RENAMED[old],
            "old_node_id": old,
            "old_widget_ids": None,
            "input_mapping": None,
            "output_mapping": None,
        }


def with_old_ids(workflow: str) -> str:
    for old, new in RENAMED.items():
        workflow = workflow.replace(f'type": "{new}"', f'type": "{old}"')
    return workflow


def files() -> list[Path]:
    return [
        *sorted((ROOT / "workflows").glob("*.json")),
        *sorted((ROOT / "workflows" / "api").glob("*.json")),
        *sorted((ROOT / "subgraphs").glob("*.json")),
    ]


@pytest.mark.parametrize("path", files(), ids=lambda path: path.parent.name + "/" + path.stem)
def test_a_shared_workflow_with_old_ids_opens_as_the_same(path: Path, tmp_path: Path) -> None:
    registry = load_registry()
    older = tmp_path / "older.json"
    older.write_text(with_old_ids(path.read_text(encoding="utf-8")), encoding="utf-8")
    old, new = read_workflow(older, registry), read_workflow(path, registry)
    assert old.prompt == new.prompt
    assert old.graph == new.graph


def test_another_packs_node_of_an_old_id_stays() -> None:
    registry = load_registry()
    registry.classes["UniWorldScheduler"] = type("UniWorldScheduler", (), {})
    prompt = {"1": {"class_type": "UniWorldScheduler", "inputs": {}}}
    assert rename_in_prompt(prompt, registry) == prompt
    graph = {"nodes": [{"id": 1, "type": "UniWorldScheduler"}]}
    assert rename_in_graph(graph, registry) == graph


@pytest.mark.parametrize("prompt", [None, [], {}, {"1": None}, {"1": {"class_type": ["UniWorldScheduler"]}}, {"1": {}}])
def test_what_is_no_prompt_comes_back_as_it_is(prompt: Any) -> None:
    assert rename_in_prompt(prompt, load_registry()) is prompt


@pytest.mark.parametrize(
    "graph", [{}, {"nodes": 3}, {"nodes": [None, {"type": 1}], "definitions": {"subgraphs": [1, {"nodes": None}]}}]
)
def test_what_is_no_graph_comes_back_as_it_is(graph: dict[str, Any]) -> None:
    assert rename_in_graph(graph, load_registry()) == graph


def test_nodes_inside_subgraphs_are_renamed_and_the_input_is_not_changed() -> None:
    graph = {
        "nodes": [],
        "definitions": {"subgraphs": [{"id": "s", "nodes": [{"id": 1, "type": "UniWorldScheduler"}]}]},
    }
    before = json.dumps(graph)
    renamed = rename_in_graph(graph, load_registry())
    assert renamed["definitions"]["subgraphs"][0]["nodes"][0]["type"] == "UniWorldFlowScheduler"
    assert json.dumps(graph) == before


class Register:
    def __init__(self) -> None:
        self.known: dict[str, str] = {}

    def register(self, replacement: Any) -> None:
        self.known[replacement.old_node_id] = replacement.new_node_id


@pytest.mark.parametrize("has_register", [True, False])
def test_comfyui_is_told_where_it_has_a_register(monkeypatch: pytest.MonkeyPatch, has_register: bool) -> None:
    register = Register()
    instance = SimpleNamespace(node_replace_manager=register) if has_register else SimpleNamespace()
    folders = SimpleNamespace(
        folder_names_and_paths={"uniworld": 1, "diffusers": 1, "siglip": 1, "unipic": 1},
        add_model_folder_path=lambda kind, folder: None,
    )
    stand_ins: dict[str, Any] = {
        **dict.fromkeys(("comfy", "comfy.model_management", "comfy.model_patcher", "comfy.utils", "comfy_execution")),
        "comfy.ops": SimpleNamespace(manual_cast=torch.nn),
        "comfy_execution.graph_utils": SimpleNamespace(ExecutionBlocker=object),
        "comfy_execution.utils": SimpleNamespace(get_executing_context=lambda: None),
        "folder_paths": folders,
        "server": SimpleNamespace(PromptServer=SimpleNamespace(instance=instance)),
        "comfy_api": None,
        "comfy_api.latest": SimpleNamespace(io=SimpleNamespace(NodeReplace=SimpleNamespace)),
    }
    for name, stand_in in stand_ins.items():
        module = ModuleType(name)
        vars(module).update(vars(stand_in) if stand_in is not None else {})
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, child = name.rpartition(".")
        if parent:
            monkeypatch.setattr(sys.modules[parent], child, module, raising=False)
    monkeypatch.delitem(sys.modules, "uniworld.nodes.host.comfy", raising=False)
    from uniworld.nodes.host.comfy import ComfyHost

    ComfyHost()
    assert register.known == (RENAMED if has_register else {})
    monkeypatch.delitem(sys.modules, "uniworld.nodes.host.comfy", raising=False)
