"""The trainer knows no family: it trains adapters on every one that edits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from uniworld.training.config.editr1 import EditR1Config
from uniworld.training.editr1.export import export_editr1
from uniworld.training.editr1.loop import open_base_model, train_editr1
from uniworld.training.editr1.providers import PROMPTS
from uniworld.training.editr1.rollout import encode


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


def test_a_negative_prompt_is_encoded_only_where_guidance_uses_it(
    qwen_edit: Path, config_of: Callable[..., EditR1Config]
) -> None:
    found = []
    for guidance in (1.0, 4.0):
        config = config_of(f"model.checkpoint={qwen_edit}", "model.use_siglip=false", f"editr1.guidance={guidance}")
        model = open_base_model(config, torch.device("cpu"))
        found.append(encode(model, PROMPTS["metadata"](config).read(0), config).negative is None)
    assert found == [True, False]
