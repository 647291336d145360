"""The Chinese node texts are complete and have no entries without a node."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from uniworld import NODE_CLASS_MAPPINGS

ROOT = Path(__file__).resolve().parents[2]
CHINESE: dict[str, Any] = json.loads((ROOT / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))


def test_every_node_is_translated_and_none_is_left_over() -> None:
    assert set(CHINESE) == set(NODE_CLASS_MAPPINGS)


@pytest.mark.parametrize("name", NODE_CLASS_MAPPINGS)
def test_every_input_and_output_is_translated(name: str) -> None:
    node, texts = NODE_CLASS_MAPPINGS[name], CHINESE[name]
    types = node.INPUT_TYPES()
    assert set(texts["inputs"]) == {*types.get("required", {}), *types.get("optional", {})}
    assert set(texts["outputs"]) == {str(i) for i in range(len(node.RETURN_TYPES))}
    entries = [*texts["inputs"].values(), *texts["outputs"].values()]
    assert all(entry["name"] and entry["tooltip"] for entry in entries)
    assert any("\u4e00" <= letter <= "\u9fff" for letter in texts["display_name"] + texts["description"])
