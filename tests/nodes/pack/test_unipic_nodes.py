"""The nodes of UniPic on a tiny checkpoint in models/unipic, and what they say of models and latents of other families."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from uniworld.nodes import host
from uniworld.nodes.pack.conditioning import EncodeCondition, EncodeReference
from uniworld.nodes.pack.folders import checkpoint_choices
from uniworld.nodes.pack.latents import samples_of
from uniworld.nodes.pack.loaders import LoadUniWorld
from uniworld.nodes.pack.masks import CompositeEdit
from uniworld.nodes.pack.sampling import LatentByAspect, Sampler, Scheduler
from uniworld.nodes.pack.understanding import Understand
from uniworld.nodes.pack.unipic import UniPicCondition, UniPicSampler
from uniworld.nodes.pack.vae import VAEDecode, VAEEncode
from uniworld.uniworld_core.errors import UniWorldError
from uniworld.uniworld_core.families.unipic.config import UNIPIC_LATENTS


class Watched:
    """A host in whose models folder a UniPic lies, and the progress that it got."""

    def __init__(self, models: Path) -> None:
        self.progress: list[tuple[int, int, Image.Image | None]] = []
        self.host = host.PlainHost(models=[models], progress_hook=lambda *told: self.progress.append(told))


@pytest.fixture
def watched(unipic: Path, tmp_path: Path) -> Iterator[Watched]:
    (tmp_path / "unipic").mkdir()
    (tmp_path / "unipic" / "Skywork-UniPic-1.5B").symlink_to(unipic, target_is_directory=True)
    (tmp_path / "unipic" / "empty").mkdir()
    made = Watched(tmp_path)
    host.install(made.host)
    yield made
    host.install(None)


def load(checkpoint: str = "Skywork-UniPic-1.5B") -> dict[str, Any]:
    wires = LoadUniWorld().execute(checkpoint, "auto", "auto", "float32", "cpu")
    return dict(zip(LoadUniWorld.RETURN_NAMES, wires))


def painted(model: dict[str, Any], conditioning: Any, **settings: Any) -> Any:
    values = {"seed": 1, "iterations": 2, "guidance": 3.0, "schedule": "constant", "temperature": 1.0, "side": 0}
    return UniPicSampler().execute(model["dit"], conditioning, **(values | {"batch_size": 1} | settings))[0]


def samples(latent: Any) -> torch.Tensor:
    return samples_of(latent, UNIPIC_LATENTS, "this test")


def picture(height: int = 40, width: int = 60) -> torch.Tensor:
    return torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(2))


@pytest.mark.usefixtures("watched")
def test_the_loader_lists_folders_of_models_unipic() -> None:
    assert list(checkpoint_choices()) == ["Skywork-UniPic-1.5B", "nano", "tiny"]
    model = load()
    assert not model["siglip"].available
    assert not model["text"].available


def test_text_to_image_reports_work_and_previews(watched: Watched) -> None:
    model = load()
    (conditioning,) = UniPicCondition().execute(model["dit"], "a red ball", "", 0)
    latent = painted(model, conditioning, batch_size=2, vae=model["vae"])
    assert (samples(latent).shape, latent["uniworld_format"]) == ((2, 16, 4, 4), "unipic")
    values = [value for value, _, _ in watched.progress]
    assert values == sorted(values)
    assert (len(set(values)) > 20, watched.progress[-1][:2]) == (True, (200, 200))
    first, last = (shown for _, _, shown in watched.progress if shown is not None)
    assert first.resize((4, 4), Image.Resampling.BOX).getpixel((0, 0)) is not None
    grays = [sum(color == (127, 127, 127) for color in shown.getdata()) for shown in (first, last)]
    assert grays[0] > 10 * (grays[1] + 1)
    alone = painted(model, conditioning, seed=2)
    torch.testing.assert_close(samples(alone), samples(latent)[1:], rtol=1e-4, atol=1e-3)
    assert VAEDecode().execute(model["vae"], latent)[0].shape == (2, 64, 64, 3)


def test_an_edit_is_put_back_into_the_whole_picture(watched: Watched) -> None:
    model, source = load(), picture()
    (conditioning,) = UniPicCondition().execute(model["dit"], "make it red", "a bad image", 32, source, model["vae"])
    latent = painted(model, conditioning, iterations=1)
    (after,) = VAEDecode().execute(model["vae"], latent)
    assert after.shape == (1, 32, 32, 3)
    (whole,) = CompositeEdit().execute(source, after, torch.ones(1, 32, 32), 0, "crop")
    assert torch.equal(whole[:, :, :10], source[:, :, :10])
    assert torch.equal(whole[:, :, 50:], source[:, :, 50:])
    assert not torch.equal(whole, source)
    with pytest.raises(UniWorldError, match="was encoded at 32x32, but 64x64"):
        painted(model, conditioning, side=64)


def test_the_nodes_of_all_families_work_with_it(watched: Watched) -> None:
    model = load()
    (references,) = EncodeReference().execute(picture(), model["siglip"])
    conditioning, _ = EncodeCondition().execute(model["vlm"], "make it red", references, model["text"])
    assert samples(painted(model, conditioning, iterations=1)).shape == (1, 16, 4, 4)
    answer, _ = Understand().execute(model["vlm"], "what?", 3, 0.0, 0, references)
    assert isinstance(answer, str)
    (latent,) = VAEEncode().execute(model["vae"], picture(32, 48))
    assert (samples(latent).shape, latent["uniworld_format"]) == ((1, 16, 2, 3), "unipic")


def test_models_and_latents_of_other_families_are_refused(watched: Watched) -> None:
    model, other = load(), load("tiny")
    (conditioning,) = UniPicCondition().execute(model["dit"], "a red ball", "", 0)
    empty, _, _ = LatentByAspect().execute(64, 64, 64, "any_1ratio", 1, dit=other["dit"])
    own, _, _ = LatentByAspect().execute(64, 64, 64, "native", 1, dit=model["dit"])
    errors = {
        "takes UniPic, but dit is a model of UniWorld-V1": lambda: UniPicCondition().execute(other["dit"], "a", "", 0),
        "UniPic Sampler takes UniPic": lambda: painted(other, conditioning),
        "The VAE of UniWorld UniPic Sampler belongs to UniWorld-V1": lambda: painted(
            model, conditioning, vae=other["vae"]
        ),
        "The prompt is empty": lambda: UniPicCondition().execute(model["dit"], " ", "", 0),
        "The prompt contains <image>": lambda: UniPicCondition().execute(model["dit"], "a <image>", "", 0),
        "has an image but no VAE": lambda: UniPicCondition().execute(model["dit"], "a", "", 0, picture()),
        "the batch has 2": lambda: UniPicCondition().execute(model["dit"], "a", "", 0, picture().repeat(2, 1, 1, 1)),
        "belongs to the family 'flux', but the model of UniWorld VAE Decode": lambda: VAEDecode().execute(
            model["vae"], empty
        ),
        "belongs to the family 'unipic', but the model of UniWorld VAE Decode": lambda: VAEDecode().execute(
            other["vae"], own
        ),
        "encoded by UniPic, and UniWorld-V1 is to paint": lambda: Sampler().execute(
            other["dit"], conditioning, own, 0, 1, 3.5, 1.0
        ),
        "noise levels, and UniPic has none: use UniWorld UniPic Sampler": lambda: Sampler().execute(
            model["dit"], conditioning, own, 0, 1, 3.5, 1.0
        ),
        "UniWorld Scheduler takes models with noise levels": lambda: Scheduler().execute(model["dit"], own, 4, 1.0),
    }
    for named, call in errors.items():
        with pytest.raises(UniWorldError, match=named):
            call()


def test_a_cancelled_run_stops_within_an_iteration(watched: Watched) -> None:
    model = load()
    (conditioning,) = UniPicCondition().execute(model["dit"], "a red ball", "", 0)
    count = 0

    def stop(*_: Any) -> None:
        nonlocal count
        count += 1
        if count == 3:
            watched.host.interrupted.set()

    watched.host.progress_hook = stop
    with pytest.raises(host.Interrupted):
        painted(model, conditioning, iterations=1)
    assert count == 3


@pytest.mark.usefixtures("watched")
def test_the_loader_runs_again_when_a_file_was_replaced(unipic: Path, tmp_path: Path) -> None:
    mine = Path(shutil.copytree(unipic, tmp_path / "unipic" / "mine"))
    states = [LoadUniWorld.IS_CHANGED("mine"), LoadUniWorld.IS_CHANGED("mine", "auto", "auto", storage="int8")]
    assert states[0] == states[1]
    for file in (mine / "kl16.ckpt", *mine.glob("*/config.json")):
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(content)
        states.append(LoadUniWorld.IS_CHANGED("mine"))
    assert len(set(states)) == 3


def test_words_are_checked_with_the_workflow() -> None:
    validate = UniPicCondition.VALIDATE_INPUTS
    assert validate("a red ball", "") is True
    assert validate(None, " ") is True
    assert "The prompt is empty" in str(validate(" ", "blurry"))
    assert "The prompt contains <image>" in str(validate("a <image>", None))
    assert "The negative prompt contains <image>" in str(validate("a red ball", "a <image>"))
    assert "The negative prompt contains <image>" in str(validate(None, "a <image>"))


@pytest.mark.usefixtures("watched")
def test_values_are_checked_before_the_weights_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load()
    (conditioning,) = UniPicCondition().execute(model["dit"], "a red ball", "", 0)
    monkeypatch.setattr(type(model["dit"]), "on_device", lambda *_, **__: pytest.fail("the weights were loaded"))
    with pytest.raises(UniWorldError, match="The prompt is empty"):
        UniPicCondition().execute(model["dit"], "", "", 0)
    for side in (100, 8):
        with pytest.raises(UniWorldError, match="multiple of 16"):
            UniPicCondition().execute(model["dit"], "a red ball", "", side)
        with pytest.raises(UniWorldError, match="multiple of 16"):
            painted(model, conditioning, side=side)
    with pytest.raises(UniWorldError, match="iterations is 17; it must be from 1 to the 16 tokens"):
        painted(model, conditioning, iterations=17)
