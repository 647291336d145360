"""Nano from scratch: training resumes where it was stopped, and the result is better than an untrained model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from uniworld.training.cli.main import main
from uniworld.training.data.encode import Encoder, EncodeSettings
from uniworld.training.data.samples import Sample
from uniworld.training.objective.batch import Draws
from uniworld.training.objective.step import DenoiseTower, StepSettings
from uniworld.training.shapes.exam.exam import exam_tasks, examine
from uniworld.training.shapes.nano import nano
from uniworld.training.shapes.nano.curves import draw_curves
from uniworld.training.shapes.nano.nano import train_nano
from uniworld.training.shapes.nano.recipe import Hyperparameters, read_recipe
from uniworld.training.shapes.standins import fit
from uniworld.training.shapes.tasks.tasks import ShapesTask
from uniworld.uniworld_core import UniWorld
from uniworld.uniworld_core.backbones.flux_dit import DiT
from uniworld.uniworld_core.backbones.flux_latents import FLUX_LATENTS, read_latent_format
from uniworld.uniworld_core.loading.shipped import SHIPPED_FOLDER
from uniworld.uniworld_core.prompts.scope import read_scope

_BLINK = Hyperparameters(steps=2, learning_rate=1e-3, batch=4)
BLINK = replace(
    read_recipe("quick"),
    **dict.fromkeys(("vae", "decoder", "vlm", "siglip", "flux", "stage1", "stage2"), _BLINK),
    samples=12,
    routing=8,
)


def opened(folder: Path) -> UniWorld:
    return UniWorld.from_pretrained(folder / "uniworld", folder / "flux", folder / "siglip", dtype=torch.float32)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.relative_to(folder)}:{name}": tensor
        for file in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


@pytest.fixture(scope="module")
def blink(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A nano that is barely trained; tests only read it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nano, "find_spec", lambda name: None)  # no curves, which take as long as the trainings
        return train_nano(tmp_path_factory.mktemp("blink"), device="cpu", recipe=BLINK)


@pytest.mark.slow
def test_stopped_at_any_step_the_quick_command_resumes_to_the_same_model(
    blink: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(nano, "read_recipe", {"quick": BLINK}.__getitem__)
    command = ["train", "nano", "--quick", "--device", "cpu", "--folder", str(tmp_path / "pieces")]

    class Stopped(Exception):
        pass

    for step in ("siglip", "cache", "routing", "finish"):
        with monkeypatch.context() as patch:

            def stop(self: object, step: str = step) -> None:
                raise Stopped(step)

            patch.setattr(nano._NanoRun, step, stop)
            with pytest.raises(Stopped, match=step):
                train_nano(tmp_path / "pieces", device="cpu", recipe=BLINK)
    capsys.readouterr()
    assert main(command) == 0
    pieces = Path(capsys.readouterr().out.strip().splitlines()[-1])
    found, expected = tensors(pieces), tensors(blink)
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert Image.open(tmp_path / "pieces" / "curves.png").width > 1500
    assert read_latent_format(pieces / "flux").rgb != FLUX_LATENTS.rgb  # previews use this VAE's colors
    shipped = read_scope(SHIPPED_FOLDER / "nano" / "uniworld")
    assert shipped == read_scope(pieces / "uniworld")
    changed = [file.stat().st_mtime_ns for file in sorted(pieces.rglob("*"))]
    train_nano(tmp_path / "pieces", device="cpu", recipe=BLINK)
    assert [file.stat().st_mtime_ns for file in sorted(pieces.rglob("*"))] == changed
    assert sum(file.stat().st_size for file in pieces.rglob("*") if file.is_file()) < 60e6


def test_curves_of_a_folder_without_logs_are_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="contains no training logs: give the folder of `uniworld train nano`"):
        draw_curves(tmp_path, tmp_path / "curves.png")


def test_every_recipe_is_complete_and_the_quick_one_the_shortest() -> None:
    full, gpu, quick = (read_recipe(name) for name in ("full", "gpu", "quick"))
    for name in ("vae", "decoder", "vlm", "siglip", "flux", "stage1", "stage2"):
        assert getattr(quick, name).steps * 20 < getattr(full, name).steps
        assert getattr(gpu, name).batch > getattr(full, name).batch


def test_a_folder_of_another_recipe_is_rejected_before_training(tmp_path: Path) -> None:
    work = nano._NanoRun(tmp_path, BLINK, "cpu", lambda *_: None)
    assert work.recipe == BLINK
    nano._NanoRun(tmp_path, BLINK, "cpu", lambda *_: None)  # the same recipe resumes
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"another recipe .* choose another folder"):
        train_nano(tmp_path, device="cpu")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_cannot_be_written_is_a_user_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    assert main(["train", "nano", "--quick", "--device", "cpu", "--folder", str(tmp_path / "file")]) == 2
    error = capsys.readouterr().err
    assert "file/standins' cannot be written: Not a directory. Free disk space or choose another folder" in error


class _Drawn:
    """A picture of the world as the picture of a sample."""

    def __init__(self, picture: Image.Image) -> None:
        self.picture = picture

    def open(self) -> Image.Image:
        return self.picture


def held_out() -> list[ShapesTask]:
    return [task for kind in ("remove", "recolour", "background", "reconstruct") for task in exam_tasks(kind, 6)]


def vae_psnr(model: UniWorld) -> float:
    """PSNR of held-out pictures after encoding and decoding."""
    shown = fit.uint8_batch([task.target for task in held_out()]).float() / 255
    with torch.no_grad():
        decoded = model.vae.decode(model.vae.encode(shown))
    return float(-10 * ((shown - decoded) ** 2).mean().log10())


def flow_loss(model: UniWorld, dit: DiT) -> float:
    """Mean loss of the training step on held-out tasks, with this model's condition and that DiT."""
    samples: list[Any] = [
        Sample(f"held out#{i}", task.prompt, tuple(map(_Drawn, task.references)), _Drawn(task.target), False)  # type: ignore[arg-type]
        for i, task in enumerate(held_out())
    ]
    items: list[Any] = Encoder(model, EncodeSettings(area=128 * 128, ratios="any_1ratio"))(samples)
    tower = DenoiseTower(model.projectors, dit, StepSettings())
    with torch.no_grad():
        return float(tower(tower.collate(items, Draws.of(0, range(len(items)), items[0].latent.shape))).mean())


@pytest.mark.acceptance
def test_the_quick_command_beats_an_untrained_model_by_a_wide_margin(
    blink: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(nano, "find_spec", lambda name: None)  # no curves
    assert main(["train", "nano", "--quick", "--device", "cpu", "--folder", str(tmp_path / "quick")]) == 0
    trained = opened(Path(capsys.readouterr().out.strip().splitlines()[-1]))
    untrained = opened(blink)
    assert vae_psnr(trained) > vae_psnr(untrained) + 1.5
    # The untrained DiT predicts the same latents as the trained one.
    assert flow_loss(trained, trained.dit) < 0.4 * flow_loss(trained, untrained.dit)
    kinds = examine(trained, count=20, kinds=("remove", "text_to_image", "question"), steps=1, batch=20).kinds()
    routed = [kind.routed_right for kind in kinds]
    assert sum(share or 0 for share in routed) / len(routed) > 0.85
