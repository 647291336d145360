"""FLUX.1 Kontext paints what diffusers' own pipeline paints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from uniworld.uniworld_core import Condition, Conversation, Turn, UniWorld
from uniworld.uniworld_core.errors import UniWorldError
from uniworld.uniworld_core.families.kontext.references import encode_references, reference_positions
from uniworld.uniworld_core.families.kontext.sizes import preferred_size
from uniworld.uniworld_core.images.sizes import Size
from uniworld.uniworld_core.loading.offload import stream_blocks
from uniworld.uniworld_core.sampling.packing import pack, unpack
from uniworld.uniworld_core.sampling.sampler import make_noise

PROMPT = "Replace the blue square with a green triangle."
SIDE, CELLS = 64, 8


def picture(width: int, height: int, color: tuple[int, int, int] = (30, 40, 220)) -> Image.Image:
    made = Image.new("RGB", (width, height), color)
    made.paste((250, 240, 10), (4, 4, width // 2, height // 2))
    return made


@pytest.fixture(scope="module")
def model(kontext_folder: Path) -> UniWorld:
    return UniWorld.from_pretrained(kontext_folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def pipeline(kontext_folder: Path) -> Any:
    diffusers = pytest.importorskip("diffusers")
    if not hasattr(diffusers, "FluxKontextPipeline"):
        pytest.skip("this diffusers has no FluxKontextPipeline")
    made = diffusers.FluxKontextPipeline.from_pretrained(kontext_folder, torch_dtype=torch.float32)
    made.set_progress_bar_config(disable=True)
    return made


def published(pipeline: Any, seed: int, image: Image.Image | None, **settings: Any) -> torch.Tensor:
    """The latents of diffusers' pipeline, on the side of the VAE."""
    noise = make_noise([seed], (16, CELLS, CELLS))
    config = pipeline.vae.config
    found = pipeline(
        image=image,
        prompt=PROMPT,
        height=SIDE,
        width=SIDE,
        max_area=SIDE * SIDE,
        _auto_resize=False,
        latents=pack(noise, 2),
        output_type="latent",
        **settings,
    ).images
    return unpack(found, CELLS, CELLS, 2) / config.scaling_factor + config.shift_factor


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))


class TestDiffusersPipeline:
    @pytest.mark.parametrize("size", [None, (64, 64), (96, 48)])
    def test_an_edit_and_a_picture_from_text(
        self, model: UniWorld, pipeline: Any, size: tuple[int, int] | None
    ) -> None:
        image = None if size is None else picture(*size)
        expected = published(pipeline, 7, image, num_inference_steps=3, guidance_scale=2.5)
        refs = model.reference([] if image is None else [image])
        condition = model.encode(PROMPT, refs=refs)
        assert condition.tokens.shape[1] == 512
        found = model.sample(condition, SIDE, SIDE, steps=3, guidance=2.5, seed=7)
        close(found, expected)
        if image is not None:
            other = model.sample(model.encode(PROMPT), SIDE, SIDE, steps=3, guidance=2.5, seed=7)
            assert (other - found).abs().max() > 1e-3

    def test_the_length_of_t5_is_an_argument(self, model: UniWorld, pipeline: Any) -> None:
        expected = published(
            pipeline, 1, picture(64, 64), num_inference_steps=1, guidance_scale=3.5, max_sequence_length=128
        )
        condition = model.encode(PROMPT, refs=model.reference([picture(64, 64)]), t5_length=128)
        close(model.sample(condition, SIDE, SIDE, steps=1, seed=1), expected)

    def test_preferred_sizes_are_its_own(self) -> None:
        published = pytest.importorskip("diffusers.pipelines.flux.pipeline_flux_kontext")
        for width, height in [(1, 1), (640, 480), (480, 641), (3000, 100), (17, 5000), (1024, 1023), (1217, 703)]:
            high, wide = (max(16, side // 16 * 16) for side in (height, width))
            _, w, h = min((abs(wide / high - w / h), w, h) for w, h in published.PREFERRED_KONTEXT_RESOLUTIONS)
            assert preferred_size(height, width) == Size(h, w)


class TestReferences:
    def test_positions_of_one_reference_are_those_of_diffusers(self, pipeline: Any) -> None:
        expected = pipeline._prepare_latent_image_ids(1, 3, 5, torch.device("cpu"), torch.float32)
        expected[..., 0] = 1
        assert torch.equal(reference_positions([(3, 5)], torch.device("cpu")), expected)

    def test_no_two_of_several_references_share_a_position(self) -> None:
        grids = [(3, 5), (4, 2), (2, 2), (1, 9)]
        positions = reference_positions(grids, torch.device("cpu"))
        assert len({tuple(row) for row in positions.tolist()}) == len(positions) == sum(r * c for r, c in grids)
        # Below the first, which is wider than high; then beside both; then below all.
        starts = [0, 15, 23, 27]
        assert positions[starts].tolist() == [[1, 0, 0], [1, 3, 0], [1, 0, 5], [1, 7, 0]]

    def test_a_second_reference_changes_the_picture(self, model: UniWorld) -> None:
        first, second = picture(60, 40), picture(40, 90, (200, 20, 20))
        painted = [
            model.sample(model.encode(PROMPT, refs=model.reference(shown), t5_length=8), 32, 48, steps=1, seed=2)
            for shown in ([first], [first, second], [second, first])
        ]
        assert painted[0].shape == (1, 16, 4, 6)
        assert all((a - b).abs().max() > 1e-3 for a, b in [painted[:2], painted[1:]])

    def test_an_item_of_a_batch_equals_itself_alone(self, model: UniWorld) -> None:
        prompts, shown = [PROMPT, "Make it red."], [picture(64, 64), picture(80, 80, (1, 200, 3))]
        refs = [model.reference([one]) for one in shown]
        together = model.encode(prompts, refs=refs, t5_length=8)
        found = model.sample(together, 32, 32, steps=2, seed=[3, 4])
        for i in range(2):
            alone = model.encode(prompts[i], refs=refs[i], t5_length=8)
            close(found[i : i + 1], model.sample(alone, 32, 32, steps=2, seed=3 + i))

    @pytest.mark.parametrize("shown", [[[picture(64, 64)], []], [[picture(64, 64)], [picture(64, 20)]]])
    def test_items_whose_references_do_not_match_are_refused(
        self, model: UniWorld, shown: list[list[Image.Image]]
    ) -> None:
        refs = [model.reference(item) for item in shown]
        with pytest.raises(UniWorldError, match="different numbers or aspect ratios"):
            model.encode([PROMPT, PROMPT], refs=refs, t5_length=8)

    def test_of_a_conversation_the_last_turn_with_pictures_counts(self, model: UniWorld) -> None:
        old, new = model.reference([picture(64, 64)]), model.reference([picture(64, 64, (200, 20, 20))])
        chat = Conversation([Turn("user", "Paint.", old), Turn("assistant", "", new), Turn("user", PROMPT)])
        found, expected = (model.encode(one, refs=refs, t5_length=8) for one, refs in ((chat, None), (PROMPT, new)))
        assert torch.equal(found.tokens, expected.tokens)
        assert torch.equal(found.references[0], expected.references[0])
        assert not torch.equal(found.references[0], model.encode(PROMPT, refs=old, t5_length=8).references[0])

    def test_a_trainer_may_choose_their_size(self, model: UniWorld) -> None:
        (latent,) = encode_references(model.vae, [[picture(512, 512)], [picture(100, 100)]], 32)
        assert latent.shape == (2, 16, 4, 4)


class TestPainter:
    def condition(self, model: UniWorld) -> Condition:
        return model.encode(PROMPT, refs=model.reference([picture(64, 64)]), t5_length=8)

    def test_the_velocity_is_differentiable(self, model: UniWorld) -> None:
        condition, latent = self.condition(model), make_noise([1], (16, 4, 4))
        weight = model.dit.transformer.x_embedder.weight
        weight.requires_grad_(True)
        try:
            velocity = model.dit.velocity(latent, torch.tensor([0.5]), condition, 2.5)
            velocity.square().mean().backward()
            assert weight.grad is not None
            assert weight.grad.abs().max() > 0
            with torch.no_grad():
                sampled = model.dit.velocity_for(condition, 2.5, latent.shape)(latent, 0.5)
            close(sampled, velocity.detach())
        finally:
            weight.requires_grad_(False)
            weight.grad = None

    def test_references_of_another_format_are_refused(self, model: UniWorld) -> None:
        condition = self.condition(model)
        broken = Condition(condition.tokens, condition.pooled, references=(torch.zeros(1, 4, 8, 8),))
        with pytest.raises(UniWorldError, match=r"The latent has shape \[1, 4, 8, 8\]; as a reference"):
            model.sample(broken, 32, 32, steps=1)

    def test_a_conditioning_of_another_family_names_the_remedy(self, model: UniWorld) -> None:
        foreign = Condition(torch.zeros(1, 3, 48), None, references=(torch.zeros(1, 16, 1, 8, 8),))
        with pytest.raises(UniWorldError, match=r"no pooled prompt: encode the prompt with"):
            model.sample(foreign, 32, 32, steps=1)

    def test_v1_refuses_its_references(self, model: UniWorld) -> None:
        condition = replace(self.condition(model), family=None)  # as from ComfyUI's own text encoders
        v1 = UniWorld.from_pretrained("tiny", dtype=torch.float32)
        with pytest.raises(UniWorldError, match="reference latents"):
            v1.sample(condition, 32, 32, steps=1)

    @pytest.mark.parametrize("options", [{"storage": "int8"}, {"offload": "blocks"}, {"offload": "disk"}])
    def test_storage_and_offload(self, model: UniWorld, kontext_folder: Path, options: dict[str, str]) -> None:
        other = UniWorld.from_pretrained(kontext_folder, dtype=torch.float32, **options)
        if "offload" in options:
            pytest.importorskip("accelerate")
            try:
                stream_blocks(UniWorld.from_pretrained(kontext_folder).dit, torch.device("cpu"))
            except UniWorldError:
                pytest.skip("this diffusers streams blocks only on machines with a GPU")
        refs = model.reference([picture(64, 64)])
        found, expected = (
            one.sample(one.encode(PROMPT, refs=refs, t5_length=8), 32, 32, steps=1, seed=3) for one in (other, model)
        )
        difference = float((found - expected).abs().max())
        assert difference < 0.1
        assert (difference > 1e-6) == ("storage" in options)

    def test_cache_and_dpm2(self, model: UniWorld) -> None:
        condition = self.condition(model)
        plain, cached, second = (
            model.sample(condition, 32, 32, steps=4, seed=3, **options)
            for options in ({}, {"cache": "strong"}, {"solver": "dpm2"})
        )
        assert torch.isfinite(cached).all()
        assert (second - plain).abs().max() > 1e-4

    def test_the_size_to_paint_is_a_preferred_one(self, model: UniWorld) -> None:
        assert model.size_for(480, 640) == preferred_size(480, 640, 64) == Size(48, 80)
        assert model.size_for(480, 640, 1024) == Size(880, 1184)
