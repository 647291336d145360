"""Caches of a run: close to the run without, the same each time, and gone afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from uniworld.uniworld_core import Condition, UniWorld
from uniworld.uniworld_core.errors import UniWorldError
from uniworld.uniworld_core.images.sizes import Size
from uniworld.uniworld_core.sampling.cache import caching
from uniworld.uniworld_core.sampling.flow import Step
from uniworld.uniworld_core.sampling.sampler import paint
from uniworld.uniworld_core.sampling.solvers import SOLVERS

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def model() -> UniWorld:
    return UniWorld.from_pretrained("nano", dtype=torch.float32)


@pytest.fixture(scope="module")
def condition(model: UniWorld) -> Condition:
    picture = Image.open(ROOT / "workflows" / "input" / "shapes.png").convert("RGB")
    return model.encode("Make the green triangle yellow.", refs=model.reference([picture]), use_t5=False)


@pytest.fixture(scope="module")
def computed(model: UniWorld) -> Iterator[list[int]]:
    """A list that gets an item whenever the last block is computed, and not skipped."""
    calls: list[int] = []
    # A block that is skipped is still called; its layers are not.
    last = model.dit.transformer.single_transformer_blocks[-1].proj_mlp
    handle = last.register_forward_hook(lambda *_: calls.append(1))
    yield calls
    handle.remove()


@pytest.fixture(scope="module")
def plain(model: UniWorld, condition: Condition) -> torch.Tensor:
    return model.sample(condition, 128, 128, steps=20)


def decibels(model: UniWorld, one: torch.Tensor, other: torch.Tensor) -> float:
    return float(-10 * torch.log10((model.decode(one) - model.decode(other)).pow(2).mean()))


@pytest.mark.parametrize(("cache", "least"), [("light", 55.0), ("strong", 42.0)])
def test_a_cache_skips_blocks_and_keeps_nothing_for_the_next_run(
    cache: str, least: float, model: UniWorld, condition: Condition, computed: list[int], plain: torch.Tensor
) -> None:
    def run(cache: str) -> torch.Tensor:
        computed.clear()
        return model.sample(condition, 128, 128, steps=20, cache=cache)

    found = run(cache)
    assert len(computed) < 20
    assert decibels(model, found, plain) > least
    assert torch.equal(run(cache), found)
    assert torch.equal(run("off"), plain)
    assert len(computed) == 20


def test_a_cache_with_a_mask_less_denoise_several_seeds_and_another_solver(
    model: UniWorld, condition: Condition, computed: list[int], plain: torch.Tensor
) -> None:
    keep = torch.zeros(2, 1, 16, 16)
    keep[:, :, :, 8:] = 1
    steps: list[Step] = []

    def run(cache: str, solver: str) -> torch.Tensor:
        computed.clear()
        start = plain.repeat(2, 1, 1, 1)
        rest = {"denoise": 0.7, "latent": start, "keep_B1hw": keep, "cache": cache, "solver": solver}
        return paint(model.dit, condition, Size(128, 128), [3, 4], 8, 3.5, callback=steps.append, **rest)

    for solver in SOLVERS:
        off, found = run("off", solver), run("strong", solver)
        assert len(computed) < 8
        assert decibels(model, found, off) > 35
        torch.testing.assert_close(found[..., 8:], plain.repeat(2, 1, 1, 1)[..., 8:], rtol=0, atol=1e-4)
        assert not torch.equal(found[0], found[1])
        assert torch.equal(run("strong", solver), found)
    assert all(torch.isfinite(step.denoised).all() for step in steps)
    assert [step.index for step in steps[:8]] == list(range(8))


def test_an_interrupted_run_leaves_no_cache(model: UniWorld, condition: Condition, plain: torch.Tensor) -> None:
    def stop(step: Step) -> None:
        if step.index == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.sample(condition, 128, 128, steps=20, cache="strong", callback=stop)
    assert not model.dit.transformer.is_cache_enabled
    assert torch.equal(model.sample(condition, 128, 128, steps=20), plain)


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
