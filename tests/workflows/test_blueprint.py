"""The blueprint "Edit with UniWorld": a complete edit as one node."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
FILE = ROOT / "subgraphs" / "Edit with UniWorld.json"


def used_in_a_graph() -> dict[str, Any]:
    """Build a workflow that loads an image, applies the blueprint and saves the result."""
    workflow = copy.deepcopy(json.loads(FILE.read_text(encoding="utf-8")))
    folded = workflow["nodes"][0]
    folded["inputs"][0]["link"] = 1
    folded["outputs"][0]["links"] = [2]
    load = {"id": 8, "type": "LoadImage", "mode": 0, "inputs": [], "widgets_values": ["shapes.png", "image"]}
    load["outputs"] = [{"name": "IMAGE", "type": "IMAGE", "links": [1]}, {"name": "MASK", "type": "MASK", "links": []}]
    save = {"id": 9, "type": "SaveImage", "mode": 0, "outputs": [], "widgets_values": ["blueprint"]}
    save["inputs"] = [{"name": "images", "type": "IMAGE", "link": 2}]
    workflow["nodes"] += [load, save]
    workflow["links"] = [[1, 8, 0, 1, 0, "IMAGE"], [2, 1, 0, 9, 0, "IMAGE"]]
    return workflow


def test_the_builder_makes_what_is_committed() -> None:
    from workflows import build

    assert build.edit_blueprint() == json.loads(FILE.read_text(encoding="utf-8"))


def test_every_link_joins_two_slots_that_know_it() -> None:
    subgraph = json.loads(FILE.read_text(encoding="utf-8"))["definitions"]["subgraphs"][0]
    nodes = {node["id"]: node for node in subgraph["nodes"]}
    for link in subgraph["links"]:
        if link["origin_id"] in nodes:
            assert link["id"] in nodes[link["origin_id"]]["outputs"][link["origin_slot"]]["links"]
        else:
            assert link["id"] in subgraph["inputs"][link["origin_slot"]]["linkIds"]
        if link["target_id"] in nodes:
            assert nodes[link["target_id"]]["inputs"][link["target_slot"]]["link"] == link["id"]
        else:
            assert link["id"] in subgraph["outputs"][link["target_slot"]]["linkIds"]


def test_a_graph_with_it_paints_what_the_edit_workflow_does(
    tmp_path: Path, monkeypatch: Any, capsys: Any, run_shared: Any
) -> None:
    from uniworld.__main__ import main

    (tmp_path / "graph.json").write_text(json.dumps(used_in_a_graph()), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert main(["run", "graph.json", "--output", "out"]) == 0, capsys.readouterr().err
    with (
        Image.open(tmp_path / "out" / "blueprint_00001_.png") as made,
        Image.open(run_shared("edit").images[0]) as edit,
    ):
        assert made.tobytes() == edit.tobytes()
