"""What the library says to arguments that cannot be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image

if TYPE_CHECKING:
    from uniworld.uniworld_core import Condition, UniWorld


@pytest.fixture(scope="module")
def condition(model: UniWorld) -> Condition:
    return model.encode("A red circle.", t5_length=4)


def test_a_single_picture_instead_of_a_list(model: UniWorld) -> None:
    with pytest.raises(ValueError, match=r"write \[picture\]"):
        model.reference(Image.new("RGB", (8, 8)))  # type: ignore[arg-type]


def test_a_single_reference_instead_of_the_list(model: UniWorld) -> None:
    reference = model.reference([Image.new("RGB", (8, 8))])
    with pytest.raises(ValueError, match="the list that `reference` returns"):
        model.encode("Make it red.", refs=reference[0])  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [{"height": 64.0, "width": 64}, {"height": 64, "width": "64"}])
def test_sizes_that_are_not_integers_are_refused(model: UniWorld, condition: Condition, size: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="whole number of pixels"):
        model.sample(condition, **size)


@pytest.mark.parametrize("seed", [2**65, -1, 1.5, torch.tensor([1, 2]), []])
def test_invalid_seeds_are_refused(model: UniWorld, condition: Condition, seed: Any) -> None:
    with pytest.raises(ValueError, match="seed"):
        model.sample(condition, height=64, width=64, steps=1, seed=seed)


@pytest.mark.parametrize("guidance", [float("nan"), float("inf"), -1.0])
def test_invalid_guidance_is_refused(model: UniWorld, condition: Condition, guidance: float) -> None:
    with pytest.raises(ValueError, match="guidance"):
        model.sample(condition, height=64, width=64, steps=1, guidance=guidance)


def test_empty_latents_are_refused(model: UniWorld, condition: Condition) -> None:
    with pytest.raises(ValueError, match="latent has shape"):
        model.decode(torch.zeros(0, 16, 8, 8))
    with pytest.raises(ValueError, match="latent has shape"):
        model.sample(condition, height=64, width=64, steps=1, noise=torch.zeros(0, 16, 8, 8))


@pytest.mark.parametrize("temperature", [float("nan"), -0.1, float("inf"), 1e-45, 1e300, "warm", None])
def test_invalid_temperatures_are_refused(model: UniWorld, temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        model.understand("What is it?", temperature=temperature)


@pytest.mark.parametrize("temperature", [1e-6, 1e6])
def test_the_bounds_of_the_temperature_give_an_answer(model: UniWorld, temperature: float) -> None:
    assert isinstance(model.understand("What is it?", temperature=temperature, max_new_tokens=2), str)


@pytest.mark.parametrize("seed", [2**64, -1, 1.5, "1"])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_invalid_seeds_of_answers_are_refused(model: UniWorld, temperature: float, seed: Any) -> None:
    with pytest.raises(ValueError, match=r"from 0 to 2\*\*64 - 1"):
        model.understand("What is it?", temperature=temperature, seed=seed)


@pytest.mark.parametrize("length", [0, 1.5, "3"])
def test_invalid_lengths_of_answers_are_refused(model: UniWorld, length: Any) -> None:
    with pytest.raises(ValueError, match="max_new_tokens"):
        model.understand("What is it?", max_new_tokens=length)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_an_answer_of_damaged_weights_is_an_error(model: UniWorld, temperature: float, bad: float) -> None:
    head = model.vlm.qwen.get_output_embeddings()
    hook = head.register_forward_hook(lambda _module, _inputs, logits: torch.full_like(logits, bad))
    try:
        with pytest.raises(ValueError, match="logits of token 1 of the answer are NaN or infinite"):
            model.understand("What is it?", temperature=temperature, max_new_tokens=2)
    finally:
        hook.remove()


def test_a_route_of_damaged_weights_is_an_error(model: UniWorld) -> None:
    head = model.understanding.task_head
    assert head is not None
    hook = head.register_forward_hook(lambda _module, _inputs, logits: logits * float("nan"))
    try:
        with pytest.raises(ValueError, match="logits are NaN or infinite"):
            model.route("Paint a dog.")
    finally:
        hook.remove()


def test_a_prompt_longer_than_the_model_reads(model: UniWorld) -> None:
    with pytest.raises(ValueError, match=r"tokens; the model reads at most 4096"):
        model.encode("word " * 40_000)


@pytest.mark.parametrize("pictures", [[[]], [[], [], []]])
def test_as_many_lists_of_pictures_as_prompts(model: UniWorld, pictures: Any) -> None:
    for call in (model.vlm.inputs, model.vlm.answer):
        with pytest.raises(ValueError, match="one list for each prompt"):
            call(["a", "b"], pictures)


def test_a_float_picture_of_0_to_255_is_not_taken_for_white(model: UniWorld) -> None:
    with pytest.raises(ValueError, match="divide it by 255"):
        model.reference([torch.full((8, 8, 3), 128.0)])
