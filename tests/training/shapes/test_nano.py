"""Nano from nothing by the one command: it goes on where it was stopped, and what comes out beats an untrained model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from uniworld.training.cli import main
from uniworld.training.shapes import nano
from uniworld.training.shapes.exam import examine
from uniworld.training.shapes.nano import train_nano
from uniworld.training.shapes.recipe import Length, read_recipe
from uniworld.training.shapes.report import Report
from uniworld.uniworld_core import UniWorld

_BLINK = Length(steps=2, learning_rate=1e-3, batch=4)
BLINK = replace(
    read_recipe("quick"),
    **dict.fromkeys(("vae", "vlm", "siglip", "flux", "stage1", "stage2"), _BLINK),
    samples=12,
    routing=8,
    examined=1,
)


def opened(folder: Path) -> UniWorld:
    return UniWorld.from_pretrained(folder / "uniworld", folder / "flux", folder / "siglip", dtype=torch.float32)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.relative_to(folder)}:{name}": tensor
        for file in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


@pytest.mark.slow
def test_stopped_at_any_step_it_goes_on_to_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train_nano(tmp_path / "whole", device="cpu", recipe=BLINK)

    class Stopped(Exception):
        pass

    for step in ("siglip", "cache", "routing", "finish"):
        with monkeypatch.context() as patch:

            def stop(self: object, step: str = step) -> None:
                raise Stopped(step)

            patch.setattr(nano._Work, step, stop)
            with pytest.raises(Stopped, match=step):
                train_nano(tmp_path / "pieces", device="cpu", recipe=BLINK)
    pieces = train_nano(tmp_path / "pieces", device="cpu", recipe=BLINK)
    found, expected = tensors(pieces), tensors(whole)
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    changed = [file.stat().st_mtime_ns for file in sorted(pieces.rglob("*"))]
    train_nano(tmp_path / "pieces", device="cpu", recipe=BLINK)
    assert [file.stat().st_mtime_ns for file in sorted(pieces.rglob("*"))] == changed
    assert sum(file.stat().st_size for file in pieces.rglob("*") if file.is_file()) < 60e6


def test_every_recipe_is_whole_and_the_quick_one_the_shortest() -> None:
    full, gpu, quick = (read_recipe(name) for name in ("full", "gpu", "quick"))
    for name in ("vae", "vlm", "siglip", "flux", "stage1", "stage2"):
        assert getattr(quick, name).steps * 20 < getattr(full, name).steps
        assert getattr(gpu, name).batch > getattr(full, name).batch


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    assert main(["train", "nano", "--quick", "--device", "cpu", "--folder", str(tmp_path / "file")]) != 0
    said = capsys.readouterr().err
    assert "file" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_the_quick_command_beats_an_untrained_model_by_a_wide_margin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "nano", "--quick", "--device", "cpu", "--folder", str(tmp_path / "quick")]) == 0
    made = Path(capsys.readouterr().out.strip().splitlines()[-1])
    trained = opened(made)
    untrained = opened(train_nano(tmp_path / "untrained", device="cpu", recipe=BLINK))

    def exam(model: UniWorld) -> Report:
        return examine(model, count=12, kinds=("remove", "reconstruct", "question"), steps=8, batch=12)

    after, before = ({kind.kind: kind for kind in exam(model).kinds()} for model in (trained, untrained))
    for kind in ("remove", "reconstruct"):
        better, worse = after[kind].psnr, before[kind].psnr
        assert better is not None
        assert worse is not None
        assert better > worse + 3  # dB: half the error
    assert min(kind.routed_right or 0 for kind in after.values()) >= 0.9
    log = (tmp_path / "quick" / "stage2" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in log]
    assert sum(losses[-2:]) < sum(losses[:2])
