"""The training loop in one process: results and metrics, errors, resuming and stopping."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel
from PIL import Image
from safetensors.torch import load_file, save_file
from uniworld.training.config.file import config_from_dict, load_config, parse_toml
from uniworld.training.config.settings import Config
from uniworld.training.data.loader import plan_of
from uniworld.training.data.published import PublishedSamples
from uniworld.training.engine import checkpoints
from uniworld.training.publish.export import export_run
from uniworld.training.run import folder as run_folder
from uniworld.training.run import loop
from uniworld.training.run.fill_cache import fill_cache
from uniworld.training.run.loop import train
from uniworld.training.run.metrics import read_lines
from uniworld.training.run.trainer import Trainer

Configure = Callable[..., Config]
Losses = Callable[[Path], list[float]]


def last_weights(folder: Path, prefix: str = checkpoints.WEIGHTS) -> dict[str, torch.Tensor]:
    newest = checkpoints.latest(folder / "checkpoints")
    assert newest is not None
    return checkpoints.read_tensors(newest, prefix)


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], Any]], None]:
    """`at_step(n, act)`: call `act` before step n."""

    def arrange(number: int, act: Callable[[], Any]) -> None:
        original = Trainer.train

        def train_step(self: Trainer, *arguments: Any) -> Any:
            if self.step + 1 == number:
                act()
            return original(self, *arguments)

        monkeypatch.setattr(Trainer, "train", train_step)

    return arrange


class TestRun:
    def test_logs_each_step_and_saves_its_configuration_and_last_weights(
        self, tiny_config: Configure, tmp_path: Path
    ) -> None:
        config = tiny_config()
        result = train(config, tmp_path)
        lines = read_lines(tmp_path / "metrics.jsonl")
        assert (result.steps, result.loss, result.skipped, result.interrupted) == (4, lines[-1]["loss"], 0, False)
        assert [line["step"] for line in lines] == [1, 2, 3, 4]
        assert list(lines[0]) == [
            "step",
            "epoch",
            "loss",
            "learning_rate",
            "gradient_norm",
            "samples_per_second",
            "seconds",
            "skipped",
        ]
        assert load_config(tmp_path / "config.toml") == config
        assert [one.name for one in checkpoints.finished(tmp_path / "checkpoints")] == ["step-00000004"]

    def test_trains_only_the_chosen_parts_in_float32(self, tiny_config: Configure, tmp_path: Path) -> None:
        train(tiny_config("stage.parts=denoise_projector", "model.dtype=bfloat16", "run.steps=1"), tmp_path)
        weights = last_weights(tmp_path)
        layers = ("0.weight", "0.bias", "2.weight", "2.bias")
        assert set(weights) == {f"projectors.denoise_projector.{layer}" for layer in layers}
        assert all(tensor.dtype == torch.float32 for tensor in weights.values())

    def test_starts_weights_and_ema_at_the_checkpoints_float32_values(
        self, tiny_config: Configure, tmp_path: Path, model: Any
    ) -> None:
        # With a learning rate of 0, a bfloat16 run saves exactly the checkpoint's float32 values.
        train(tiny_config("model.dtype=bfloat16", "optimizer.lr=1e-30", "run.steps=1"), tmp_path)
        for prefix in (checkpoints.WEIGHTS, checkpoints.EMA):
            kept = last_weights(tmp_path, prefix)["projectors.denoise_projector.0.weight"]
            torch.testing.assert_close(kept, model.projectors.denoise_projector[0].weight.data, rtol=0, atol=0)

    def test_overfits_repeated_samples(self, tiny_config: Configure, tmp_path: Path, losses: Losses) -> None:
        train(tiny_config("run.steps=20", "run.batch_size=8", "run.micro_batch_size=8", "optimizer.lr=0.01"), tmp_path)
        found = losses(tmp_path)
        assert sum(found[-5:]) < 0.9 * sum(found[:5])

    @pytest.mark.parametrize("micro", [2, 4])
    def test_with_gradient_accumulation_equals_the_run_without(
        self, tiny_config: Configure, tmp_path: Path, losses: Losses, micro: int
    ) -> None:
        settings = ("run.batch_size=4", "run.steps=3", "optimizer.name=adamw", "optimizer.lr=1e-3")
        train(tiny_config(*settings), tmp_path / "small")
        train(tiny_config(*settings, f"run.micro_batch_size={micro}"), tmp_path / "large")
        assert losses(tmp_path / "small") == pytest.approx(losses(tmp_path / "large"), rel=1e-5)

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_with_gradient_checkpointing_equals_the_run_without(
        self, dtype: str, tiny_config: Configure, tmp_path: Path, losses: Losses
    ) -> None:
        settings = ("run.steps=2", f"model.dtype={dtype}")
        train(tiny_config(*settings), tmp_path / "without")
        asked: list[bool] = []
        enable = FluxTransformer2DModel.enable_gradient_checkpointing
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                FluxTransformer2DModel, "enable_gradient_checkpointing", lambda *of: asked.append(True) or enable(*of)
            )
            train(tiny_config(*settings, "stage.checkpointing=true"), tmp_path / "with")
        assert asked == [True]
        assert losses(tmp_path / "with") == pytest.approx(losses(tmp_path / "without"), rel=1e-5)

    def test_on_cached_data_equals_the_run_on_fresh_data(
        self, tiny_config: Configure, tmp_path: Path, losses: Losses
    ) -> None:
        train(tiny_config(), tmp_path / "fresh")
        cached = tiny_config(f"data.cache={tmp_path / 'cache'}")
        fill_cache(cached)
        train(cached, tmp_path / "cached")
        assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "fresh"), rel=1e-5)

    @pytest.mark.parametrize("name", ["prodigy", "muon"])
    def test_with_other_optimizers_resumes_to_the_same_losses(
        self, tiny_config: Configure, tmp_path: Path, losses: Losses, name: str
    ) -> None:
        if name == "prodigy":
            pytest.importorskip("prodigyopt")
        elif not hasattr(torch.optim, "Muon"):
            pytest.skip("this PyTorch has no Muon")
        settings = (
            f"optimizer.name={name}",
            "optimizer.lr=1" if name == "prodigy" else "optimizer.lr=1e-3",
            "run.save_every=2",
        )
        train(tiny_config(*settings, "run.steps=2"), tmp_path / "halted")
        train(tiny_config(*settings), tmp_path / "halted")
        train(tiny_config(*settings), tmp_path / "whole")
        assert losses(tmp_path / "halted") == losses(tmp_path / "whole")

    def test_paints_its_validation_prompts_periodically(self, tiny_config: Configure, tmp_path: Path) -> None:
        prompts = ('validation.prompts=[{prompt = "A cat."}]', "validation.steps=1", "validation.size=32")
        train(tiny_config("run.steps=3", "run.validate_every=2", *prompts), tmp_path)
        sheets = list((tmp_path / "validation").iterdir())
        assert [sheet.name for sheet in sheets] == ["step-00000002.png"]
        assert Image.open(sheets[0]).format == "PNG"

    def test_writes_tensorboards_files(self, tiny_config: Configure, tmp_path: Path) -> None:
        pytest.importorskip("tensorboard")
        train(tiny_config("run.steps=1", "run.tensorboard=true"), tmp_path)
        assert list((tmp_path / "tensorboard").glob("events.*"))

    def test_logs_the_rate_that_prodigy_estimates(self, tiny_config: Configure, tmp_path: Path) -> None:
        pytest.importorskip("prodigyopt", reason="Prodigy is an extra")
        train(tiny_config("optimizer.name=prodigy", "optimizer.lr=1", "run.steps=14"), tmp_path)
        rates = [line["learning_rate"] for line in read_lines(tmp_path / "metrics.jsonl")]
        assert rates[0] == pytest.approx(1e-6)  # Prodigy's initial estimate
        assert rates == sorted(rates)
        assert rates[-1] > rates[0]

    def test_names_tensorboards_folder_if_the_disk_is_full(
        self,
        tiny_config: Configure,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        writer = pytest.importorskip("tensorboard.summary.writer.record_writer")

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(writer.RecordWriter, "write", full)
        with pytest.raises(ValueError, match=r"tensorboard' cannot be written: No space left"):
            train(tiny_config("run.tensorboard=true"), tmp_path)
        assert "Traceback" not in capsys.readouterr().err

    def test_prints_nothing_without_a_terminal(
        self, tiny_config: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        train(tiny_config("run.steps=1"), tmp_path)
        shown = capsys.readouterr()
        assert shown.out == ""
        assert "step" not in shown.err


class TestInitialWeights:
    def test_come_from_a_redux_file_and_an_earlier_run_in_order(
        self, tiny_config: Configure, tmp_path: Path, model: Any
    ) -> None:
        train(tiny_config("stage.parts=denoise_projector", "run.steps=1"), tmp_path / "first")
        first = last_weights(tmp_path / "first", checkpoints.EMA)
        siglip = {
            name: torch.randn_like(value) for name, value in model.projectors.siglip_projector.state_dict().items()
        }
        redux = {f"redux_{'up' if name[0] == '0' else 'down'}{name[1:]}": value for name, value in siglip.items()}
        save_file(redux, tmp_path / "redux.safetensors")
        start = f'model.start=["{tmp_path / "redux.safetensors"}", "{tmp_path / "first"}"]'
        train(tiny_config(start, "run.steps=1", "optimizer.lr=1e-30"), tmp_path / "second")
        second = last_weights(tmp_path / "second")
        for name, value in first.items():
            assert torch.equal(second[name], value)
        for name, value in siglip.items():
            assert torch.equal(second[f"projectors.siglip_projector.{name}"], value)

    def test_of_an_earlier_run_include_its_own_initial_weights(
        self, tiny_config: Configure, tmp_path: Path, model: Any
    ) -> None:
        given = torch.randn_like(model.projectors.denoise_projector[2].bias)
        save_file({"denoise_projector.2.bias": given}, tmp_path / "given.safetensors")
        once = ("run.steps=1", "optimizer.lr=1e-30")
        first = tiny_config(f"model.start={tmp_path / 'given.safetensors'}", "stage.parts=siglip_projector", *once)
        train(first, tmp_path / "first")
        train(tiny_config(f"model.start={tmp_path / 'first'}", *once), tmp_path / "second")
        assert torch.equal(last_weights(tmp_path / "second")["projectors.denoise_projector.2.bias"], given)

    @pytest.mark.parametrize(
        ("tensors", "sentence"),
        [
            ({"something.weight": torch.zeros(1)}, "something.weight does not belong to projectors or DiT"),
            ({"redux_up.weight": torch.zeros(1)}, r"with shape \[1\], but this model has"),
        ],
    )
    def test_that_do_not_match_are_named(
        self, tiny_config: Configure, tmp_path: Path, tensors: dict[str, torch.Tensor], sentence: str
    ) -> None:
        save_file(tensors, tmp_path / "start.safetensors")
        with pytest.raises(ValueError, match=sentence):
            train(tiny_config(f"model.start={tmp_path / 'start.safetensors'}"), tmp_path / "run")

    def test_that_are_missing_are_named(self, tiny_config: Configure, tmp_path: Path) -> None:
        for name, sentence in (("absent.safetensors", "cannot be read"), (".", "not a run with a finished checkpoint")):
            with pytest.raises(ValueError, match=sentence):
                train(tiny_config(f"model.start={tmp_path / name}"), tmp_path / "run")


class TestBadSamples:
    @pytest.fixture
    def spoilt(self, tiny_config: Configure, tiny_data: Path, tmp_path: Path) -> Config:
        """The tiny data with sample 1's target truncated."""
        annotations = json.loads((tiny_data.parent / "annotations.json").read_text(encoding="utf-8"))
        pictures = tiny_data.parent / "pictures"
        (tmp_path / "cut.png").write_bytes((pictures / "1.png").read_bytes()[:300])
        for annotation in annotations:
            annotation["image"] = [str(pictures / name) for name in annotation["image"]]
        annotations[1]["image"][-1] = str(tmp_path / "cut.png")
        (tmp_path / "spoilt.json").write_text(json.dumps(annotations), encoding="utf-8")
        (tmp_path / "list.txt").write_text(f"/,{tmp_path / 'spoilt.json'},true\n", encoding="utf-8")
        return tiny_config(f"data.list={tmp_path / 'list.txt'}", "run.batch_size=4", "run.steps=6")

    def test_are_logged_once_and_excluded_from_the_mean(self, spoilt: Config, tmp_path: Path, losses: Losses) -> None:
        result = train(spoilt, tmp_path / "run")
        assert result.skipped == 1
        named = read_lines(tmp_path / "run" / "skipped.jsonl")
        assert [line["key"].endswith("spoilt.json#1") for line in named] == [True]
        assert "cut.png" in named[0]["reason"]
        assert all(0 < loss < 10 for loss in losses(tmp_path / "run"))
        assert read_lines(tmp_path / "run" / "metrics.jsonl")[-1]["skipped"] == 1

    def test_above_the_limit_stop_the_run_and_are_named(self, spoilt: Config, tmp_path: Path) -> None:
        strict = replace(spoilt, data=replace(spoilt.data, bad_limit=0))
        with pytest.raises(ValueError, match=r"more than data\.bad_limit = 0.*spoilt\.json#1: .*cut\.png"):
            train(strict, tmp_path / "run")

    def test_above_the_limit_do_not_lose_progress(self, spoilt: Config, tmp_path: Path, losses: Losses) -> None:
        patient = replace(spoilt, run=replace(spoilt.run, batch_size=1))
        strict = replace(patient, data=replace(patient.data, bad_limit=0))
        with pytest.raises(ValueError, match="bad_limit"):
            train(strict, tmp_path / "run")
        met = losses(tmp_path / "run")
        kept = checkpoints.latest(tmp_path / "run" / "checkpoints")
        assert kept is not None
        assert kept.name == checkpoints.checkpoint_name(len(met))
        assert train(patient, tmp_path / "run").steps == patient.run.steps
        assert len(read_lines(tmp_path / "run" / "skipped.jsonl")) == 1
        train(patient, tmp_path / "at once")
        assert losses(tmp_path / "run") == losses(tmp_path / "at once")

    def test_that_stopped_the_run_do_not_stop_it_again_once_repaired(
        self, spoilt: Config, tiny_data: Path, tmp_path: Path
    ) -> None:
        strict = replace(spoilt, data=replace(spoilt.data, bad_limit=0))
        with pytest.raises(ValueError, match=r"cut\.png.* Fix the samples or raise data\.bad_limit"):
            train(strict, tmp_path / "run")
        shutil.copyfile(tiny_data.parent / "pictures" / "1.png", tmp_path / "cut.png")
        result = train(strict, tmp_path / "run")
        assert (result.steps, result.skipped) == (strict.run.steps, 0)
        assert read_lines(tmp_path / "run" / "skipped.jsonl") == []


class TestRunFolder:
    def test_of_a_run_that_fails_before_starting_is_removed(self, tiny_config: Configure, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="nowhere"):
            train(tiny_config(f"data.list={tmp_path / 'nowhere.txt'}", "data.cache="), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_of_a_run_whose_initial_weights_are_missing_is_removed(
        self, tiny_config: Configure, tmp_path: Path
    ) -> None:
        with pytest.raises(ValueError, match="nowhere"):
            train(tiny_config(f"model.start=['{tmp_path / 'nowhere.bin'}']"), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_saves_initial_weights_that_do_not_train(
        self, tiny_config: Configure, tmp_path: Path, losses: Losses
    ) -> None:
        first = "stage.parts=['denoise_projector']"
        then = ("stage.parts=['siglip_projector']", f"model.start=['{tmp_path / 'first'}']")
        train(tiny_config(first, "run.steps=1"), tmp_path / "first")
        for name in ("whole", "run"):
            train(tiny_config(*then, "run.steps=2" if name == "whole" else "run.steps=1"), tmp_path / name)
        export_run(tmp_path / "run", tmp_path / "before")
        train(tiny_config(first, "run.steps=3"), tmp_path / "first")
        export_run(tmp_path / "run", tmp_path / "after")
        for file in (tmp_path / "before").glob("*.safetensors"):
            assert file.read_bytes() == (tmp_path / "after" / file.name).read_bytes()
        shutil.rmtree(tmp_path / "first")
        train(tiny_config(*then, "run.steps=2"), tmp_path / "run")
        assert losses(tmp_path / "run") == losses(tmp_path / "whole")

    def test_does_not_start_from_a_damaged_run(self, tiny_config: Configure, tmp_path: Path) -> None:
        train(tiny_config("run.steps=1"), tmp_path / "first")
        file = next((tmp_path / "first" / "checkpoints" / "step-00000001").glob("*.distcp"))
        damaged = bytearray(file.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="the checkpoint is damaged"):
            train(tiny_config(f"model.start=['{tmp_path / 'first'}']", "run.steps=1"), tmp_path / "run")

    def test_resumes_with_a_model_that_was_moved(
        self, tiny_config: Configure, tiny_copy: Path, tmp_path: Path, losses: Losses
    ) -> None:
        def moved_to(place: Path, steps: int) -> Config:
            folders = {"checkpoint": "uniworld", "flux": "flux", "siglip": "siglip"}
            return tiny_config(
                *(f"model.{part}={place / folder}" for part, folder in folders.items()), f"run.steps={steps}"
            )

        train(moved_to(tiny_copy, 1), tmp_path / "run")
        train(moved_to(Path(shutil.move(tiny_copy, tmp_path / "elsewhere")), 2), tmp_path / "run")
        assert len(losses(tmp_path / "run")) == 2

    def test_for_more_processes_than_samples_per_step_is_rejected(
        self, tiny_config: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(loop, "start_world", lambda *_: nullcontext(SimpleNamespace(size=8)))
        with pytest.raises(ValueError, match=r"run\.batch_size is 2, less than the number of processes, 8"):
            train(tiny_config("run.batch_size=2"), tmp_path / "run")

    def test_of_another_trainer_is_rejected(self, tiny_config: Configure, tmp_path: Path) -> None:
        with run_folder.lock(tmp_path), pytest.raises(ValueError, match="Another trainer uses the run folder"):
            train(tiny_config(), tmp_path)

    def test_of_another_configuration_is_rejected_with_every_key_that_differs(
        self, tiny_config: Configure, tmp_path: Path
    ) -> None:
        train(tiny_config("run.steps=1"), tmp_path)
        other = tiny_config("optimizer.lr=0.5", "run.seed=6", "run.steps=2")
        with pytest.raises(
            ValueError, match=r"another configuration: optimizer\.lr was 0\.001 and is now 0\.5; run\.seed"
        ):
            train(other, tmp_path)

    def test_resumes_with_more_steps_and_other_changeable_keys(
        self, tiny_config: Configure, tmp_path: Path, losses: Losses
    ) -> None:
        train(tiny_config("run.steps=1"), tmp_path)
        result = train(tiny_config("run.steps=3", "run.keep=1", "run.micro_batch_size=2"), tmp_path)
        assert result.steps == 3
        assert len(losses(tmp_path)) == 3

    def test_with_a_cosine_schedule_does_not_accept_more_steps(self, tiny_config: Configure, tmp_path: Path) -> None:
        train(tiny_config("run.steps=1", "optimizer.schedule=cosine"), tmp_path)
        with pytest.raises(ValueError, match=r"run\.steps was 1 and is now 3"):
            train(tiny_config("run.steps=3", "optimizer.schedule=cosine"), tmp_path)

    def test_of_a_finished_run_has_nothing_to_do(self, tiny_config: Configure, tmp_path: Path) -> None:
        train(tiny_config("run.steps=1"), tmp_path)
        again = train(tiny_config("run.steps=1"), tmp_path)
        assert (again.steps, again.loss) == (1, None)

    def test_restores_the_random_state_of_every_library(
        self, tiny_config: Configure, tmp_path: Path, at_step: Callable[..., None]
    ) -> None:
        def draw() -> tuple[float, float, float]:
            return float(torch.rand(())), random.random(), float(np.random.rand())

        train(tiny_config("run.steps=1"), tmp_path)
        wanted = draw()
        found: list[tuple[float, float, float]] = []
        at_step(2, lambda: found.append(draw()))
        train(tiny_config("run.steps=2"), tmp_path)
        assert found == [wanted]

    def test_drops_metrics_of_steps_after_the_last_checkpoint(
        self, tiny_config: Configure, tmp_path: Path, losses: Losses
    ) -> None:
        train(tiny_config("run.steps=2"), tmp_path)
        logged = losses(tmp_path)
        with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write('{"step": 3, "loss": 1.0}\n{"step": 4, "lo')  # a kill leaves a truncated line
        train(tiny_config("run.steps=3"), tmp_path)
        assert losses(tmp_path)[:2] == logged
        assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1, 2, 3]

    def test_keeps_the_order_of_its_samples_when_a_picture_is_lost_later(
        self, tiny_config: Configure, tiny_data: Path, tmp_path: Path, losses: Losses
    ) -> None:
        data = Path(shutil.copytree(tiny_data.parent, tmp_path / "data"))
        (data / "list.txt").write_text("pictures,annotations.json,true\n", encoding="utf-8")
        samples = PublishedSamples(data / "list.txt")

        def of_all_steps(seed: int) -> set[int]:
            plan = plan_of(samples, 2, seed, 4096)
            return {slot.sample for step in range(4) for slot in plan.batch(step)}

        # Only sample 4 is not square; without it there would be fewer batches.
        seed = next(seed for seed in range(100) if 4 not in of_all_steps(seed))
        settings = (f"data.list={data / 'list.txt'}", f"run.seed={seed}", "data.bad_limit=0")
        train(tiny_config(*settings), tmp_path / "whole")
        train(tiny_config(*settings, "run.steps=2"), tmp_path / "run")
        (data / "pictures" / "4.png").unlink()
        train(tiny_config(*settings), tmp_path / "run")
        assert losses(tmp_path / "run") == losses(tmp_path / "whole")

    def test_of_a_new_run_reads_the_current_sizes(self, tiny_config: Configure, tmp_path: Path) -> None:
        (tmp_path / run_folder.SIZES).write_bytes(b"of an earlier attempt")
        assert train(tiny_config("run.steps=1"), tmp_path).steps == 1

    def test_of_other_samples_is_rejected(self, tiny_config: Configure, tiny_data: Path, tmp_path: Path) -> None:
        train(tiny_config("run.steps=1"), tmp_path / "run")
        other = tmp_path / "list.txt"
        first, second, _ = tiny_data.read_text(encoding="utf-8").rsplit(",", 2)
        other.write_text(f"{first},{second},false\n", encoding="utf-8")
        with pytest.raises(ValueError, match="was trained on other samples"):
            train(tiny_config(f"data.list={other}", "run.steps=2"), tmp_path / "run")

    @pytest.mark.parametrize(
        ("changed", "is_rejected"),
        [
            ("model.layers.0.self_attn.q_proj.weight", True),
            ("denoise_tower.denoiser.single_transformer_blocks.0.proj_out.weight", True),
            ("denoise_tower.denoise_projector.0.weight", False),  # trained, so the checkpoint contains it
        ],
    )
    def test_is_rejected_if_frozen_weights_have_changed(
        self, changed: str, is_rejected: bool, tiny_config: Configure, tiny_copy: Path, tmp_path: Path
    ) -> None:
        folders = {"checkpoint": "uniworld", "flux": "flux", "siglip": "siglip"}
        model = [f"model.{part}={tiny_copy / folder}" for part, folder in folders.items()]
        model.append("stage.parts=['denoise_projector']")
        train(tiny_config(*model, "run.steps=1"), tmp_path / "run")
        file = next(file for file in (tiny_copy / "uniworld").glob("*.safetensors") if changed in load_file(file))
        tensors = load_file(file)
        save_file({**tensors, changed: tensors[changed] + 1}, file, metadata={"format": "pt"})
        if is_rejected:
            with pytest.raises(ValueError, match="trained with other frozen weights"):
                train(tiny_config(*model, "run.steps=2"), tmp_path / "run")
        else:
            assert train(tiny_config(*model, "run.steps=2"), tmp_path / "run").steps == 2

    def test_with_a_damaged_checkpoint_is_rejected(self, tiny_config: Configure, tmp_path: Path) -> None:
        train(tiny_config("run.steps=1"), tmp_path)
        next((tmp_path / "checkpoints" / "step-00000001").glob("*.distcp")).write_bytes(b"")
        with pytest.raises(ValueError, match="the checkpoint is damaged"):
            train(tiny_config("run.steps=2"), tmp_path)

    def test_without_a_finished_checkpoint_starts_from_scratch_with_any_configuration(
        self, tiny_config: Configure, tmp_path: Path, losses: Losses
    ) -> None:
        train(tiny_config("run.steps=1"), tmp_path)
        (tmp_path / "checkpoints" / "step-00000001" / "meta.json").unlink()
        train(tiny_config("run.steps=2", "run.seed=9"), tmp_path)
        assert len(losses(tmp_path)) == 2


class TestStopping:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_by_a_signal_saves_a_checkpoint_and_resumes_to_the_same_losses(
        self,
        tiny_config: Configure,
        tmp_path: Path,
        losses: Losses,
        at_step: Callable[..., None],
        monkeypatch: pytest.MonkeyPatch,
        number: signal.Signals,
    ) -> None:
        at_step(2, lambda: os.kill(os.getpid(), number))
        handler = signal.getsignal(number)
        result = train(tiny_config(), tmp_path / "asked")
        assert signal.getsignal(number) is handler
        monkeypatch.undo()
        assert result.interrupted
        assert result.steps < 4
        assert train(tiny_config(), tmp_path / "asked").steps == 4
        train(tiny_config(), tmp_path / "whole")
        assert losses(tmp_path / "asked") == losses(tmp_path / "whole")

    def test_is_not_interrupted_by_the_same_signal_forwarded_again(
        self, tiny_config: Configure, tmp_path: Path, at_step: Callable[..., None]
    ) -> None:
        """torchrun forwards a terminal's Ctrl-C to its processes."""
        at_step(2, lambda: (signal.raise_signal(signal.SIGINT), signal.raise_signal(signal.SIGTERM)))
        assert train(tiny_config(), tmp_path).interrupted
        assert list((tmp_path / "checkpoints").iterdir())

    def test_by_a_second_signal_is_immediate(
        self, tiny_config: Configure, tmp_path: Path, at_step: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(loop, "_REPEAT_SECONDS", 0.0)
        at_step(2, lambda: (signal.raise_signal(signal.SIGINT), signal.raise_signal(signal.SIGINT)))
        with pytest.raises(KeyboardInterrupt):
            train(tiny_config(), tmp_path)

    def test_by_a_loss_that_is_not_finite_names_the_samples(
        self, tiny_config: Configure, tmp_path: Path, model: Any
    ) -> None:
        broken = torch.full_like(model.projectors.denoise_projector[2].bias, float("nan"))
        save_file({"denoise_projector.2.bias": broken}, tmp_path / "start.safetensors")
        config = tiny_config(f"model.start={tmp_path / 'start.safetensors'}")
        with pytest.raises(ValueError, match=r"The loss of .*annotations\.json#\d+.* is not finite at step \d+"):
            train(config, tmp_path / "run")
        assert not list((tmp_path / "run" / "checkpoints").iterdir())

    def test_by_a_full_disk_is_a_user_error_and_the_run_resumes_later(
        self,
        tiny_config: Configure,
        tmp_path: Path,
        losses: Losses,
        at_step: Callable[..., None],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def full(file: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        config = tiny_config("run.save_every=1")
        at_step(3, lambda: monkeypatch.setattr(os, "fsync", full))
        with pytest.raises(ValueError, match=r"could not be written .*No space left"):
            train(config, tmp_path / "full")
        monkeypatch.undo()
        newest = checkpoints.latest(tmp_path / "full" / "checkpoints")
        assert newest is not None
        checkpoints.verify(newest)
        train(config, tmp_path / "full")
        train(config, tmp_path / "whole")
        assert losses(tmp_path / "full") == losses(tmp_path / "whole")


def test_a_saved_configuration_loads_as_the_same_one(tiny_config: Configure, tmp_path: Path) -> None:
    config = tiny_config("run.steps=1")
    run_folder.write_config(tmp_path, config)
    text = (tmp_path / "config.toml").read_text(encoding="utf-8")
    assert not run_folder.differing_keys(config_from_dict(parse_toml(text, "text")), config)
