"""Caches of a run: close to the run without, the same each time, and gone afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from uniworld.uniworld_core import UniWorld
from uniworld.uniworld_core.errors import UniWorldError
from uniworld.uniworld_core.sampling.cache import caching

ROOT = Path(__file__).resolve().parents[3]


def test_a_cache_skips_blocks_and_keeps_nothing_for_the_next_run() -> None:
    model = UniWorld.from_pretrained("nano", dtype=torch.float32)
    picture = Image.open(ROOT / "workflows" / "input" / "shapes.png").convert("RGB")
    condition = model.encode("Make the green triangle yellow.", refs=model.reference([picture]), use_t5=False)
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    # A block that is skipped is still called; its layers are not.
    model.dit.transformer.single_transformer_blocks[-1].proj_mlp.register_forward_hook(count)

    def run(cache: str) -> tuple[torch.Tensor, int]:
        nonlocal calls
        calls = 0
        return model.decode(model.sample(condition, 128, 128, steps=20, cache=cache)), calls

    plain, steps = run("off")
    assert steps == 20
    for cache, decibels in {"light": 55.0, "strong": 42.0}.items():
        found, computed = run(cache)
        assert computed < 20
        assert float(-10 * torch.log10((found - plain).pow(2).mean())) > decibels
        again, _ = run(cache)
        assert torch.equal(again, found)
    after, steps = run("off")
    assert torch.equal(after, plain)
    assert steps == 20


def test_a_cache_is_off_again_after_an_error() -> None:
    dit = UniWorld.from_pretrained("tiny", dtype=torch.float32).dit
    with pytest.raises(RuntimeError, match="stopped"), caching(dit, "light"):
        raise RuntimeError("stopped")
    assert not dit.transformer.is_cache_enabled


def test_caches_that_do_not_exist_are_refused() -> None:
    with (
        pytest.raises(UniWorldError, match=r"cache is 'heavy'; it must be one of off, light, strong"),
        caching(None, "heavy"),
    ):
        pass
    with pytest.raises(UniWorldError, match=r"this model has no cache: set it to off"), caching(object(), "light"):
        pass
    with caching(object(), "off"):
        pass
