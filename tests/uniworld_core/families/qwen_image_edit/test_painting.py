"""The transformer as a painter: batches, padding, guidance, caches, gradients, and the storage options."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from uniworld.uniworld_core import Condition, Conversation, Turn, UniWorld
from uniworld.uniworld_core.errors import UniWorldError
from uniworld.uniworld_core.images.sizes import Size
from uniworld.uniworld_core.sampling.guidance import true_cfg
from uniworld.uniworld_core.sampling.sampler import paint

RED = Image.new("RGB", (80, 60), (200, 30, 30))
BLUE = Image.new("RGB", (64, 64), (30, 30, 200))
SIDE = 64


@pytest.fixture(scope="module")
def model(qwen_edit: Path) -> UniWorld:
    return UniWorld.from_pretrained(qwen_edit, dtype=torch.float32)


@pytest.fixture(scope="module")
def condition(model: UniWorld) -> Condition:
    return model.encode("make it green", model.reference([RED], use_siglip=False))


def noise(batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 16, 1, 8, 8, generator=torch.manual_seed(0))


class TestBatch:
    def test_items_equal_those_painted_alone(self, model: UniWorld) -> None:
        refs = model.reference([RED], use_siglip=False)
        prompts = ["make it green", "remove the largest of the three circles on the left, and paint a square there"]
        both = model.encode(prompts, refs)
        assert both.mask is not None
        assert not bool(both.mask.all())
        z = model.sample(both, SIDE, SIDE, steps=2, guidance=3.0, seed=[1, 2])
        for item, (prompt, seed) in enumerate(zip(prompts, (1, 2))):
            alone = model.sample(model.encode(prompt, refs), SIDE, SIDE, steps=2, guidance=3.0, seed=seed)
            assert torch.allclose(z[item], alone[0], atol=1e-5)

    def test_one_condition_serves_several_seeds(self, model: UniWorld, condition: Condition) -> None:
        z = model.sample(condition, SIDE, SIDE, steps=2, guidance=3.0, seed=[1, 2])
        assert torch.allclose(z[1], model.sample(condition, SIDE, SIDE, steps=2, guidance=3.0, seed=2)[0], atol=1e-5)

    def test_references_of_other_sizes_cannot_share_a_batch(self, model: UniWorld) -> None:
        refs = [model.reference([picture], use_siglip=False) for picture in (BLUE, BLUE.resize((90, 30)))]
        with pytest.raises(UniWorldError, match="different numbers or aspect ratios"):
            model.encode(["green", "green"], refs)


class TestGuidance:
    def test_up_to_one_it_takes_one_forward_per_step(
        self, model: UniWorld, condition: Condition, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls, forward = [], model.dit.transformer.forward

        def counted(**inputs: Any) -> Any:
            calls.append(inputs["encoder_hidden_states"].shape[1])
            return forward(**inputs)

        monkeypatch.setattr(model.dit.transformer, "forward", counted)
        for guidance, count in ((0.0, 2), (1.0, 2), (1.5, 4)):
            calls.clear()
            model.sample(condition, SIDE, SIDE, steps=2, guidance=guidance)
            assert len(calls) == count
        calls.clear()
        model.sample(replace(condition, negative=None), SIDE, SIDE, steps=2, guidance=4.0)
        assert len(calls) == 2

    def test_it_keeps_the_norm_of_every_token(self) -> None:
        positive, negative = torch.randn(2, 3, 5, 8, generator=torch.manual_seed(0))
        guided = true_cfg(positive, negative, 4.0)
        assert torch.allclose(guided.norm(dim=-1), positive.norm(dim=-1), rtol=1e-5)
        assert not torch.allclose(guided, positive, atol=0.1)
        assert torch.equal(true_cfg(positive * 0, negative * 0, 4.0), positive * 0)

    def test_a_cache_keeps_a_state_for_each_of_both_forwards(self, model: UniWorld, condition: Condition) -> None:
        plain = model.sample(condition, SIDE, SIDE, steps=4, guidance=4.0)
        cached = model.sample(condition, SIDE, SIDE, steps=4, guidance=4.0, cache="light")
        again = model.sample(condition, SIDE, SIDE, steps=4, guidance=4.0, cache="light")
        assert torch.equal(cached, again)
        assert (cached - plain).abs().max() < 0.5
        assert torch.equal(model.sample(condition, SIDE, SIDE, steps=4, guidance=4.0), plain)


class TestTraining:
    def test_the_velocity_is_differentiable_after_sampling(self, qwen_edit: Path) -> None:
        model = UniWorld.from_pretrained(qwen_edit, dtype=torch.float32)
        condition = model.encode("make it green", model.reference([RED], use_siglip=False))
        model.sample(condition, SIDE, SIDE, steps=1)
        model.dit.transformer.requires_grad_(True)
        x, sigma = noise(2), torch.tensor([0.3, 0.8])
        velocity = model.dit.velocity(x, sigma, condition)
        velocity.square().mean().backward()
        missing = [name for name, weight in model.dit.named_parameters() if weight.grad is None]
        # The last block's text goes nowhere.
        assert all(".1." in name and ("txt_" in name or "to_add_out" in name) for name in missing)
        sampled = model.dit.velocity_for(condition, 1.0, x[1:].shape)(x[1:], 0.8)
        assert torch.allclose(velocity[1:], sampled, atol=1e-6)


class TestPrompts:
    def test_a_conversation_edits_the_latest_pictures(self, model: UniWorld) -> None:
        red, blue = model.reference([RED, BLUE], use_siglip=False)
        turns = [Turn("user", "Paint it.", [red]), Turn("assistant", "", [blue]), Turn("user", "make it green")]
        last, alone = model.encode(Conversation(turns)), model.encode("make it green", [blue])
        assert torch.equal(last.tokens, alone.tokens)
        assert torch.equal(last.references[0], alone.references[0])

    def test_pictures_are_optional_since_2509(self, model: UniWorld) -> None:
        bare = model.encode("a red circle")
        assert bare.references == ()
        assert model.sample(bare, SIDE, SIDE, steps=1).shape == (1, 16, 1, 8, 8)

    def test_a_negative_prompt_replaces_the_blank_one(self, model: UniWorld, condition: Condition) -> None:
        refs = model.reference([RED], use_siglip=False)
        other = model.encode("make it green", refs, negative="dull colors")
        assert torch.equal(other.tokens, condition.tokens)
        assert other.negative is not None
        assert condition.negative is not None
        assert other.negative.tokens.shape != condition.negative.tokens.shape
        blank = model.encode("make it green", refs, negative="\n")
        assert blank.negative is not None
        assert torch.equal(blank.negative.tokens, condition.negative.tokens)
        with pytest.raises(UniWorldError, match=r"The negative prompt contains <\|im_end\|>"):
            model.encode("make it green", refs, negative="<|im_end|>")

    def test_the_default_guidance_is_the_published_one(self, model: UniWorld, condition: Condition) -> None:
        default, four = (model.sample(condition, SIDE, SIDE, steps=1, **given) for given in ({}, {"guidance": 4.0}))
        assert torch.equal(default, four)

    @pytest.mark.parametrize(("count", "wanted"), [(17, "0 to 16")])
    def test_too_many_pictures(self, model: UniWorld, count: int, wanted: str) -> None:
        with pytest.raises(UniWorldError, match=f"{count} references, and Qwen-Image-Edit-2509 takes {wanted}"):
            model.encode("green", model.reference([BLUE] * count, use_siglip=False))

    def test_the_text_with_pictures_must_fit_the_positions(self, model: UniWorld, condition: Condition) -> None:
        long = replace(condition, tokens=condition.tokens.repeat(1, 30, 1), negative=None)
        with pytest.raises(UniWorldError, match=r"reads at most 40\d\d with pictures of this size"):
            model.sample(long, SIDE, SIDE, steps=1)

    def test_conditions_of_other_models_are_refused(self, model: UniWorld, condition: Condition) -> None:
        others = {
            "pooled prompt": replace(condition, pooled=torch.zeros(1, 8)),
            "8 wide, and the transformer takes 32": replace(condition, tokens=torch.zeros(1, 4, 8)),
            "not one of Qwen-Image": replace(condition, references=(torch.zeros(1, 16, 8, 8),)),
        }
        for said, other in others.items():
            with pytest.raises(UniWorldError, match=said):
                model.sample(other, SIDE, SIDE, steps=1)


@pytest.mark.parametrize(
    "options", [{"storage": "int8"}, {"offload": "blocks"}, {"storage": "int8", "offload": "disk"}]
)
def test_storage_and_offload(qwen_edit: Path, model: UniWorld, options: dict[str, str]) -> None:
    other = UniWorld.from_pretrained(qwen_edit, dtype=torch.float32, **options)
    if "offload" in options:
        pytest.importorskip("accelerate", reason="diffusers streams blocks with accelerate")
        try:
            _ = other.dit
        except UniWorldError:
            pytest.skip("this diffusers streams blocks only on machines with a GPU")
    images = [
        each.decode(each.sample(each.encode("green", each.reference([RED], use_siglip=False)), SIDE, SIDE, steps=2))
        for each in (model, other)
    ]
    assert torch.allclose(*images, atol=1e-5 if "storage" not in options else 0.02)


def test_previews_have_colors(model: UniWorld) -> None:
    from uniworld.uniworld_core.sampling.latents import preview

    shown = preview(torch.randn(16, 1, 4, 6), model.latent_format.rgb, side=48)
    assert shown.size == (48, 32)
    assert len(shown.getcolors(10_000) or []) > 10


def test_outside_of_a_mask_the_latent_is_kept(model: UniWorld, condition: Condition) -> None:
    z = model.vae.encode(torch.rand(1, SIDE, SIDE, 3, generator=torch.manual_seed(0)))
    keep_11hw = torch.zeros(1, 1, 8, 8)
    keep_11hw[..., :4] = 1.0
    painted = paint(model.dit, condition, Size(SIDE, SIDE), [0], 2, 2.0, latent=z, keep_B1hw=keep_11hw)
    assert torch.allclose(painted[..., :4], z[..., :4], atol=1e-5)
    assert (painted[..., 4:] - z[..., 4:]).abs().max() > 0.1
