"""The trainer knows no family: it trains adapters on every one that edits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from uniworld.training.config.editr1 import EditR1Config
from uniworld.training.editr1.export import export_editr1
from uniworld.training.editr1.loop import train_editr1


@pytest.mark.parametrize(
    ("fixture", "settings"),
    [("kontext_folder", ("model.t5_length=16",)), ("qwen_edit", ("editr1.guidance=1.0",))],
)
def test_adapters_train_on_every_family(
    fixture: str,
    settings: tuple[str, ...],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    config_of: Callable[..., EditR1Config],
    providers_of: Callable[..., Any],
    rows: Callable[[Path], list[dict[str, Any]]],
) -> None:
    folder = request.getfixturevalue(fixture)
    config = config_of(f"model.checkpoint={folder}", "model.use_siglip=false", "run.steps=2", *settings)
    train_editr1(config, tmp_path / "run", providers_of(), progress=False)
    first, second = rows(tmp_path / "run")
    assert (first["trained"], second["updates"]) == (1.0, 2)
    assert first["kl"] == 0 < second["kl"]
    export_editr1(tmp_path / "run", tmp_path / "lora", raw=True)
