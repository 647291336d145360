"""The nodes' object_info matches a stored file, so every change of it is visible and deliberate.

`python tests/nodes/test_object_info.py` regenerates the file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).resolve().parents[1] / "data" / "object_info.json"


def declared(empty: Path) -> dict[str, Any]:
    """Return the object_info of this package's own nodes, on a machine with only a CPU and without models."""
    from uniworld.nodes import host
    from uniworld.nodes.headless.registry.registry import load_registry

    class OneDevice(host.PlainHost):
        def devices(self) -> list[str]:
            return ["default", "cpu"]

    host.install(OneDevice(models=[empty]))
    try:
        infos = load_registry().infos()
    finally:
        host.install(None)
    return {name: info for name, info in infos.items() if info["python_module"] == "custom_nodes.uniworld"}


def as_text(infos: dict[str, Any]) -> str:
    return json.dumps(infos, indent=1, ensure_ascii=False) + "\n"


def test_declarations_are_those_of_the_kept_file(tmp_path: Path) -> None:
    kept = json.loads(DATA.read_text(encoding="utf-8"))
    now = declared(tmp_path)
    assert list(now) == list(kept)
    for name, info in now.items():
        # Compared as text: the order of inputs and choices matters, because saved workflows store values by position.
        assert as_text(info) == as_text(kept[name]), name


@pytest.mark.parametrize("name", json.loads(DATA.read_text(encoding="utf-8")) if DATA.is_file() else [])
def test_each_node_is_described(name: str, tmp_path: Path) -> None:
    info = declared(tmp_path)[name]
    assert info["description"]
    assert len(info["output_tooltips"]) == len(info["output"])


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as empty:
        DATA.write_text(as_text(declared(Path(empty))), encoding="utf-8")
    sys.stdout.write(f"{DATA}\n")
