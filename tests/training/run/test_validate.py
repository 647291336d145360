"""Validation: prompts are encoded once and painted with the current weights onto a contact sheet."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from uniworld.training.config.settings import ValidationPrompt, ValidationSettings
from uniworld.training.data.encode import Encoder, EncodeSettings
from uniworld.training.objective.step import DenoiseTower, StepSettings
from uniworld.training.objective.trainable import set_trainable
from uniworld.training.run.validate import SheetRow, Validator, contact_sheet
from uniworld.uniworld_core import UniWorld

SETTINGS = ValidationSettings(
    prompts=(ValidationPrompt("A red circle."), ValidationPrompt("Make it blue.", ("photo.png",))), steps=2, size=32
)


@pytest.fixture(autouse=True)
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 20), (200, 30, 30)).save("photo.png")


def tower_of(model: UniWorld) -> DenoiseTower:
    tower = DenoiseTower(model.projectors, model.dit, StepSettings())
    set_trainable(tower, ["denoise_projector", "siglip_projector"])
    return tower


@pytest.fixture
def fresh() -> UniWorld:
    """A separate tiny model, which the test may train."""
    return UniWorld.from_pretrained("tiny", dtype=torch.float32)


def test_a_prompt_is_painted_as_by_the_model(fresh: UniWorld) -> None:
    validator = Validator(Encoder(fresh, EncodeSettings(area=32 * 32)), SETTINGS)
    painted = validator.paint(tower_of(fresh))
    refs = fresh.reference([Image.open("photo.png")])
    options = {"height": 32, "width": 32, "steps": 2}
    for latent, (prompt, given) in zip(painted, (("A red circle.", None), ("Make it blue.", refs))):
        condition = fresh.encode(prompt, refs=given, use_t5=False)
        torch.testing.assert_close(latent, fresh.sample(condition, **options), rtol=1e-4, atol=1e-4)


def test_the_sheet_shows_references_and_painted_pictures(fresh: UniWorld, tmp_path: Path) -> None:
    validator = Validator(Encoder(fresh, EncodeSettings(area=32 * 32)), SETTINGS)
    validator.write(validator.paint(tower_of(fresh)), tmp_path / "validation" / "step.png")
    with Image.open(tmp_path / "validation" / "step.png") as sheet:
        assert sheet.size == (2 * 264 + 8, 2 * 288)
        assert sheet.getpixel((8 + 128, 288 + 16 + 8 + 128)) == (200, 30, 30)
    assert not list((tmp_path / "validation").glob("*.part"))


def test_the_next_sheet_uses_the_new_weights(fresh: UniWorld) -> None:
    tower = tower_of(fresh)
    validator = Validator(Encoder(fresh, EncodeSettings(area=32 * 32)), SETTINGS)
    before, again = validator.paint(tower), validator.paint(tower)
    assert all(torch.equal(one, other) for one, other in zip(before, again))
    with torch.no_grad():
        tower.projectors.denoise_projector[2].bias.add_(1.0)
    assert not any(torch.equal(one, other) for one, other in zip(before, validator.paint(tower)))


def test_painting_leaves_the_model_trainable(fresh: UniWorld) -> None:
    tower = tower_of(fresh)
    Validator(Encoder(fresh, EncodeSettings(area=32 * 32)), SETTINGS).paint(tower)
    weight = tower.projectors.denoise_projector[0].weight
    weight.sum().backward()
    assert weight.grad is not None


def test_bfloat16_paints_with_float32_trained_parameters() -> None:
    half = UniWorld.from_pretrained("tiny", dtype=torch.bfloat16)
    painted = Validator(Encoder(half, EncodeSettings(area=32 * 32)), SETTINGS).paint(tower_of(half))
    assert all(torch.isfinite(latent).all() for latent in painted)


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        (
            (ValidationPrompt("Make it blue.", ("nowhere.png",)),),
            "nowhere.png' does not exist: check `images` in validation.prompts",
        ),
        ((ValidationPrompt(" "),), "The validation prompt ' ' cannot be painted"),
    ],
)
def test_an_invalid_prompt_is_reported_at_the_start(
    fresh: UniWorld, prompts: tuple[ValidationPrompt, ...], words: str
) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        Validator(Encoder(fresh, EncodeSettings(area=32 * 32)), ValidationSettings(prompts=prompts, size=32))
    assert words in str(caught.value)


def test_without_prompts_nothing_is_loaded_painted_or_written(fresh: UniWorld, tmp_path: Path) -> None:
    validator = Validator(Encoder(fresh, EncodeSettings()), ValidationSettings())
    assert not {"understanding", "siglip", "dit"} & set(vars(fresh))
    latents = validator.paint(tower_of(fresh))
    validator.write(latents, tmp_path / "sheet.png")
    assert latents == []
    assert not (tmp_path / "sheet.png").exists()


def test_the_parts_that_encode_prompts_do_not_stay_in_memory(fresh: UniWorld) -> None:
    Validator(Encoder(fresh, EncodeSettings(area=32 * 32)), SETTINGS)
    assert not {"understanding", "siglip", "text"} & set(vars(fresh))


def test_long_and_non_ascii_prompts_fit_the_sheet() -> None:
    row = SheetRow("Füge 一只猫 " + "very " * 200, (), Image.new("RGB", (5, 9)))
    assert contact_sheet([row, row]).size == (272, 576)
