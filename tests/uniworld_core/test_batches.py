"""A batch gives each item what it gives alone, and counts that do not fit are errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from uniworld.uniworld_core import Condition, UniWorld
from uniworld.uniworld_core.families.uniworld_v1.condition import gather_rows, pad_left, splice
from uniworld.uniworld_core.sampling.sampler import make_noise

PROMPTS = (
    "A red circle.",
    "Replace the blue square with a green triangle, and keep all else.",
    "Add a hat to the dog.",
)
SEEDS = (3, 2**64 - 1, 5)
SIZE = {"height": 64, "width": 80}
ITEM = (16, 8, 10)  # its latent
TOLERANCE = 2e-5


def picture(width: int, height: int, color: tuple[int, int, int]) -> Image.Image:
    made = Image.new("RGB", (width, height), color)
    made.paste((255, 255, 255), (0, 0, width // 2, height // 2))
    return made


@pytest.fixture(scope="module")
def refs(model: UniWorld) -> list[Any]:
    """None, one, and two references of different sizes."""
    one, two, three = picture(60, 40, (200, 30, 30)), picture(40, 70, (20, 180, 60)), picture(33, 33, (10, 10, 200))
    return [[], model.reference([one]), model.reference([two, three])]


@pytest.fixture(scope="module")
def together(model: UniWorld, refs: list[Any]) -> Condition:
    return model.encode(PROMPTS, refs=refs, t5_length=16)


@pytest.fixture(scope="module")
def alone(model: UniWorld, refs: list[Any]) -> list[Condition]:
    return [model.encode(prompt, refs=item, t5_length=16) for prompt, item in zip(PROMPTS, refs)]


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= tolerance


@pytest.mark.parametrize("item", range(3))
def test_condition_of_an_item_is_its_own(together: Condition, alone: list[Condition], item: int) -> None:
    close(together.tokens[item][together.mask[item]], alone[item].tokens[0])
    close(together.pooled[item], alone[item].pooled[0])
    assert alone[item].mask is None


def test_mask_marks_every_token_and_no_padding(together: Condition, alone: list[Condition]) -> None:
    assert together.mask.sum(dim=1).tolist() == [condition.tokens.shape[1] for condition in alone]
    # Padding lies between T5's tokens, which are never masked, and the condition, padded on its left.
    assert together.mask[:, :16].all()
    assert (together.tokens[~together.mask] == 0).all()
    rest = together.mask[:, 16:].int()
    assert (rest.diff(dim=1) >= 0).all()


@pytest.fixture(scope="module")
def painted(model: UniWorld, together: Condition) -> torch.Tensor:
    return model.sample(together, **SIZE, steps=3, seed=SEEDS)


@pytest.mark.parametrize("item", range(3))
def test_latent_of_an_item_is_its_own(
    model: UniWorld, painted: torch.Tensor, alone: list[Condition], item: int
) -> None:
    close(painted[item], model.sample(alone[item], **SIZE, steps=3, seed=SEEDS[item])[0], 1e-4)


def test_padding_is_not_attended_to(model: UniWorld, together: Condition) -> None:
    noise = make_noise(SEEDS, ITEM)
    garbage = torch.where(together.mask[..., None], together.tokens, 50.0)
    changed = Condition(garbage, together.pooled, together.mask)
    with torch.inference_mode():
        expected = model.dit.velocity(noise, 0.7, together, 3.5)
        close(model.dit.velocity(noise, 0.7, changed, 3.5), expected)
        unmasked = model.dit.velocity(noise, 0.7, Condition(garbage, together.pooled), 3.5)
    assert float((unmasked - expected).abs().max()) > 0.01


def test_decoded_picture_of_an_item_is_its_own(model: UniWorld, painted: torch.Tensor) -> None:
    pictures = model.decode(painted)
    for item in range(3):
        close(pictures[item], model.decode(painted[item : item + 1])[0])


def test_answer_of_an_item_is_its_own(model: UniWorld, refs: list[Any]) -> None:
    answers = model.understand(PROMPTS, refs=refs, max_new_tokens=6)
    assert answers == [model.understand(prompt, refs=item, max_new_tokens=6) for prompt, item in zip(PROMPTS, refs)]


def test_route_of_an_item_is_its_own(model: UniWorld, refs: list[Any]) -> None:
    routes = model.route(PROMPTS, refs=refs)
    assert routes.logits.shape == routes.probabilities.shape == (3, 2)
    for index, (prompt, item) in enumerate(zip(PROMPTS, refs)):
        own = model.route(prompt, refs=item)
        close(routes.logits[index], own.logits[0])
        assert bool(routes.paint[index]) == bool(own.paint[0])


def test_references_of_one_prompt_are_shared_by_all(model: UniWorld, refs: list[Any]) -> None:
    shared = model.encode(PROMPTS[:2], refs=refs[2], use_t5=False)
    each = model.encode(PROMPTS[:2], refs=[refs[2], refs[2]], use_t5=False)
    assert torch.equal(shared.tokens, each.tokens)
    assert torch.equal(shared.mask, each.mask)


def test_several_seeds_of_one_condition_are_a_batch(model: UniWorld, alone: list[Condition]) -> None:
    batch = model.sample(alone[1], **SIZE, steps=2, seed=SEEDS)
    assert batch.shape == (3, 16, 8, 10)
    for item, seed in enumerate(SEEDS):
        close(batch[item], model.sample(alone[1], **SIZE, steps=2, seed=seed)[0], 1e-4)


@pytest.mark.parametrize("seed", [7, [7]], ids=["number", "list of one"])
def test_one_seed_serves_all_items(model: UniWorld, together: Condition, alone: list[Condition], seed: Any) -> None:
    batch = model.sample(together, **SIZE, steps=1, seed=seed)
    for item in range(3):
        close(batch[item], model.sample(alone[item], **SIZE, steps=1, seed=7)[0], 1e-4)


def test_same_seed_gives_the_same_latent_to_the_bit(model: UniWorld, alone: list[Condition]) -> None:
    first, again = (model.sample(alone[0], **SIZE, steps=2, seed=11) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, model.sample(alone[0], **SIZE, steps=2, seed=12))


def test_sampled_answer_repeats_with_its_seed_and_leaves_the_random_state(model: UniWorld) -> None:
    before = torch.random.get_rng_state()
    first, again, other = (
        model.understand("What is this?", max_new_tokens=12, temperature=1.5, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again != other
    assert torch.equal(torch.random.get_rng_state(), before)


def test_noise_given_is_the_noise_taken(model: UniWorld, alone: list[Condition]) -> None:
    z = model.sample(alone[0], **SIZE, steps=2, noise=make_noise([9], ITEM))
    assert torch.equal(z, model.sample(alone[0], **SIZE, steps=2, seed=9))


def test_references_for_another_number_of_prompts_are_an_error(model: UniWorld, refs: list[Any]) -> None:
    for call in (model.encode, model.route, model.understand):
        with pytest.raises(ValueError, match="2 prompts, but references for 3"):
            call(PROMPTS[:2], refs=refs)


def test_no_prompt_at_all_is_an_error(model: UniWorld) -> None:
    with pytest.raises(ValueError, match="list of prompts is empty"):
        model.encode([])


@pytest.mark.parametrize("prompt", ["", "   ", "\n\t"])
def test_empty_prompt_is_an_error(model: UniWorld, prompt: str) -> None:
    for call in (model.encode, model.route, model.understand):
        with pytest.raises(ValueError, match="prompt is empty"):
            call(["fine", prompt])


@pytest.mark.parametrize("word", ["<|vision_end|>", "<|image_pad|>", "<|im_end|>", "<|im_start|>"])
def test_reserved_words_in_a_prompt_are_an_error(model: UniWorld, word: str) -> None:
    with pytest.raises(ValueError, match="reserved") as error:
        model.encode(f"Paint {word} a dog.")
    assert word in str(error.value)


def test_a_prompt_that_is_not_text_is_refused(model: UniWorld) -> None:
    with pytest.raises(ValueError, match="int, not text"):
        model.encode([3])  # type: ignore[list-item]


@pytest.mark.parametrize("seeds", [[], [1, 2], [1, 2, 3, 4]])
def test_another_number_of_seeds_is_an_error(model: UniWorld, together: Condition, seeds: list[int]) -> None:
    with pytest.raises(ValueError, match=f"{len(seeds)} seeds for a condition of 3 items"):
        model.sample(together, **SIZE, steps=1, seed=seeds)


def test_noise_of_another_number_of_items_is_an_error(model: UniWorld, together: Condition) -> None:
    with pytest.raises(ValueError, match="3 items and the batch 2"):
        model.sample(together, **SIZE, steps=1, noise=make_noise([1, 2], ITEM))


@pytest.mark.parametrize("shape", [(1, 16, 8, 8), (1, 4, 8, 10), (16, 8, 10), (1, 1, 16, 8, 10)])
def test_noise_of_another_shape_is_an_error(model: UniWorld, alone: list[Condition], shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="has shape") as error:
        model.sample(alone[0], **SIZE, steps=1, noise=torch.zeros(shape))
    assert str(list(shape)) in str(error.value)


@pytest.mark.parametrize("options", [{"max_new_tokens": 0}, {"temperature": -1.0}])
def test_answers_of_no_length_or_negative_temperature_are_an_error(model: UniWorld, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be"):
        model.understand("What?", **options)


def test_t5_of_no_length_is_an_error(model: UniWorld) -> None:
    with pytest.raises(ValueError, match="t5_length is 0"):
        model.encode("A dog.", t5_length=0)


def test_features_go_in_just_before_the_end_of_their_picture() -> None:
    index = splice([5], [[1, 3]], [[2, 1]])
    rows = torch.tensor([1.0, 2, 3, 4, 5, 10, 11, 20])[:, None]
    spliced, found = gather_rows(rows, index)
    assert spliced.flatten().tolist() == [1, 10, 11, 2, 3, 20, 4, 5]
    assert found.all()


def test_items_of_different_lengths_are_padded_on_the_left_and_keep_their_own_features() -> None:
    index = splice([3, 2, 4], [[1], [], [0, 2]], [[2], [], [None, 1]])
    rows = torch.arange(1.0, 13)[:, None]  # nine tokens, then three features
    spliced, found = gather_rows(rows, index)
    assert spliced[..., 0].tolist() == [[1, 10, 11, 2, 3], [0, 0, 0, 4, 5], [6, 7, 12, 8, 9]]
    assert found.tolist() == [[True] * 5, [False] * 3 + [True] * 2, [True] * 5]


def test_features_for_another_number_of_pictures_are_an_error() -> None:
    with pytest.raises(ValueError, match="has 0 pictures, but there are 1 references: give one for each"):
        splice([3], [[]], [[None]])


def test_padding_is_on_the_left() -> None:
    padded, mask = pad_left([torch.ones(1, 2), torch.full((3, 2), 2.0)])
    assert padded[:, :, 0].tolist() == [[0, 0, 1], [2, 2, 2]]
    assert mask.tolist() == [[False, False, True], [True, True, True]]
