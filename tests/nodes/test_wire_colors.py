"""The colors of this pack's wires in the editor."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from uniworld import NODE_CLASS_MAPPINGS

SCRIPT = Path(__file__).resolve().parents[2] / "nodes" / "web" / "wire_colors.js"
COLORS = dict(re.findall(r"^  (UNIWORLD_\w+): \"(#[0-9A-F]{6})\",$", SCRIPT.read_text(encoding="utf-8"), re.MULTILINE))


def types_of(node: Any) -> set[str]:
    declared = node.INPUT_TYPES()
    entries = [*declared.get("required", {}).values(), *declared.get("optional", {}).values()]
    kinds = {entry[0] for entry in entries if isinstance(entry[0], str)} | {*node.RETURN_TYPES}
    return {one for kind in kinds for one in kind.split(",")}


def test_every_wire_of_our_own_has_a_color() -> None:
    used = {kind for node in NODE_CLASS_MAPPINGS.values() for kind in types_of(node) if kind.startswith("UNIWORLD_")}
    assert used <= set(COLORS)


def test_no_two_wires_have_the_same_color() -> None:
    assert len(set(COLORS.values())) == len(COLORS) >= 6
